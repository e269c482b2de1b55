"""The textbook matrix: a strategy from the amount of data and its similarity to the source alone."""

from __future__ import annotations

import math

from transferkit.core.errors import OptionError
from transferkit.records import TOP, Choice

__all__ = ["rule"]

PLENTY_IMAGES = 1000
"""Images from which on data counts as plenty, if classes are large enough: with fewer, fine-tuning lost to the probe on
small tasks in our measurements, and BiT-HyperRule uses its shortest schedule."""

PLENTY_PER_CLASS = 50
"""Images per class below which data counts as little, whatever the total."""

NEAR = 0.5
"""Similarity from which on the data counts as near the source; the scale is calibrated so that 0.5 is the middle."""


def rule(*, images: int, per_class: float, similarity: float, stages: tuple[str, ...]) -> Choice:
    """The textbook matrix: a strategy from the amount of data and its similarity to the source alone.

    Args:
        images: N training images, >= 1.
        per_class: Mean images per class, > 0.
        similarity: In [0, 1]; 1 is the same distribution as the backbone's training images.
        stages: Stage names, stem -> head.

    Returns:
        little + near -> `linear_probe` on the top stage; little + far -> `linear_probe` on an earlier one, the
        earlier the farther, never below the middle; plenty + near -> `few_layers`; plenty + far -> `many_layers`.

    Raises:
        OptionError: If an argument is out of its range.

    Example:
        >>> rule(images=150, per_class=15, similarity=0.9, stages=("stem", "a", "b", "top")).stage
        'top'
        >>> rule(images=150, per_class=15, similarity=0.1, stages=("stem", "a", "b", "top")).stage
        'a'
        >>> rule(images=50_000, per_class=500, similarity=0.1, stages=("stem", "top")).strategy
        'many_layers'
    """
    if images < 1 or not per_class > 0:
        raise OptionError(f"images must be >= 1 and per_class > 0, got {images!r} and {per_class!r}.")
    if not 0 <= similarity <= 1:
        raise OptionError(f"similarity must be in [0, 1], got {similarity!r}.")
    plenty = images >= PLENTY_IMAGES and per_class >= PLENTY_PER_CLASS
    near = similarity >= NEAR
    amount = (
        f"{images:,} training images, {per_class:.0f} per class, count as {'plenty' if plenty else 'little'} "
        f"(plenty is {PLENTY_IMAGES:,} and {PLENTY_PER_CLASS} per class)."
    )
    nearness = f"Similarity {similarity:.2f} counts as {'near' if near else 'far'} (near is {NEAR} or more)."
    if not plenty:
        stage = TOP if near else _earlier_stage(stages, similarity)
        advice = f"Little data: train a linear classifier only, on stage {stage!r} of the frozen backbone."
        return Choice(strategy="linear_probe", stage=stage, mode="rule", reasons=(amount, nearness, advice))
    advice = f"Plenty of data: fine-tune {'a few layers' if near else 'many layers'}."
    strategy = "few_layers" if near else "many_layers"
    return Choice(strategy=strategy, stage=TOP, mode="rule", reasons=(amount, nearness, advice))


def _earlier_stage(stages: tuple[str, ...], similarity: float) -> str:
    """The stage for little, dissimilar data: from the last before the top at similarity 0.5 to the middle one at 0."""
    last = len(stages) - 1
    share = 0.5 + 0.5 * similarity / NEAR
    return stages[min(max(math.ceil(share * last) - 1, last // 2), max(last - 1, 0))]
