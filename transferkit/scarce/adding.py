"""One more class for a finished run: features of old and new images, one more row, and what it costs the others."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from transferkit.core.errors import DataError, OptionError
from transferkit.core.paths import expand
from transferkit.data import Data, open_data
from transferkit.data.predictable import predictable_pixels
from transferkit.features import FeatureBank, choose_device
from transferkit.measure import assess
from transferkit.measure.curves import stratified_sample
from transferkit.measure.few_shot.new_class import fit_new_row
from transferkit.nn import Blend, Classifier, TransferModel, in_batches, replicas_of
from transferkit.records import AddedClass, AnyMetrics, DataSummary, Folds, HeldOut, RunRecord
from transferkit.result import Result
from transferkit.result.evaluation import check_classes, pick_mistakes, sketch
from transferkit.result.result import OPENING
from transferkit.workflow.measure import read_features

__all__ = ["add_class", "check_old_images", "checked_name", "extended_settings"]

Features = npt.NDArray[np.float32]

MOST_OLD = 1000
"""Training images that the row is fitted to: the cost grows with their square."""


def add_class(
    result: Result,
    name: str,
    images: Any,
    *,
    old_images: Any = None,
    cache: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: bool = True,
    command: str = "",
) -> Result:
    """As `transferkit.add_class`.

    Args:
        result, name, images, old_images, cache, device, seed, progress: As there.
        command: How to run this again; "" composes a call.
    """
    if result.task != "single_label":
        raise OptionError(f"A class is added to a run with one class per image, and this one has task={result.task}.")
    name = checked_name(result, name)
    if result.preprocessing.prepared:
        raise OptionError("The model takes tensors that were prepared elsewhere, so it cannot read images of a class.")
    members = _members(result.model)
    old = _open_old(result, old_images, cache=cache, progress=progress)
    new = _features_of_images(result.model, images, device=device)
    read = _Reader(members, old.data, FeatureBank(cache), device, progress)
    sample, held_back = _sample(result, old, seed)
    features, folds = read(sample), _folds_of(result, old.data, sample)
    weight, bias = _joined_head(members)
    row = fit_new_row(new, features, folds, weight, bias, old_logits=held_back, seed=seed)
    model = _extended(result.model, name, row.weight, row.bias)
    logits = features @ weight.T + bias if held_back is None else held_back
    added = AddedClass(
        name=name,
        images=len(new),
        old_images=len(sample),
        source="train" if old.is_own else "given",
        expected_recall=row.expected_recall,
        held_back=held_back is not None or not old.is_own,
        **_cost(logits, row.old_scores, folds.labels),
    )
    answers = _answers(result, old, read, _joined_head(_members(model)))
    record = _extended_record(result.record, added, model.classes, old, answers)
    quoted = command or f"transferkit.add_class(result, {name!r}, {str(images)!r})"
    return Result(model, replace(record, command=f"{quoted}  # after: {result.record.command}"))


def _cost(logits: npt.NDArray[Any], new: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> dict[str, float]:
    """Accuracy on the old classes without and with the new one, and the share that goes to it."""
    right, taken = logits.argmax(axis=1) == labels, new > logits.max(axis=1)
    return {"before": float(right.mean()), "after": float((right & ~taken).mean()), "lost": float(taken.mean())}


def _sample(result: Result, old: _OldImages, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32] | None]:
    """Indices of the images that the row is fitted to, and their held-back logits if the run kept them."""
    scores = result.held_back_scores
    if not old.is_own or scores is None or not len(scores) or len(np.unique(scores.labels)) < len(result.classes):
        return old.fitted(seed), None
    order = np.concatenate([old.data.indices("train"), old.data.indices("val")])
    chosen = np.arange(len(scores))
    if len(chosen) > MOST_OLD:
        chosen = stratified_sample(scores.labels, MOST_OLD, np.random.default_rng(seed))
    return order[scores.rows[chosen]], scores.logits[chosen]


def checked_name(result: Result, name: str) -> str:
    """The name of a class that the model does not have.

    Raises:
        OptionError: It is empty, or there is such a class.
    """
    text = str(name).strip()
    if not text:
        raise OptionError("The new class needs a name, got an empty one.")
    if text in result.classes:
        raise OptionError(f"The model knows the class {text!r} already. Give another name, or train again with adapt.")
    return text


@dataclass(frozen=True)
class _OldImages:
    """Images of the classes that the model knows.

    Args:
        data: They, opened.
        is_own: Whether they are the run's own, split as they were for it.
    """

    data: Data
    is_own: bool

    def fitted(self, seed: int) -> npt.NDArray[np.int64]:
        """Indices that the row is fitted to: of the run's own its training images, else all."""
        rows = self.data.indices("train")
        if len(rows) <= MOST_OLD:
            return rows
        return rows[stratified_sample(self.data.labels[rows], MOST_OLD, np.random.default_rng(seed))]


