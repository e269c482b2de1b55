"""What a person keeps of a run: the model, its record, predictions, the folder on disk, and the test that ends it."""

from __future__ import annotations

from transferkit.result.predictions import FailedImage, Predictions
from transferkit.result.result import Result, check_export, load
from transferkit.result.run_folder import check_replaceable

__all__ = ["FailedImage", "Predictions", "Result", "check_export", "check_replaceable", "load"]
