"""What travels between the folders: frozen, keyword-only dataclasses that check themselves.

`BackboneSpec` (what the zoo knows) -> `DataSummary` (what the audit found) -> `Evidence` (what one frozen pass
measured) -> `Decision` (what to do, and why) -> `RunRecord` (what came of it, everything but the weights).
`Ranking` compares backbones before any of it; `Predictions` are what a `Predictor` says of new images.
Maths letters: N images, D features, K classes, S stages.
"""

from __future__ import annotations

from transferkit.records.backbone import JOINED, SELECTED, TOP, BackboneSpec, StageSpec
from transferkit.records.data import DataSummary, Finding, Severity
from transferkit.records.decision import Alternative, Choice, Decision
from transferkit.records.evidence import (
    CurvePoint,
    Evidence,
    ProbeScore,
    SimilarityDetail,
    StageDistance,
    ViewComparison,
    ViewScore,
)
from transferkit.records.folds import PARTS, Fold, Folds, connected_groups
from transferkit.records.predictions import FailedImage, Predictions
from transferkit.records.predictor import PixelClassifier, Predictor
from transferkit.records.preprocessing import (
    GEOMETRIES,
    CropMode,
    Interpolation,
    Preprocessing,
    View,
    check_image_size,
)
from transferkit.records.ranking import LeftOut, MeasureScore, RankedModel, Ranking
from transferkit.records.run import HeldOut, Metrics, Mistake, Picture, RunRecord
from transferkit.records.training import Candidate, Claim, Epoch, TrainingRecord

__all__ = [
    "GEOMETRIES",
    "PARTS",
    "CropMode",
    "Interpolation",
    "Severity",
    "Alternative",
    "BackboneSpec",
    "Candidate",
    "Choice",
    "Claim",
    "CurvePoint",
    "DataSummary",
    "Decision",
    "Epoch",
    "Evidence",
    "FailedImage",
    "Finding",
    "Fold",
    "Folds",
    "HeldOut",
    "JOINED",
    "LeftOut",
    "MeasureScore",
    "Metrics",
    "Mistake",
    "Picture",
    "PixelClassifier",
    "Predictions",
    "Predictor",
    "Preprocessing",
    "ProbeScore",
    "RankedModel",
    "Ranking",
    "RunRecord",
    "SELECTED",
    "SimilarityDetail",
    "StageDistance",
    "StageSpec",
    "TOP",
    "TrainingRecord",
    "View",
    "ViewComparison",
    "ViewScore",
    "check_image_size",
    "connected_groups",
]
