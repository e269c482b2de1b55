"""Whether images may be mirrored: tested with a probe that was fitted without mirror images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from transferkit.data.mirroring import flip_is_safe, flip_keeps_targets
from transferkit.features import FeatureTable
from transferkit.probe import HeadFit, fit_heads
from transferkit.records import Fold, Folds, Targets
from transferkit.strategies import Plan

__all__ = ["FlipCheck", "check_flip"]

MAX_IMAGES = 300
"""Held-back images whose mirror images are classified: enough to detect a loss of 5 points."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FlipCheck:
    """What mirroring does to held-back images.

    Args:
        safe: See `flip_is_safe`.
        images: Held-back images that were classified.
        right, right_mirrored: How many of them, and of their mirror images, were classified correctly.
        errors: Of labels or numbers instead: mean squared error of the images and of their mirror images, in units of
            the variance; None for classes.
    """

    safe: bool
    images: int
    right: int
    right_mirrored: int
    errors: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.errors is not None:
            return (
                f"held-back squared error of a probe {self.errors[0]:.3f} of the variance on {self.images:,} images, "
                f"{self.errors[1]:.3f} on their mirror images"
            )
        plain, mirrored = (100 * right / max(self.images, 1) for right in (self.right, self.right_mirrored))
        return (
            f"held-back accuracy of a probe {plain:.1f} % on {self.images} images, {mirrored:.1f} % on their mirror "
            "images"
        )


def check_flip(
    table: FeatureTable,
    known: Folds,
    read_mirrored: Callable[[Indices], FeatureTable],
    *,
    classes: int,
    folds: Sequence[Fold],
    seed: int = 0,
) -> FlipCheck:
    """Whether a probe classifies mirror images as well as the held-back images themselves; not so for digits, letters
    and hand signs.

    Costs a frozen pass over at most `MAX_IMAGES` mirror images, and a ridge fit for each fold that they come from.

    Args:
        table: Rows of the N images at hand.
        known: Their labels, (N,) int in [0, K), and which of them are held back together.
        read_mirrored: Positions among the N -> rows of these images' mirror images.
        classes: K.
        folds: The probe is fitted to one part of each and classifies the other, fold by fold until there are enough.
        seed: Draws which held-back images are classified.
    """
    stages, draw = tuple(table.blocks), np.random.default_rng(seed)
    shown: list[Indices] = []
    heads: list[HeadFit] = []
    for fold in folds:
        left = MAX_IMAGES - sum(map(len, shown))
        if left <= 0:
            break
        shown.append(draw.permutation(fold.held_back)[:left])
        heads.append(_probe(table.take(fold.train), known.take(fold.train), stages, classes))
    chosen = np.concatenate(shown)
    if known.targets is not None:
        pairs = (table.take(chosen).load(stages), read_mirrored(chosen).load(stages))
        return _check_targets(known.targets, chosen, pairs, shown, heads)
    truth = known.labels[chosen]
    answers = []
    for features in (table.take(chosen).load(stages), read_mirrored(chosen).load(stages)):
        parts = np.split(features, np.cumsum([len(part) for part in shown])[:-1])
        named = [(part @ head.weight.T + head.bias).argmax(axis=1) for part, head in zip(parts, heads, strict=True)]
        answers.append(np.concatenate(named) == truth)
    plain, mirrored = answers
    safe = flip_is_safe(plain, mirrored, labels=truth)
    return FlipCheck(safe, len(chosen), int(plain.sum()), int(mirrored.sum()))


def _check_targets(
    targets: Targets,
    chosen: Indices,
    pairs: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    shown: Sequence[Indices],
    heads: Sequence[HeadFit],
) -> FlipCheck:
    """The same by squared errors of labels or numbers, in units of their variance."""
    values = targets.values[chosen]
    spread = np.maximum(targets.values.std(axis=0), np.finfo(np.float32).tiny)
    errors = []
    for features in pairs:
        parts = np.split(features, np.cumsum([len(part) for part in shown])[:-1])
        outputs = [part @ head.weight.T + head.bias for part, head in zip(parts, heads, strict=True)]
        predicted = np.concatenate(outputs)
        predicted = expit(predicted) if targets.is_labels else predicted
        errors.append(((predicted - values) / spread) ** 2)
    plain, mirrored = errors
    means = float(plain.mean()), float(mirrored.mean())
    return FlipCheck(flip_keeps_targets(plain, mirrored), len(chosen), 0, 0, means)


def _probe(table: FeatureTable, known: Folds, stages: tuple[str, ...], classes: int) -> HeadFit:
    plan = Plan(strategy="linear_probe", stages=stages, closed_form=True)
    return fit_heads(plan, table, known.labels, classes=classes, head="ridge", folds=known)[0]
