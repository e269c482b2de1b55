"""Feature extractors, one per file."""

from transferkit.features.engines.torch import TorchExtractor, stage_extractor

__all__ = ["TorchExtractor", "stage_extractor"]
