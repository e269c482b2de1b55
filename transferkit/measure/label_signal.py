"""Whether labels have anything to do with the images, and whether two sets of images number the classes alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError

__all__ = ["LabelMap", "LabelSignal", "compare_label_maps", "label_signal"]

PENALTY = 0.1
"""Ridge penalty in units of the mean squared length of the features."""

PERMUTATIONS = 200
"""Random orders of the labels that the real one is compared with."""

FLOOR = 1e-12


@dataclass(frozen=True)
class LabelSignal:
    """How well held-back labels are predicted from features.

    Args:
        z: Mean score of the own class above that of permuted labels, in their standard deviations. Below 2: nothing
            says that labels belong to their images.
        accuracy: Of the held-back predictions, in [0, 1].
        chance: Share of the largest class.
        images: N.
    """

    z: float
    accuracy: float
    chance: float
    images: int


@dataclass(frozen=True)
class LabelMap:
    """How the labels of a second set of images match those that the first set predicts for them.

    Args:
        accuracy: As they are numbered, in [0, 1].
        best: With the numbers of the second set exchanged in the best way, in [0, 1].
        z: Images explained by the exchange alone against those explained by the numbers as they are, in standard
            deviations; 0 if no exchange is better.
        moved: Class numbers of the second set that the exchange changes.
    """

    accuracy: float
    best: float
    z: float
    moved: tuple[int, ...]


def label_signal(features: npt.ArrayLike, labels: npt.ArrayLike, *, seed: int = 0) -> LabelSignal:
    """Compare leave-one-out predictions of a ridge classifier for these labels and for permuted ones.

    The hat matrix does not depend on the labels, so each permutation costs one product with it.

    Args:
        features: (N, D) float, N up to a few thousand.
        labels: (N,) int in [0, K).
        seed: Of the permutations.

    Raises:
        DataError: There are fewer than two classes, or lengths differ.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = np.arange(60) % 3
        >>> rows = rng.normal(size=(60, 5)) + 2 * np.eye(5)[labels]
        >>> label_signal(rows, labels).z > 10 > 4 > abs(label_signal(rows, rng.permutation(labels)).z)
        True
    """
    rows, classes = _checked(features, labels)
    targets = np.eye(int(classes.max()) + 1, dtype=np.float64)[classes]
    targets = targets[:, targets.any(axis=0)]
    hat = _hat(rows, rows)
    kept = np.diag(hat).copy()
    np.fill_diagonal(hat, 0.0)
    # Leave-one-out predictions of centred targets; the mean over all images is taken as known.
    hat /= (1 - kept)[:, None]

    def score(wanted: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        found = hat @ (wanted - wanted.mean(axis=0))
        return float((found * (wanted - wanted.mean(axis=0))).sum()), found

    real, predicted = score(targets)
    rng = np.random.default_rng(seed)
    null = np.array([score(targets[rng.permutation(len(targets))])[0] for _ in range(PERMUTATIONS)])
    right = (predicted + targets.mean(axis=0)).argmax(axis=1) == targets.argmax(axis=1)
    return LabelSignal(
        z=float((real - null.mean()) / max(null.std(), FLOOR)),
        accuracy=float(right.mean()),
        chance=float(targets.mean(axis=0).max()),
        images=len(targets),
    )


def compare_label_maps(
    features: npt.ArrayLike, labels: npt.ArrayLike, others: npt.ArrayLike, other_labels: npt.ArrayLike
) -> LabelMap:
    """Predict a second set of images from a first one, and match the predictions with the labels of the second.

    Args:
        features, labels: (N, D) float and (N,) int in [0, K) of the first set.
        others, other_labels: (M, D) float and (M,) int in [0, K) of the second.

    Raises:
        DataError: There are fewer than two classes, or lengths differ.

    Example:
        >>> rows, labels = np.repeat(np.eye(3), 20, axis=0), np.repeat(np.arange(3), 20)
        >>> compare_label_maps(rows, labels, rows, (labels + 1) % 3).moved
        (0, 1, 2)
    """
    rows, known = _checked(features, labels)
    new, given = np.asarray(others, dtype=np.float64), np.asarray(other_labels, dtype=np.int64)
    if len(new) != len(given):
        raise DataError(f"Expected as many labels as images, got {len(given)} for {len(new)}.")
    count = int(max(known.max(), given.max())) + 1
    targets = np.eye(count)[known]
    scores = _hat(new, rows) @ (targets - targets.mean(axis=0)) + targets.mean(axis=0)
    counts = np.zeros((count, count))
    np.add.at(counts, (given, scores.argmax(axis=1)), 1)
    from scipy.optimize import linear_sum_assignment  # here: importing transferkit stays light

    matched = linear_sum_assignment(-counts)[1]
    moved = tuple(int(one) for one in np.flatnonzero(matched != np.arange(count)) if counts[one].any())
    plain = sum(counts[one, one] for one in moved)
    exchanged = sum(counts[one, matched[one]] for one in moved)
    total = max(len(given), 1)
    return LabelMap(
        accuracy=float(np.trace(counts) / total),
        best=float(counts[np.arange(count), matched].sum() / total),
        z=float((exchanged - plain) / np.sqrt(max(exchanged + plain, 1))),
        moved=moved,
    )


def _checked(features: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    rows, classes = np.asarray(features, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if rows.ndim != 2 or len(rows) != len(classes):
        raise DataError(f"Expected (N, D) features and (N,) labels, got shapes {rows.shape} and {classes.shape}.")
    if len(np.unique(classes)) < 2:
        raise DataError("Labels of two classes or more are needed.")
    return rows, classes


def _hat(new: npt.NDArray[np.float64], rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(M, N) weights of the N images' targets in the ridge predictions for M images."""
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    scale[scale < 1e-6 * max(float(scale.max()), FLOOR)] = np.inf
    known, asked = (rows - mean) / scale, (new - mean) / scale
    gram = known @ known.T
    gram[np.diag_indices_from(gram)] += PENALTY * max(float(np.trace(gram)) / len(gram), FLOOR)
    return np.asarray(np.linalg.solve(gram, known @ asked.T).T, dtype=np.float64)
