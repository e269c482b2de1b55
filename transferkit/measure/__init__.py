"""Numbers about features: arrays in, numbers out; no network, no file, no torch."""

from transferkit.measure.knn import knn_accuracy
from transferkit.measure.logistic import LogisticHead, fit_logistic
from transferkit.measure.quality import assess, calibration_error, fit_temperature, log_loss
from transferkit.measure.ridge import PENALTIES, Chunks, RidgeHead, RidgePath, fit_ridge, ridge_paths
from transferkit.measure.similarity import (
    ChannelMoments,
    channel_kl,
    channel_w2,
    frechet_distance,
    linear_cka,
    mmd,
    proxy_a_distance,
)
from transferkit.measure.transferability import MEASURES, Measure

__all__ = [
    "MEASURES",
    "PENALTIES",
    "ChannelMoments",
    "Chunks",
    "LogisticHead",
    "Measure",
    "RidgeHead",
    "RidgePath",
    "assess",
    "calibration_error",
    "channel_kl",
    "channel_w2",
    "fit_logistic",
    "fit_ridge",
    "fit_temperature",
    "frechet_distance",
    "knn_accuracy",
    "linear_cka",
    "log_loss",
    "mmd",
    "proxy_a_distance",
    "ridge_paths",
]
