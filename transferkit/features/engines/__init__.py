"""Feature extractors, one per file; those in `ENGINES` compute what the network does, faster."""

from transferkit.features.engines import compiled, folded, onnxruntime, openvino  # noqa: F401  (they register themselves)
from transferkit.features.engines.engine import ENGINES, Engine, EngineExtractor, EngineJob
from transferkit.features.engines.opening import CHECKED, Engines, check_engine
from transferkit.features.engines.speeds import Speed, SpeedRecord, machine_key
from transferkit.features.engines.torch import TorchExtractor, stage_extractor

__all__ = [
    "CHECKED",
    "ENGINES",
    "Engine",
    "EngineExtractor",
    "EngineJob",
    "Engines",
    "Speed",
    "SpeedRecord",
    "TorchExtractor",
    "check_engine",
    "machine_key",
    "stage_extractor",
]
