"""Linear heads on banked features: ridge, logistic regression and their average, and the choice among them."""

from __future__ import annotations

from transferkit.probe.closed_form import Fitted, fit_closed_form
from transferkit.probe.heads import HEADS, HeadFit, choose_head, fit_heads
from transferkit.probe.weighting import CLASS_WEIGHTS, class_weights, image_weights

__all__ = [
    "CLASS_WEIGHTS",
    "HEADS",
    "Fitted",
    "HeadFit",
    "choose_head",
    "class_weights",
    "fit_closed_form",
    "fit_heads",
    "image_weights",
]
