"""The evaluation of a finished model on images that it was not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, unknown_name
from transferkit.data import Data, open_data
from transferkit.data.prepared import check_prepared
from transferkit.records import LARGE, AnyMetrics, HeldOut, Mistake, Picture, PixelClassifier, ReviewedLabel, Targets
from transferkit.result.prediction import probabilities_of, task_of
from transferkit.result.worst_images import pick_extremes, pick_worst

__all__ = [
    "Evaluation",
    "check_classes",
    "check_task",
    "choose_images",
    "evaluate",
    "pick_mistakes",
    "pick_samples",
    "predict_split",
    "sketch",
    "target_opening",
    "with_pictures",
]

SPLITS = ("test", "val")

SKETCH = 256
"""Digests of training images that are kept. The least digests are a random sample of the images: if a share s of the
training images is among others, the chance that none of the sample is among them is (1 - s)^256, 0.5 % for s = 2 %."""

SAMPLES_SHOWN = 120
"""Training pictures in the report, all classes together: keeps a report near one megabyte."""

SAMPLES_PER_CLASS = 6

MISTAKES_SHOWN = 24


class Evaluation:
    """Metrics of a model on a split, and what they were computed from.

    Args:
        metrics: Of the model on the split.
        answers: Its probabilities, beside the labels.
        data: The images of the split, and of the other splits.
        is_own: Whether these are the images of the run that made the model.
    """

    def __init__(self, metrics: AnyMetrics, answers: HeldOut, data: Data, *, is_own: bool) -> None:
        self.metrics = metrics
        self.answers = answers
        self.data = data
        self.is_own = is_own


def evaluate(
    classifier: PixelClassifier,
    data: Any,
    *,
    split: str,
    trained_on: tuple[str, ...],
    opening: dict[str, Any],
    own_opening: dict[str, Any],
) -> Evaluation:
    """Evaluate a model on a split, or on all images where there are no splits.

    Args:
        classifier: The model, on the device where it is to run.
        data: Anything that `open_data` takes.
        split: "test" or "val".
        trained_on: `sketch` of the images that the model was trained on.
        opening: Options of `open_data` for images of any origin.
        own_opening: Options that the model's own images were opened with; empty if unknown.

    Raises:
        DataError: There is no such split, the model was trained on some of the images, or one has a class that the
            model does not have.
    """
    from transferkit.measure import assess

    if split not in SPLITS:
        raise DataError(unknown_name("split", split, SPLITS))
    opened = open_data(data, **(own_opening or {**opening, "val": 0.0, "test": 0.0}), trains=False)
    is_own = bool(trained_on) and sketch(opened) == trained_on
    if own_opening and not is_own:  # what is drawn now is not what was drawn then
        opened = open_data(data, **{**own_opening, "val": 0.0, "test": 0.0}, trains=False)
    check_prepared(classifier.preprocessing, preprocessed=opened.normalised)
    # Refuses pictures where tensors are needed, and tensors of another shape.
    opened.adapt_preprocessing(classifier.preprocessing)
    check_task(opened, task_of(classifier))
    check_classes(opened, classifier.classes)
    indices = choose_images(opened, split)
    _check_unseen(opened, indices, trained_on)
    answers = predict_split(classifier, opened, indices, split=split)
    return Evaluation(assess(answers, opened.folds.take(indices)), answers, opened, is_own=is_own)


def choose_images(data: Data, split: str) -> npt.NDArray[np.int64]:
    """Indices of the split; of all images if there are no splits.

    Raises:
        DataError: There are other splits.
    """
    there = [name for name in ("train", *SPLITS) if len(data.indices(name))]
    if split in there:
        return data.indices(split)
    if there == ["train"]:
        return data.indices("train")
    raise DataError(f"{data.summary.origin} has no {split} split, but {' and '.join(there)}. Name one: split=val.")


def _check_unseen(data: Data, indices: npt.NDArray[np.int64], trained_on: tuple[str, ...]) -> None:
    seen = set(trained_on)
    known = [data.items[index] for index in indices if _hex(data.content_ids[index]) in seen]
    if known:
        raise DataError(
            f"The model was trained on some of these images, such as {known[0]}, so its accuracy on them is no "
            "estimate for new images. Pass images that it was not trained on: transferkit evaluate run=DIR "
            "data.root=OTHER."
        )


def target_opening(task: str, settings: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """Options that open other images with the labels or numbers that a model predicts; empty for one class per image.

    Args:
        task: Of the model.
        settings: Of its run.
        data: The other images.
    """
    if task == "single_label":
        return {}
    columns = settings.get("columns") or {}
    named = {name: columns[name] for name in ("path", "label") if name in columns}
    return {"task": task, **({"columns": named} if named and isinstance(data, (str, Path)) else {})}


def check_task(data: Data, task: str) -> None:
    """Raise unless the images have what a model of that task predicts.

    Raises:
        DataError: They have not.
    """
    if data.summary.task != task:
        raise DataError(
            f"The model was trained with task={task}, and these images have task={data.summary.task}. Pass images with "
            "the same labels or numbers as in training."
        )


def check_classes(data: Data, known: tuple[str, ...]) -> None:
    """Raise unless a model that knows these classes knows all of the images'.

    Raises:
        DataError: It does not.
    """
    if unknown := [name for name in data.summary.classes if name not in known]:
        raise DataError(
            f"{unknown_name('class', unknown[0], known)} The model tells apart {len(known)} classes, and "
            f"{len(unknown)} of these images' classes {'are' if len(unknown) > 1 else 'is'} none of them. Remove "
            "their images, or name them as in training."
        )


def predict_split(classifier: PixelClassifier, data: Data, indices: npt.NDArray[np.int64], *, split: str) -> HeldOut:
    """The classifier's probabilities for these images, beside their labels; all their classes are the classifier's."""
    pixels = (data.pixels(int(index), classifier.preprocessing) for index in indices)
    if data.targets is not None:
        return HeldOut(
            split=split,
            labels=data.labels[indices],
            probabilities=probabilities_of(classifier, pixels),
            items=tuple(data.items[index] for index in indices),
            targets=_in_order(data.targets.take(indices), classifier.classes),
            thresholds=getattr(classifier, "thresholds", ()),
        )
    label_of = {name: label for label, name in enumerate(classifier.classes)}
    labels = np.array([label_of[name] for name in data.summary.classes], dtype=np.int64)
    return HeldOut(
        split=split,
        labels=labels[data.labels[indices]],
        probabilities=probabilities_of(classifier, pixels),
        items=tuple(data.items[index] for index in indices),
    )


def _in_order(targets: Targets, names: tuple[str, ...]) -> Targets:
    """Targets in the order of a model's outputs; a label that no image has is 0 on all.

    Raises:
        DataError: A number is missing.
    """
    missing = [name for name in names if name not in targets.names]
    if missing and not targets.is_labels:
        raise DataError(f"The images have no {missing[0]!r}, which the model predicts. Add that column.")
    values = np.zeros((len(targets), len(names)))
    for at, name in enumerate(names):
        if name in targets.names:
            values[:, at] = targets.values[:, targets.names.index(name)]
    return Targets(task=targets.task, names=names, values=values)


def sketch(data: Data) -> tuple[str, ...]:
    """The least content digests of the training images: enough to tell whether other images include some of them."""
    return tuple(sorted({_hex(content) for content in data.content_ids[data.indices("train")]})[:SKETCH])


def _hex(content: bytes) -> str:
    return bytes(content).decode("ascii")


def pick_samples(data: Data, seed: int) -> dict[str, tuple[Picture, ...]]:
    """A few training pictures of each class, at most `SAMPLES_SHOWN` in all."""
    rng = np.random.default_rng(seed)
    train = data.indices("train")
    classes = data.summary.classes
    if data.targets is not None and not data.targets.is_labels:
        return pick_extremes(data, data.targets, train, SAMPLES_PER_CLASS)
    each = max(1, min(SAMPLES_PER_CLASS, SAMPLES_SHOWN // len(classes)))
    shown = {}
    for label, name in list(enumerate(classes))[:SAMPLES_SHOWN]:
        members = _members(data, train, label)
        chosen = rng.permutation(members)[:each]
        shown[name] = tuple(data.thumbnail(int(index)) for index in chosen)
    return shown


def _members(data: Data, train: npt.NDArray[np.int64], label: int) -> npt.NDArray[np.int64]:
    """Training images of a class, or with a label; of a number all."""
    if data.targets is None:
        return train[data.labels[train] == label]
    return train if not data.targets.is_labels else train[data.targets.values[train, label] > 0]


def pick_mistakes(data: Data, answers: HeldOut | None, classes: tuple[str, ...]) -> tuple[Mistake, ...]:
    """The most confident mistakes.

    Args:
        data: Has the pictures.
        answers: On one of its splits, in order, or on all its images.
        classes: Names of the K classes.
    """
    if answers is None:
        return ()
    of_split = data.indices(answers.split)
    indices = of_split if len(of_split) == len(answers.labels) else np.arange(len(data))
    if answers.targets is not None:
        return pick_worst(data, answers, answers.targets, indices, limit=MISTAKES_SHOWN)
    predicted = answers.probabilities.argmax(axis=1)
    confidence = answers.probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != answers.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES_SHOWN]
    return tuple(
        Mistake(
            picture=data.thumbnail(int(indices[row])),
            true=classes[answers.labels[row]],
            predicted=classes[predicted[row]],
            confidence=float(confidence[row]),
        )
        for row in worst
    )


def with_pictures(data: Data, rows: Sequence[ReviewedLabel]) -> tuple[ReviewedLabel, ...]:
    """The same rows with the pictures that a file of results does not hold.

    Args:
        data: The images of the run.
        rows: Of its label errors.
    """
    places = {item: index for index, item in enumerate(data.items)} if rows else {}
    return tuple(
        replace(row, picture=data.thumbnail(places[row.item], LARGE)) if row.item in places else row for row in rows
    )
