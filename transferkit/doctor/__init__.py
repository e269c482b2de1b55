"""The training doctor: checks of a training set-up before a long run, and watching it, for any PyTorch model and loop.

What needs Lightning or the workflow is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transferkit.core.lazy import attach
from transferkit.doctor.adapt_examination import Examination, examine_adapt
from transferkit.doctor.bias_variance import ErrorBudget, explain_errors
from transferkit.doctor.checks import CHECKS
from transferkit.doctor.class_order import check_class_order
from transferkit.doctor.curve_reading import read_curves
from transferkit.doctor.curves import Curves
from transferkit.doctor.examination import examine
from transferkit.doctor.image_review import review_images
from transferkit.doctor.label_review import review_labels
from transferkit.doctor.loop import LoopWatch
from transferkit.doctor.monitor import TrainingMonitor
from transferkit.doctor.pictures import check_pictures
from transferkit.doctor.replaying import replay
from transferkit.doctor.serving import check_serving
from transferkit.doctor.shuffled_labels import check_shuffled_labels
from transferkit.doctor.subject import Subject
from transferkit.doctor.training import examine_training

if TYPE_CHECKING:
    from transferkit.doctor.callback import DoctorCallback
    from transferkit.doctor.session_review import review_copies

__all__ = [
    "CHECKS",
    "Curves",
    "DoctorCallback",
    "ErrorBudget",
    "Examination",
    "LoopWatch",
    "Subject",
    "TrainingMonitor",
    "check_class_order",
    "check_pictures",
    "check_serving",
    "check_shuffled_labels",
    "examine",
    "examine_adapt",
    "examine_training",
    "explain_errors",
    "read_curves",
    "replay",
    "review_copies",
    "review_images",
    "review_labels",
]

_HOMES = {"DoctorCallback": "callback", "review_copies": "session_review"}

if not TYPE_CHECKING:
    __getattr__, __dir__ = attach(__name__, _HOMES)
