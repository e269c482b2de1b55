"""Numbers about features: arrays in, numbers out; no network, no file, no torch."""

from transferkit.measure.knn import knn_accuracy
from transferkit.measure.logistic import LogisticHead, fit_logistic
from transferkit.measure.quality import assess, calibration_error, fit_temperature, log_loss
from transferkit.measure.ridge import PENALTIES, Chunks, RidgeHead, RidgePath, fit_ridge, ridge_paths

__all__ = [
    "PENALTIES",
    "Chunks",
    "LogisticHead",
    "RidgeHead",
    "RidgePath",
    "assess",
    "calibration_error",
    "fit_logistic",
    "fit_ridge",
    "fit_temperature",
    "knn_accuracy",
    "log_loss",
    "ridge_paths",
]
