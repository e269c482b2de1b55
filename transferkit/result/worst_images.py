"""The held-out images whose labels or numbers are predicted worst, with pictures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from transferkit.data import Data
from transferkit.records import HeldOut, Mistake, Picture, Targets, format_target, join_labels

__all__ = ["pick_extremes", "pick_worst"]

NUMBERS_SHOWN = 8
"""Numbers whose least and greatest values are shown."""


def pick_worst(
    data: Data, answers: HeldOut, targets: Targets, indices: npt.NDArray[np.int64], *, limit: int
) -> tuple[Mistake, ...]:
    """The surest wrong decisions about labels, or the largest errors of numbers, worst first, one per image.

    Args:
        data: Has the pictures.
        answers: On N of its images.
        targets: The truth.
        indices: (N,) where these images are in the data.
        limit: Pictures at most.
    """
    predicted = answers.probabilities.astype(np.float64)
    return (_worst_labels if targets.is_labels else _worst_numbers)(data, answers, targets, predicted, indices, limit)


def _worst_labels(
    data: Data,
    answers: HeldOut,
    targets: Targets,
    predicted: npt.NDArray[np.float64],
    indices: npt.NDArray[np.int64],
    limit: int,
) -> tuple[Mistake, ...]:
    given = predicted >= np.asarray(answers.thresholds or (0.5,) * len(targets.names))
    truth = targets.values > 0
    sure = np.where(given == truth, -1.0, np.abs(predicted - targets.values))
    worst = np.argsort(-sure.max(axis=1), kind="stable")[:limit]
    return tuple(
        Mistake(
            picture=data.thumbnail(int(indices[row])),
            true=targets.text(row) or "no label",
            predicted=join_labels(targets.names, given[row]) or "no label",
            confidence=float(np.clip(sure[row].max(), 0, 1)),
            error=f"{'' if given[row, at] else 'no '}{targets.names[at]}",
        )
        for row in worst
        if sure[row, at := int(sure[row].argmax())] >= 0
    )


def _worst_numbers(
    data: Data,
    answers: HeldOut,
    targets: Targets,
    predicted: npt.NDArray[np.float64],
    indices: npt.NDArray[np.int64],
    limit: int,
) -> tuple[Mistake, ...]:
    error = predicted - targets.values
    spread = np.maximum(targets.values.std(axis=0), np.finfo(np.float64).tiny)
    worst = np.argsort(-np.abs(error / spread).max(axis=1), kind="stable")[:limit]
    return tuple(
        Mistake(
            picture=data.thumbnail(int(indices[row])),
            true=targets.text(row),
            predicted=format_target(targets.names, predicted[row]),
            confidence=0.0,
            error=_said(targets, error[row], spread),
        )
        for row in worst
    )


def _said(targets: Targets, error: npt.NDArray[np.float64], spread: npt.NDArray[np.float64]) -> str:
    at = int(np.abs(error / spread).argmax())
    name = f"{targets.names[at]} " if len(targets.names) > 1 else ""
    return f"{name}{error[at]:+.4g}"


def pick_extremes(
    data: Data, targets: Targets, train: npt.NDArray[np.int64], each: int
) -> dict[str, tuple[Picture, ...]]:
    """Training pictures with the least and the greatest values of each number.

    Args:
        data: Has the pictures.
        targets: Of all its images.
        train: Indices of the training images.
        each: Pictures at either end, at most.
    """
    shown = {}
    for at, name in list(enumerate(targets.names))[:NUMBERS_SHOWN]:
        order = train[np.argsort(targets.values[train, at], kind="stable")]
        ends = {"least": order[:each], "greatest": order[::-1][:each]}
        for word, rows in ends.items():
            shown[f"{name}, {word}"] = tuple(data.thumbnail(int(index)) for index in rows)
    return shown
