"""Measures on features: arrays in, numbers out; no network, no files, no torch."""

from transferkit.measure.conformal import ConformalSets, check_coverage, fit_sets, set_scores, summarise_sets
from transferkit.measure.curve_families import CurvePrior
from transferkit.measure.curves import learning_curves, stratified_sample
from transferkit.measure.data_need import CurveForecast, fitted_images, forecast_curve, measure_data_need
from transferkit.measure.head_information import (
    HeadInformation,
    HeadScale,
    fit_head_scale,
    measure_head_information,
)
from transferkit.measure.knn import knn_accuracy, knn_hits
from transferkit.measure.label_errors import LabelErrors, find_label_errors
from transferkit.measure.label_signal import LabelMap, LabelSignal, compare_label_maps, label_signal
from transferkit.measure.leave_out import RidgePath
from transferkit.measure.logistic import LogisticHead, fit_logistic
from transferkit.measure.near_duplicates import NearDuplicates, find_near_duplicates
from transferkit.measure.nearness import Nearness, Scale, fit_scale, measure_nearness
from transferkit.measure.neighbours import compress_features
from transferkit.measure.outliers import Outliers, find_outliers
from transferkit.measure.quality import assess, calibration_error, fit_temperature, log_loss
from transferkit.measure.ranking import RESAMPLES, RankIntervals, bootstrap_ranks, rank_resampled
from transferkit.measure.ridge import PENALTIES, RidgeHead, fit_ridge, ridge_paths
from transferkit.measure.scaled_rows import Chunks
from transferkit.measure.selection import Selection, select_features
from transferkit.measure.similarity import (
    ChannelMoments,
    channel_hellinger,
    class_mean_similarity,
    emd_of_class_means,
    frechet_distance,
    mmd,
    proxy_a_distance,
)
from transferkit.measure.target_heads import (
    LabelCalibration,
    calibrate_labels,
    choose_thresholds,
    fit_label_calibration,
    label_loss,
)
from transferkit.measure.target_metrics import assess_targets
from transferkit.measure.target_scores import (
    ResampledScore,
    average_precisions,
    resample_score,
    score_targets,
    standardise_targets,
    target_units,
)
from transferkit.measure.threads import fitting_threads
from transferkit.measure.transferability import MEASURES, Measure

__all__ = [
    "MEASURES",
    "PENALTIES",
    "RESAMPLES",
    "ChannelMoments",
    "Chunks",
    "ConformalSets",
    "CurveForecast",
    "CurvePrior",
    "HeadInformation",
    "HeadScale",
    "LabelCalibration",
    "LabelErrors",
    "LabelMap",
    "LabelSignal",
    "LogisticHead",
    "Measure",
    "NearDuplicates",
    "Nearness",
    "Outliers",
    "RankIntervals",
    "ResampledScore",
    "RidgeHead",
    "RidgePath",
    "Scale",
    "Selection",
    "assess",
    "assess_targets",
    "average_precisions",
    "bootstrap_ranks",
    "calibrate_labels",
    "calibration_error",
    "channel_hellinger",
    "check_coverage",
    "choose_thresholds",
    "class_mean_similarity",
    "compare_label_maps",
    "compress_features",
    "emd_of_class_means",
    "find_label_errors",
    "find_near_duplicates",
    "find_outliers",
    "fit_head_scale",
    "fit_label_calibration",
    "fit_logistic",
    "fit_ridge",
    "fit_scale",
    "fit_sets",
    "fit_temperature",
    "fitted_images",
    "fitting_threads",
    "forecast_curve",
    "frechet_distance",
    "knn_accuracy",
    "knn_hits",
    "label_loss",
    "label_signal",
    "learning_curves",
    "log_loss",
    "measure_data_need",
    "measure_head_information",
    "measure_nearness",
    "mmd",
    "proxy_a_distance",
    "rank_resampled",
    "resample_score",
    "ridge_paths",
    "score_targets",
    "select_features",
    "set_scores",
    "stratified_sample",
    "summarise_sets",
    "standardise_targets",
    "target_units",
]
