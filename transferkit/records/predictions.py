"""A model's predictions for a set of images, as columns and as CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FailedImage", "Predictions"]

SEPARATOR = "|"
"""Between the classes of a set in CSV; JSON has lists."""


@dataclass(frozen=True)
class FailedImage:
    """An image that could not be read.

    Args:
        item: Its name.
        reason: Why, in a sentence.
        position: Its index among all images that were given, from 0.
    """

    item: str
    reason: str
    position: int


@dataclass(frozen=True)
class Predictions:
    """The class probabilities of some images.

    Args:
        items: N names.
        classes: K class names.
        probabilities: (N, K) float32, rows sum to 1.
        sets: (N, K) bool, the classes among which the true one is with a stated coverage, at least one for each image;
            None if no coverage was asked for.
        failures: Images that could not be read, in order; none of the N. Only `on_error="skip"` leaves any.
    """

    items: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]
    failures: tuple[FailedImage, ...] = ()
    sets: npt.NDArray[np.bool_] | None = None

    @property
    def labels(self) -> list[str]:
        """The most probable class of each image."""
        return [self.classes[index] for index in self.probabilities.argmax(axis=1)]

    @property
    def confidences(self) -> npt.NDArray[np.float32]:
        """(N,) probability of that class, in [1 / K, 1]."""
        confidences: npt.NDArray[np.float32] = self.probabilities.max(axis=1)
        return confidences

    @property
    def label_sets(self) -> list[tuple[str, ...]]:
        """The classes in each image's set, the most probable first; empty if there are no sets."""
        if self.sets is None:
            return []
        order = np.argsort(-self.probabilities, axis=1, kind="stable")
        return [
            tuple(self.classes[index] for index in ranked if chosen[index])
            for ranked, chosen in zip(order, self.sets, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def to_csv(self) -> str:
        """A header, then item, label, confidence and one column per class.

        With sets, a column `set` follows the confidence, its classes separated by `SEPARATOR`. A last column, error, if
        any image failed.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        reasons = ["error"] if self.failures else []
        sets, head = iter(self.label_sets), ["set"] if self.sets is not None else []
        writer.writerow(["item", "label", "confidence", *head, *(f"p({name})" for name in self.classes), *reasons])
        for row in self._rows():
            if isinstance(row, FailedImage):
                writer.writerow([row.item, "", "", *("" for _ in head), *("" for _ in self.classes), row.reason])
                continue
            item, label, probabilities = row
            chosen = [SEPARATOR.join(next(sets)) for _ in head]
            figures = [f"{probabilities.max():.6f}", *chosen, *(f"{value:.6f}" for value in probabilities)]
            writer.writerow([item, label, *figures, *("" for _ in reasons)])
        return text.getvalue()

    def to_json(self) -> str:
        """A list with one object per image; for an image that failed, its item and error."""
        rows: list[dict[str, Any]] = []
        sets = iter(self.label_sets)
        for row in self._rows():
            if isinstance(row, FailedImage):
                rows.append({"item": row.item, "error": row.reason})
                continue
            item, label, probabilities = row
            named = {name: round(float(p), 6) for name, p in zip(self.classes, probabilities, strict=True)}
            confidence = round(float(probabilities.max()), 6)
            chosen = {} if self.sets is None else {"set": list(next(sets))}
            rows.append({"item": item, "label": label, "confidence": confidence, **chosen, "probabilities": named})
        return json.dumps(rows, indent=1, ensure_ascii=False)

    def _rows(self) -> Iterator[FailedImage | tuple[str, str, npt.NDArray[np.float32]]]:
        """Predictions and failures in the order in which the images were given."""
        predicted = zip(self.items, self.labels, self.probabilities, strict=True)
        failed = {failure.position: failure for failure in self.failures}
        for position in range(len(self) + len(failed)):
            yield failed[position] if position in failed else next(predicted)
