"""What can run a backbone over images: an `Extractor` a file."""

from transferkit.features.engines.torch import TorchExtractor, stage_extractor

__all__ = ["TorchExtractor", "stage_extractor"]
