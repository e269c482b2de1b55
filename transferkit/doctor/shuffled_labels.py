"""Whether an evaluation ends at chance when labels mean nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError
from transferkit.records import Symptom

__all__ = ["check_shuffled_labels"]

ERRORS = 4.0
"""Standard errors above chance from which on an estimate is too good."""


def check_shuffled_labels(
    evaluate: Callable[[npt.NDArray[np.int64]], float],
    labels: npt.NDArray[np.int64],
    *,
    draws: int = 3,
    held_back_images: int | None = None,
    groups: npt.NDArray[np.int64] | None = None,
    seed: int = 0,
) -> tuple[Symptom, ...]:
    """Shuffle the labels and evaluate: a held-back accuracy above chance shows a leak in the evaluation.

    Args:
        evaluate: (N,) labels -> held-back accuracy in [0, 1] of a model fitted to them.
        labels: (N,) int in [0, K).
        draws: Shuffles.
        held_back_images: Images that an evaluation scores, of which its chance error is: those of one hold-out, or of
            all folds together. None: all.
        groups: (N,) int; images of one group keep one label, as copies and views of a thing do. Without them,
            near-copies on both sides of a split are found as a leak only if they keep their label, so give them if
            there are any.
        seed: Of the shuffles.

    Raises:
        OptionError: There are fewer than two classes, or not as many images as are said to be held back.

    Example:
        >>> labels = np.arange(200) % 2
        >>> [one.cause for one in check_shuffled_labels(lambda shuffled: 0.9, labels)]
        ['leak_in_evaluation']
        >>> check_shuffled_labels(lambda shuffled: 0.52, labels)
        ()
    """
    counts = np.bincount(labels)
    if np.count_nonzero(counts) < 2:
        raise OptionError("Shuffling needs labels of at least two classes.")
    held_back = len(labels) if held_back_images is None else held_back_images
    if not 1 <= held_back <= len(labels):
        raise OptionError(f"held_back_images must be in [1, {len(labels)}], the images there are, got {held_back}.")
    rng = np.random.default_rng(seed)
    found = [evaluate(_shuffle(labels, groups, rng)) for _ in range(draws)]
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


def _shuffle(
    labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64] | None, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    if groups is None:
        return rng.permutation(labels)
    _, first, codes = np.unique(groups, return_index=True, return_inverse=True)
    return np.asarray(rng.permutation(labels[first])[codes.reshape(-1)], dtype=np.int64)