def _open_old(result: Result, given: Any, *, cache: Any, progress: bool) -> _OldImages:
    """The run's own training images, or those that are given.

    Raises:
        DataError: Neither is at hand.
    """
    settings = dict(result.record.settings)
    more: dict[str, Any] = {"cache": cache, "progress": progress}
    named = check_old_images(result, given)
    if given is not None:
        data = open_data(given, val=0.0, test=0.0, **more)
        check_classes(data, result.classes)
        return _OldImages(data, is_own=False)
    data = open_data(named, **{key: settings[key] for key in OPENING if key in settings}, **more)
    check_classes(data, result.classes)
    return _OldImages(data, is_own=sketch(data) == result.record.trained_on)


def check_old_images(result: Result, given: Any) -> Any:
    """Where images of the other classes are.

    Args:
        result: A finished run.
        given: Images that are given instead of its own.

    Raises:
        DataError: There are none.
    """
    if given is not None:
        return given
    named = result.record.settings.get("data")
    if not isinstance(named, (str, Path)) or not (str(named).startswith("builtin/") or expand(named).exists()):
        where = f"{named} is not there any more" if isinstance(named, (str, Path)) else "the run does not name them"
        raise DataError(
            f"Adding a class needs images of the other classes, and the run's own are not at hand: {where}. Give some "
            "of each class with old_images=DATA (old=DIR on the command line): a folder for each class."
        )
    return named


def _members(model: Classifier) -> tuple[TransferModel, ...]:
    return model.parts if isinstance(model, Blend) else (model,)


