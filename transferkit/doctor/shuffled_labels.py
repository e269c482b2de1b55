"""Whether an evaluation ends at chance when labels mean nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError
from transferkit.records import Symptom

__all__ = ["check_shuffled_labels"]

ERRORS = 4.0
"""Standard errors above chance from which on an estimate is too good."""


def check_shuffled_labels(
    evaluate: Callable[[npt.NDArray[Any]], float],
    labels: npt.NDArray[Any],
    *,
    draws: int = 3,
    held_back_images: int | None = None,
    groups: npt.NDArray[Any] | None = None,
    seed: int = 0,
) -> tuple[Symptom, ...]:
    """Shuffle the labels and evaluate: a held-back accuracy above chance shows a leak in the evaluation.

    Args:
        evaluate: (N,) labels, of the type of `labels` -> held-back accuracy in [0, 1] of a model fitted to them.
        labels: (N,) class numbers or names.
        draws: Shuffles.
        held_back_images: Images that an evaluation scores, of which its chance error is: those of one hold-out, or of
            all folds together. None: all.
        groups: (N,) numbers or names; images of one group keep one label, as copies and views of a thing do. Without
            them, near-copies on both sides of a split are found as a leak only if they keep their label, so give them
            if there are any.
        seed: Of the shuffles.

    Raises:
        OptionError: There are fewer than two classes, not as many images as are said to be held back, or not one label
            (and group) per image; or `evaluate` returns no share.

    Example:
        >>> labels = np.arange(200) % 2
        >>> [one.cause for one in check_shuffled_labels(lambda shuffled: 0.9, labels)]
        ['leak_in_evaluation']
        >>> check_shuffled_labels(lambda shuffled: 0.52, labels)
        ()
    """
    labels, groups = np.asarray(labels), None if groups is None else np.asarray(groups)
    if labels.ndim != 1 or (groups is not None and groups.shape != labels.shape):
        raise OptionError(
            f"Expected one label, and one group, per image: (N,), got shapes {labels.shape} and "
            f"{None if groups is None else groups.shape}."
        )
    if draws < 1:
        raise OptionError(f"draws must be >= 1, got {draws!r}.")
    counts = np.unique_counts(labels).counts
    if len(counts) < 2:
        raise OptionError("Shuffling needs labels of at least two classes.")
    held_back = len(labels) if held_back_images is None else held_back_images
    if not 1 <= held_back <= len(labels):
        raise OptionError(f"held_back_images must be in [1, {len(labels)}], the images there are, got {held_back}.")
    rng = np.random.default_rng(seed)
    found = [_checked(evaluate(_shuffle(labels, groups, rng))) for _ in range(draws)]
    # The best that guessing can do is to name the largest class always.
    chance = counts.max() / counts.sum()
    units = (len(labels) if groups is None else len(np.unique(groups))) * held_back / len(labels)
    error = math.sqrt(chance * (1 - chance) / units)
    mean = float(np.mean(found))
    if mean <= chance + ERRORS * error / math.sqrt(draws):
        return ()
    return (
        Symptom(
            cause="leak_in_evaluation",
            severity="alarm",
            evidence=f"With shuffled labels the held-back accuracy is {100 * mean:.1f} %; chance is "
            f"{100 * chance:.1f} %.",
            remedy="Images are on both sides of a split, or the labels reach the model another way: split by group, "
            "remove copies, and fit preprocessing and feature selection inside each training fold.",
        ),
    )


def _checked(accuracy: Any) -> float:
    try:
        value = float(accuracy)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 1:
        raise OptionError(
            f"evaluate must return a held-back accuracy in [0, 1], got {accuracy!r}. Divide percentages by 100."
        )
    return value


def _shuffle(labels: npt.NDArray[Any], groups: npt.NDArray[Any] | None, rng: np.random.Generator) -> npt.NDArray[Any]:
    if groups is None:
        return rng.permutation(labels)
    _, first, codes = np.unique(groups, return_index=True, return_inverse=True)
    return np.asarray(rng.permutation(labels[first])[codes.reshape(-1)])
