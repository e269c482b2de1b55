"""One frozen pass over the images, with features stored in a bank that all later steps read."""

from transferkit.core.cache_folder import default_folder
from transferkit.features.activations import ActivationTable, activation_bytes, cache_activations
from transferkit.features.averaged import AveragedTable, average_tables
from transferkit.features.bank import FeatureBank, ShelfInfo
from transferkit.features.device import choose_device
from transferkit.features.engines import Engines, TorchExtractor, check_engine
from transferkit.features.extraction import FrozenPass, frozen_pass, run_extractor
from transferkit.features.extractor import Extractor
from transferkit.features.identity import Identity
from transferkit.features.pace import image_seconds
from transferkit.features.tables import FeatureTable

__all__ = [
    "ActivationTable",
    "AveragedTable",
    "Engines",
    "Extractor",
    "FeatureBank",
    "FeatureTable",
    "FrozenPass",
    "Identity",
    "ShelfInfo",
    "TorchExtractor",
    "activation_bytes",
    "average_tables",
    "cache_activations",
    "check_engine",
    "choose_device",
    "default_folder",
    "frozen_pass",
    "image_seconds",
    "run_extractor",
]
