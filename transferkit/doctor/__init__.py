"""The training doctor: checks of a training set-up before a long run, for any PyTorch model and loop."""

from transferkit.doctor.bias_variance import ErrorBudget, explain_errors
from transferkit.doctor.checks import CHECKS
from transferkit.doctor.class_order import check_class_order
from transferkit.doctor.curve_reading import Curves, read_curves
from transferkit.doctor.examination import examine
from transferkit.doctor.image_review import review_images
from transferkit.doctor.monitor import TrainingMonitor
from transferkit.doctor.serving import check_serving
from transferkit.doctor.shuffled_labels import check_shuffled_labels
from transferkit.doctor.subject import Subject

__all__ = [
    "CHECKS",
    "Curves",
    "ErrorBudget",
    "Subject",
    "TrainingMonitor",
    "check_class_order",
    "check_serving",
    "check_shuffled_labels",
    "examine",
    "explain_errors",
    "read_curves",
    "review_images",
]
