"""Plan -> trained model."""

from transferkit.train.closed_form import Fitted, fit_closed_form
from transferkit.train.heads import CLASS_WEIGHTS, HEADS, HeadFit, choose_head, class_weights, fit_heads

__all__ = [
    "CLASS_WEIGHTS",
    "HEADS",
    "Fitted",
    "HeadFit",
    "choose_head",
    "class_weights",
    "fit_closed_form",
    "fit_heads",
]
