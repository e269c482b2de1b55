"""One frozen pass over the images, with features stored in a bank that all later steps read."""

from transferkit.core.cache_folder import default_folder
from transferkit.features.activations import ActivationTable, activation_bytes, cache_activations
from transferkit.features.averaged import AveragedTable, average_tables
from transferkit.features.bank import FeatureBank, ShelfInfo
from transferkit.features.engine import FrozenPass, choose_device, frozen_pass, image_seconds
from transferkit.features.tables import FeatureTable

__all__ = [
    "ActivationTable",
    "AveragedTable",
    "FeatureBank",
    "FeatureTable",
    "FrozenPass",
    "ShelfInfo",
    "activation_bytes",
    "average_tables",
    "cache_activations",
    "choose_device",
    "default_folder",
    "frozen_pass",
    "image_seconds",
]