def _joined_head(members: Sequence[TransferModel]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """(K, D) and (K,) of all members' features side by side: their logits are added."""
    weight = torch.cat([member.linear.weight.detach().cpu() for member in members], dim=1)
    bias = torch.stack([member.linear.bias.detach().cpu() for member in members]).sum(dim=0)
    return weight.double().numpy(), bias.double().numpy()


def _folds_of(result: Result, data: Data, rows: npt.NDArray[np.int64]) -> Folds:
    """The images' folds, labels as the model numbers them."""
    number = np.array([result.classes.index(name) for name in data.summary.classes], dtype=np.int64)
    folds = data.folds.take(rows)
    return Folds(number[folds.labels], folds.groups, folds.copies)


class _Reader:
    """Features of images that the model's classifier reads, averaged over its views, from the feature bank."""

    def __init__(
        self, members: Sequence[TransferModel], data: Data, bank: FeatureBank, device: str, progress: bool
    ) -> None:
        self._members, self._data, self._bank = members, data, bank
        self._device, self._progress = device, progress

    def __call__(self, rows: npt.NDArray[np.int64]) -> Features:
        return np.concatenate([self._read(member, rows) for member in self._members], axis=1)

    def _read(self, member: TransferModel, rows: npt.NDArray[np.int64]) -> Features:
        done = read_features(
            member.backbone,
            self._data,
            bank=self._bank,
            pooling=member.pooling,
            device=self._device,
            preprocessing=member.preprocessing,
            among=rows,
            progress=self._progress,
        )
        return done.table.load(list(member.stages))


def _features_of_images(model: Classifier, images: Any, *, device: str) -> Features:
    """(n, D) of pictures that are no part of any data set."""
    named = predictable_pixels(images, model.preprocessing)

    def pictures() -> Iterator[npt.NDArray[Any]]:
        for _, pixels in named:
            if isinstance(pixels, DataError):
                raise pixels
            yield pixels

    target = choose_device(device)
    found = []
    with replicas_of(model).on(target) as placed, torch.no_grad():
        for batch in in_batches(pictures()):
            ready = placed.normalise(torch.from_numpy(batch).to(target))
            views = ready if ready.ndim == 5 else ready[:, None]
            flat = torch.cat([member.features(views.flatten(0, 1)) for member in _members(placed)], dim=1)
            found.append(flat.reshape(len(views), views.shape[1], -1).mean(dim=1).cpu().numpy())
    if not found:
        raise DataError("There is no image of the new class. Give one or more with images=PATH.")
    return np.concatenate(found)


def _extended(model: Classifier, name: str, weight: npt.NDArray[np.float64], bias: float) -> Classifier:
    """A copy of the model with one more class."""
    longer = copy.deepcopy(model)
    start = 0
    for number, member in enumerate(_members(longer)):
        plain = member.linear
        grown = nn.Linear(plain.in_features, plain.out_features + 1, dtype=plain.weight.dtype)
        row = torch.from_numpy(weight[start : start + plain.in_features]).to(plain.weight.dtype)
        with torch.no_grad():
            grown.weight.copy_(torch.cat([plain.weight, row[None].to(plain.weight.device)]))
            extra = torch.tensor([0.0 if number else bias], dtype=plain.bias.dtype, device=plain.bias.device)
            grown.bias.copy_(torch.cat([plain.bias, extra]))
        member.classifier, member.classes = grown, (*member.classes, name)
        start += plain.in_features
    if isinstance(longer, Blend):
        longer.classes = _members(longer)[0].classes
    return longer.eval()


def _answers(
    result: Result, old: _OldImages, read: _Reader, head: tuple[npt.NDArray[Any], npt.NDArray[Any]]
) -> dict[str, HeldOut]:
    """Split -> probabilities on the run's own held-out images, of the splits that it has been scored on."""
    found = {}
    for split in result.metrics if old.is_own else ():
        rows = old.data.indices(split)
        logits = read(rows) @ head[0].T + head[1]
        soft = np.exp(logits - logits.max(axis=1, keepdims=True))
        found[split] = HeldOut(
            split=split,
            labels=_folds_of(result, old.data, rows).labels,
            probabilities=(soft / soft.sum(axis=1, keepdims=True)).astype(np.float32),
            items=tuple(old.data.items[int(row)] for row in rows),
        )
    return found


def extended_settings(record: RunRecord, name: str) -> dict[str, Any]:
    """The settings of the run that a class of this name makes of `record`'s."""
    return {**record.settings, "added_classes": [*(one.name for one in record.added), name]}


def _extended_record(
    record: RunRecord, added: AddedClass, classes: tuple[str, ...], old: _OldImages, held: dict[str, HeldOut]
) -> RunRecord:
    """The record of the larger model: what was true of the smaller one only is left out."""
    metrics: dict[str, AnyMetrics] = {
        split: assess(found, old.data.folds.take(old.data.indices(split))) for split, found in held.items()
    }
    shown = held.get("test") or held.get("val")
    decision = replace(record.decision, reasons=(*record.decision.reasons, added.sentence))
    return replace(
        record,
        evidence=replace(record.evidence, data=_longer(record.evidence.data, added)),
        decision=decision,
        metrics=metrics,
        held_out=shown,
        mistakes=pick_mistakes(old.data, shown, classes),
        held_back_accuracy=None,
        settings=extended_settings(record, added.name),
        added=(*record.added, added),
    )


def _longer(data: DataSummary, added: AddedClass) -> DataSummary:
    counts = {split: (*each, added.images if split == "train" else 0) for split, each in data.counts.items()}
    groups = (*data.train_groups, added.images) if data.train_groups else ()
    return replace(data, classes=(*data.classes, added.name), counts=counts, train_groups=groups)
