"""Scores as text: shares as percentages, R2 as a number. And what is predicted, counted."""

from __future__ import annotations

__all__ = ["count_targets", "format_end", "format_gain", "format_score"]

PLAIN = ("R2",)
"""Measures that are no shares: they may be below 0."""

TARGETS = {
    "single_label": ("class", "classes"),
    "multi_label": ("label", "labels"),
    "regression": ("number to predict", "numbers to predict"),
}
"""Task -> what is predicted for an image, one and several."""


def count_targets(number: int, task: str) -> str:
    """How many classes, labels or numbers a model predicts.

    Example:
        >>> count_targets(10, "single_label"), count_targets(1, "regression")
        ('10 classes', '1 number to predict')
    """
    one, several = TARGETS[task]
    return f"{number:,} {one if number == 1 else several}"


def format_score(value: float, measure: str = "accuracy") -> str:
    """A score with its unit.

    Example:
        >>> format_score(0.9812), format_score(0.8, "mean average precision"), format_score(-0.02, "R2")
        ('98.1 %', '80.0 %', '-0.020')
    """
    return f"{value:.3f}" if measure in PLAIN else f"{100 * value:.1f} %"


def format_end(value: float, measure: str = "accuracy") -> str:
    """An end of an interval: a score without the unit, which stands beside it.

    Example:
        >>> format_end(0.9812)
        '98.1'
    """
    return format_score(value, measure).removesuffix(" %")


def format_gain(value: float, measure: str = "accuracy") -> str:
    """A difference of two scores, with its sign.

    Example:
        >>> format_gain(0.012), format_gain(-0.012, "R2")
        ('+1.2 points', '-0.012')
    """
    return f"{value:+.3f}" if measure in PLAIN else f"{100 * value:+.1f} points"
