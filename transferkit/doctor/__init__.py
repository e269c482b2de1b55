"""The training doctor: checks of a training set-up before a long run, and watching it, for any PyTorch model and loop.

What needs Lightning is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transferkit.core.lazy import attach
from transferkit.doctor.bias_variance import ErrorBudget, explain_errors
from transferkit.doctor.checks import CHECKS
from transferkit.doctor.class_order import check_class_order
from transferkit.doctor.curve_reading import Curves, read_curves
from transferkit.doctor.examination import examine
from transferkit.doctor.monitor import TrainingMonitor
from transferkit.doctor.replaying import replay
from transferkit.doctor.serving import check_serving
from transferkit.doctor.shuffled_labels import check_shuffled_labels
from transferkit.doctor.subject import Subject

if TYPE_CHECKING:
    from transferkit.doctor.callback import DoctorCallback

__all__ = [
    "CHECKS",
    "Curves",
    "DoctorCallback",
    "ErrorBudget",
    "Subject",
    "TrainingMonitor",
    "check_class_order",
    "check_serving",
    "check_shuffled_labels",
    "examine",
    "explain_errors",
    "read_curves",
    "replay",
]

_HOMES = {"DoctorCallback": "callback"}

if not TYPE_CHECKING:
    __getattr__, __dir__ = attach(__name__, _HOMES)
