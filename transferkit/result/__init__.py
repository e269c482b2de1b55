"""A finished run: the model, its record, predictions, the folder on disk, and the final test."""

from __future__ import annotations

from transferkit.measure import check_coverage
from transferkit.records import FailedImage, Predictions
from transferkit.result.ensemble import Ensemble, check_free, load_ensemble, load_predictor
from transferkit.result.prediction import ImagePredictor, predict_images
from transferkit.result.result import Result, check_export, load
from transferkit.result.run_folder import check_replaceable

__all__ = [
    "Ensemble",
    "FailedImage",
    "ImagePredictor",
    "Predictions",
    "Result",
    "check_coverage",
    "check_export",
    "check_free",
    "check_replaceable",
    "load",
    "load_ensemble",
    "load_predictor",
    "predict_images",
]
