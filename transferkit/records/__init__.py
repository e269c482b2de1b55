"""Records that travel between the packages: frozen, keyword-only dataclasses that validate themselves.

`BackboneSpec` (what the zoo knows) -> `DataSummary` (what the audit found) -> `Evidence` (what one frozen pass
measured) -> `Decision` (what to do, and why) -> `RunRecord` (the outcome, everything but the weights).
`Ranking` compares backbones before that; `Predictions` are a `Predictor`'s output for new images.
Maths letters: N images, D features, K classes, S stages.
"""

from __future__ import annotations

from transferkit.records.backbone import JOINED, SELECTED, TOP, BackboneSpec, StageSpec
from transferkit.records.data import DataSummary, Finding, Severity
from transferkit.records.data_need import DataNeed, Forecast, WantedAccuracy
from transferkit.records.decision import Alternative, Choice, Decision
from transferkit.records.diagnosis import Diagnosis, Symptom
from transferkit.records.dry_run import DryRun, PlannedData, PlannedFile, PlannedStep
from transferkit.records.evidence import (
    CurvePoint,
    EngineUse,
    Evidence,
    ProbeScore,
    SimilarityDetail,
    StageDistance,
    ViewComparison,
    ViewScore,
)
from transferkit.records.few_shot import AddedClass, FewShotRecord, FewShotScore
from transferkit.records.folds import Fold, Folds, connected_groups
from transferkit.records.held_back_scores import MAX_HELD_BACK, HeldBackScores
from transferkit.records.intervention import Intervention
from transferkit.records.label_review import (
    CORRECTED,
    REMOVED,
    CorrectedLabel,
    LabelReview,
    ReviewedLabel,
    removal_word,
)
from transferkit.records.monitoring import HEALTHY_UPDATES, Histogram, MonitoredStage, MonitorRecord
from transferkit.records.picture import LARGE, Picture
from transferkit.records.predictions import FailedImage, Predictions
from transferkit.records.predictor import PixelClassifier, Predictor
from transferkit.records.preprocessing import (
    GEOMETRIES,
    CropMode,
    Interpolation,
    Preprocessing,
    View,
)
from transferkit.records.ranking import LeftOut, MeasureScore, RankedModel, Ranking
from transferkit.records.retest import Retest, RetestedSettings
from transferkit.records.review import CopyPair, ImageFinding, ImageReview, OutlierImage
from transferkit.records.run import AnyMetrics, HeldOut, Metrics, Mistake, RunRecord
from transferkit.records.set_summary import SetSummary
from transferkit.records.shift import (
    AccuracyEstimate,
    ClassShare,
    RemedyTrial,
    ShiftRecord,
    StageShift,
    UnfamiliarImage,
)
from transferkit.records.target_folds import TargetFolds
from transferkit.records.target_metrics import LabelMetrics, LabelScore, NumberMetrics, NumberScore
from transferkit.records.targets import MEASURES_OF, TARGET_TASKS, TASK_NAMES, Targets, format_target, join_labels
from transferkit.records.training import Candidate, Claim, Epoch, TrainingRecord
from transferkit.records.tuning import TuningRecord, TuningTrial
from transferkit.records.zero_shot import ZeroShotRecord, ZeroShotScore

__all__ = [
    "CORRECTED",
    "GEOMETRIES",
    "HEALTHY_UPDATES",
    "JOINED",
    "LARGE",
    "MAX_HELD_BACK",
    "MEASURES_OF",
    "REMOVED",
    "SELECTED",
    "TARGET_TASKS",
    "TASK_NAMES",
    "TOP",
    "AccuracyEstimate",
    "AddedClass",
    "Alternative",
    "AnyMetrics",
    "BackboneSpec",
    "Candidate",
    "Choice",
    "Claim",
    "ClassShare",
    "CopyPair",
    "CorrectedLabel",
    "CropMode",
    "CurvePoint",
    "DataNeed",
    "DataSummary",
    "Decision",
    "Diagnosis",
    "DryRun",
    "EngineUse",
    "Epoch",
    "Evidence",
    "FailedImage",
    "FewShotRecord",
    "FewShotScore",
    "Finding",
    "Fold",
    "Folds",
    "Forecast",
    "HeldBackScores",
    "HeldOut",
    "Histogram",
    "ImageFinding",
    "ImageReview",
    "Interpolation",
    "Intervention",
    "LabelMetrics",
    "LabelReview",
    "LabelScore",
    "LeftOut",
    "MeasureScore",
    "Metrics",
    "Mistake",
    "MonitorRecord",
    "MonitoredStage",
    "NumberMetrics",
    "NumberScore",
    "OutlierImage",
    "Picture",
    "PixelClassifier",
    "PlannedData",
    "PlannedFile",
    "PlannedStep",
    "Predictions",
    "Predictor",
    "Preprocessing",
    "ProbeScore",
    "RankedModel",
    "Ranking",
    "RemedyTrial",
    "Retest",
    "RetestedSettings",
    "ReviewedLabel",
    "RunRecord",
    "SetSummary",
    "Severity",
    "ShiftRecord",
    "SimilarityDetail",
    "StageDistance",
    "StageShift",
    "StageSpec",
    "Symptom",
    "TargetFolds",
    "Targets",
    "TrainingRecord",
    "TuningRecord",
    "TuningTrial",
    "UnfamiliarImage",
    "View",
    "ViewComparison",
    "ViewScore",
    "WantedAccuracy",
    "connected_groups",
    "format_target",
    "join_labels",
    "removal_word",
    "ZeroShotRecord",
    "ZeroShotScore",
]
