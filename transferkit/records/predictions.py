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

from transferkit.records._checks import require
from transferkit.records.targets import format_target, join_labels

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
        task: "single_label"; "multi_label": classes are labels, each with a probability of its own; "regression":
            classes are the names of numbers, and what is called probabilities are these numbers.
        thresholds: K probabilities from which on each label is given; empty for 0.5.
    """

    items: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]
    failures: tuple[FailedImage, ...] = ()
    sets: npt.NDArray[np.bool_] | None = None
    task: str = "single_label"
    thresholds: tuple[float, ...] = ()

    @property
    def labels(self) -> list[str]:
        """The most probable class of each image; its labels, separated by ; ("" for none); its numbers as text."""
        if self.task == "multi_label":
            return [join_labels(self.classes, row) for row in self.given]
        if self.task == "regression":
            return [format_target(self.classes, row) for row in self.values]
        return [self.classes[index] for index in self.probabilities.argmax(axis=1)]

    @property
    def given(self) -> npt.NDArray[np.bool_]:
        """(N, K) bool, whether each label is given to each image: its probability is at least its threshold.

        Raises:
            OptionError: Images have not several labels.
        """
        require(self.task == "multi_label", f"given is of several labels per image, and the task is {self.task}.")
        given: npt.NDArray[np.bool_] = self.probabilities >= np.asarray(self.thresholds or (0.5,) * len(self.classes))
        return given

    @property
    def label_sets(self) -> list[tuple[str, ...]]:
        """The labels of each image, in label order.

        Raises:
            OptionError: Images have not several labels.
        """
        return [tuple(name for name, on in zip(self.classes, row, strict=True) if on) for row in self.given]

    @property
    def values(self) -> npt.NDArray[np.float32]:
        """(N, K) predicted numbers, in their own units.

        Raises:
            OptionError: Images have classes or labels.
        """
        require(self.task == "regression", f"values are predicted numbers, and the task is {self.task}.")
        return self.probabilities

    @property
    def confidences(self) -> npt.NDArray[np.float32]:
        """(N,) probability of that class, in [1 / K, 1]; of labels, that of the least sure decision; NaN for
        numbers."""
        if self.task == "regression":
            return np.full(len(self), np.nan, dtype=np.float32)
        if self.task == "multi_label":
            least: npt.NDArray[np.float32] = np.where(self.given, self.probabilities, 1 - self.probabilities).min(
                axis=1
            )
            return least
        confidences: npt.NDArray[np.float32] = self.probabilities.max(axis=1)
        return confidences

    @property
    def set_names(self) -> list[tuple[str, ...]]:
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

        Several labels are separated by ; in the column label, without confidence. Numbers have a column each.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        reasons = ["error"] if self.failures else []
        if self.task != "single_label":
            self._write_targets(writer, reasons)
            return text.getvalue()
        sets, head = iter(self.set_names), ["set"] if self.sets is not None else []
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
        sets = iter(self.set_names)
        for row in self._rows():
            if isinstance(row, FailedImage):
                rows.append({"item": row.item, "error": row.reason})
                continue
            item, label, probabilities = row
            if self.task != "single_label":
                rows.append(self._as_object(item, label, probabilities))
                continue
            named = {name: round(float(p), 6) for name, p in zip(self.classes, probabilities, strict=True)}
            confidence = round(float(probabilities.max()), 6)
            chosen = {} if self.sets is None else {"set": list(next(sets))}
            rows.append({"item": item, "label": label, "confidence": confidence, **chosen, "probabilities": named})
        return json.dumps(rows, indent=1, ensure_ascii=False)

    def _write_targets(self, writer: Any, reasons: list[str]) -> None:
        is_labels = self.task == "multi_label"
        columns = [f"p({name})" for name in self.classes] if is_labels else list(self.classes)
        writer.writerow(["item", *(["label"] if is_labels else []), *columns, *reasons])
        for row in self._rows():
            if isinstance(row, FailedImage):
                writer.writerow([row.item, *([""] if is_labels else []), *("" for _ in columns), row.reason])
                continue
            item, label, values = row
            figures = [f"{value:.6f}" if is_labels else f"{value:.7g}" for value in values]
            writer.writerow([item, *([label] if is_labels else []), *figures, *("" for _ in reasons)])

    def _as_object(self, item: str, label: str, values: npt.NDArray[np.float32]) -> dict[str, Any]:
        if self.task == "regression":
            return {"item": item, "values": {n: float(f"{v:.7g}") for n, v in zip(self.classes, values, strict=True)}}
        named = {name: round(float(p), 6) for name, p in zip(self.classes, values, strict=True)}
        thresholds = self.thresholds or (0.5,) * len(self.classes)
        given = [name for name, p, least in zip(self.classes, values, thresholds, strict=True) if p >= least]
        return {"item": item, "labels": given, "probabilities": named}

    def _rows(self) -> Iterator[FailedImage | tuple[str, str, npt.NDArray[np.float32]]]:
        """Predictions and failures in the order in which the images were given."""
        predicted = zip(self.items, self.labels, self.probabilities, strict=True)
        failed = {failure.position: failure for failure in self.failures}
        for position in range(len(self) + len(failed)):
            yield failed[position] if position in failed else next(predicted)
