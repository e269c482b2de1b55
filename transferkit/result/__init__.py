"""A finished run: the model, its record, predictions, the folder on disk, and the final test."""

from __future__ import annotations

from transferkit.measure import check_coverage
from transferkit.records import FailedImage, Predictions
from transferkit.result.prediction import ImagePredictor, predict_images
from transferkit.result.result import Result, check_export, load
from transferkit.result.run_folder import check_replaceable

__all__ = [
    "FailedImage",
    "ImagePredictor",
    "Predictions",
    "Result",
    "check_coverage",
    "check_export",
    "check_replaceable",
    "load",
    "predict_images",
]
