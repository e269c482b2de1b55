"""Plan -> trained model."""

from transferkit.train.closed_form import CLASS_WEIGHTS, HEADS, Fitted, class_weights, fit_closed_form

__all__ = ["CLASS_WEIGHTS", "HEADS", "Fitted", "class_weights", "fit_closed_form"]
