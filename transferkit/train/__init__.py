"""Plan -> trained model."""

from transferkit.train.closed_form import HEADS, Fitted, class_weights, fit_closed_form

__all__ = ["HEADS", "Fitted", "class_weights", "fit_closed_form"]
