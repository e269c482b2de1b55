"""Images that are probably labelled wrongly, from scores of classifiers that had not seen them.

A closed-form probe gives every image the scores of a fit without it, at no further cost; an image whose held-back
score is higher for another class than for its own is suspicious, the more so the larger the difference. Scores of a
fit to the image
itself are worse evidence: a flexible fit has learnt the wrong label too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError
from transferkit.measure.quality import fit_temperature

__all__ = ["LabelErrors", "find_label_errors"]


@dataclass(frozen=True)
class LabelErrors:
    """How suspicious every label is.

    Args:
        given: (N,) in [0, 1], the held-back probability of the image's own class.
        best: (N,) in [0, 1], that of the most probable other class.
        suggested: (N,) int, that other class.
        likely: (N,) bool: the other class is more probable than that class usually is for its own images, and more
            probable
            than the image's own.
    """

    given: npt.NDArray[np.float64]
    best: npt.NDArray[np.float64]
    suggested: npt.NDArray[np.int64]
    likely: npt.NDArray[np.bool_]

    @property
    def suspicion(self) -> npt.NDArray[np.float64]:
        """(N,) in [-1, 1], the difference of the two."""
        return self.best - self.given

    @property
    def order(self) -> npt.NDArray[np.int64]:
        """(N,) indices, most suspicious first."""
        return np.argsort(-self.suspicion, kind="stable")

    @property
    def share(self) -> float:
        """Estimated share of wrong labels, in [0, 1]."""
        return float(self.likely.mean())


def find_label_errors(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> LabelErrors:
    """Compare each label with the scores of a classifier that was fitted without its image.

    Args:
        scores: (N, K) held-back scores; only their differences within a row matter.
        labels: (N,) int in [0, K), as given.

    Raises:
        DataError: There are fewer than two classes, or a label is outside [0, K).

    References:
        Northcutt, Jiang and Chuang, JAIR 2021 (confident learning), for `likely`: thresholds per class are its mean
        self-confidence. Deviation: exact leave-out scores instead of five folds, calibrated by one temperature.

    Example:
        >>> scores = np.array([[2.0, 0.0], [1.9, 0.1], [0.1, 1.8], [0.0, 2.1], [0.1, 2.0]])
        >>> found = find_label_errors(scores, np.array([0, 0, 1, 1, 0]))
        >>> int(found.order[0]), found.likely.tolist()
        (4, [False, False, False, False, True])
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or scores.shape[1] < 2 or not len(scores):
        raise DataError("Label errors can be found among two classes or more, from (N, K) scores of one image or more.")
    if not np.isfinite(scores).all() or labels.dtype.kind not in "iu":
        raise DataError("Scores must be finite, and labels integers.")
    images, classes = scores.shape
    scores = (scores - scores.mean()) / max(float(scores.std()), np.finfo(np.float32).tiny)  # units do not matter
    if len(labels) != images or not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"Expected {images} labels in [0, {classes}), got {len(labels)} from {labels.min()} to {labels.max()}."
        )
    probabilities = _softmax(scores / fit_temperature(scores, labels))
    rows = np.arange(images)
    own = probabilities[rows, labels]
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    suggested = others.argmax(axis=1)
    best = others[rows, suggested]
    counts = np.bincount(labels, minlength=classes)
    usual = np.bincount(labels, weights=own, minlength=classes) / np.maximum(counts, 1)
    likely = (best > own) & (best >= usual[suggested]) & (counts[suggested] > 0)
    return LabelErrors(given=own, best=best, suggested=suggested, likely=likely)


def _softmax(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    raised = np.exp(scores - scores.max(axis=1, keepdims=True), dtype=np.float64)
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))
