"""Classes without a single image, from their attributes: a head with a row for each, on all stages joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import DataError
from transferkit.core.timing import timed
from transferkit.measure import fitting_threads, stratified_sample
from transferkit.measure.attributes import AttributeSelection, fit_attributes, select_attribute_model
from transferkit.measure.ridge import Coordinates, principal_coordinates
from transferkit.measure.seen_unseen import SeenUnseen
from transferkit.nn import TransferModel
from transferkit.records import JOINED, Choice, Folds, ZeroShotRecord, ZeroShotScore
from transferkit.scarce.attribute_table import FEWEST_ATTRIBUTES, AttributeTable, match_classes
from transferkit.workflow.session import Session

__all__ = ["Described", "fit_zero_shot"]

MOST_IMAGES = 8192
"""Images that attributes are fitted to, a stratified sample of more: accuracy is limited by the number of classes."""


@dataclass(frozen=True)
class Described:
    """A model that knows its classes by a description, and what is known of it.

    Args:
        model: In evaluation mode, on the CPU; its classes are those with images, then those without.
        choice: What it reads, with sentences for the report.
        accuracy: On labelled images that nothing was fitted to, of classes with images, in [0, 1].
        images: How many they are.
        record: How good it is on classes turned unseen; None if that was not measured.
    """

    model: TransferModel
    choice: Choice
    accuracy: float
    images: int
    record: ZeroShotRecord | None = None


def fit_zero_shot(session: Session, table: AttributeTable, *, method: str = "auto") -> Described:
    """A classifier over all classes of a table, from images of some of them.

    Args:
        session: Backbone, images of the seen classes, and what the frozen pass measured.
        table: Attributes of the seen classes, and of others.
        method: "auto", "eszsl" or "dap".

    Raises:
        DataError: The table does not fit the classes, or there are too few of them.
    """
    ordered, seen = match_classes(table, session.data.summary.classes)
    ordered, notes = _learnable(ordered, seen)
    with timed(session.seconds, "fit attributes"):
        coordinates, folds = _coordinates(session)
        with fitting_threads(len(folds)):
            chosen = select_attribute_model(
                coordinates.values,
                folds,
                ordered.values,
                seen=seen,
                method=method,
                seed=session.options.seed,
            )
            weight, bias = fit_attributes(coordinates.values, folds.labels, ordered.values, chosen.model)
    slope, offset = coordinates.to_raw(weight, bias)
    offset = offset - chosen.seen_penalty * (np.arange(len(bias)) < seen)
    model = _as_model(session, ordered.classes, slope / chosen.temperature, offset / chosen.temperature)
    found = _as_record(chosen, ordered, seen, len(folds))
    choice = Choice(strategy="linear_probe", stage=JOINED, mode="given", reasons=(*found.sentences, *notes))
    return Described(model, choice, found.calibrated.seen, found.images, found)


def _coordinates(session: Session) -> tuple[Coordinates, Folds]:
    """Principal coordinates of the training images, a sample of very many; and their folds."""
    measured, rows = session.measured, None
    labels = measured.labels
    if len(labels) > MOST_IMAGES:
        rows = stratified_sample(labels, MOST_IMAGES, np.random.default_rng(session.options.seed))
    features = measured.features(measured.train)
    found = principal_coordinates(features.chunks, len(labels), features.blocks, rows=rows)
    return found, measured.folds.take(found.rows)


def _learnable(table: AttributeTable, seen: int) -> tuple[AttributeTable, tuple[str, ...]]:
    """The attributes that differ between classes with images; and what is worth knowing of the others.

    Raises:
        DataError: There are too few.
    """
    varies = (table.values[:seen] != table.values[0]).any(axis=0)
    dropped = [name for name, kept in zip(table.attributes, varies, strict=True) if not kept]
    notes = []
    if table.constant:
        notes.append(f"Left out of the table, equal for all classes: {', '.join(table.constant)}.")
    if dropped:
        notes.append(f"Left out, equal for all classes with images, so that none shows it: {', '.join(dropped)}.")
    if varies.sum() < FEWEST_ATTRIBUTES:
        are = "is" if len(dropped) == 1 else "are"
        raise DataError(
            f"At least {FEWEST_ATTRIBUTES} attributes must differ between the classes with images, got "
            f"{int(varies.sum())}: {', '.join(dropped)} {are} the same for all of them. "
            "Add attributes, or images of classes that differ in these."
        )
    kept = tuple(name for name in table.attributes if name not in dropped)
    values = table.values[:, varies]
    notes += _same_rows(values, table.classes, seen)
    return replace(table, attributes=kept, values=values), tuple(notes)


def _same_rows(values: npt.NDArray[np.float64], classes: Sequence[str], seen: int) -> list[str]:
    """A sentence about classes without images that have the same attributes as another class."""
    rows: dict[bytes, list[str]] = {}
    for name, row in zip(classes, values, strict=True):
        rows.setdefault(row.tobytes(), []).append(name)
    unseen = set(classes[seen:])
    alike = [same for same in rows.values() if len(same) > 1 and unseen & set(same)]
    if not alike:
        return []
    listed = "; ".join(", ".join(same) for same in alike[:3])
    return [f"Classes with the same attributes, which cannot be told apart: {listed}."]


def _as_model(
    session: Session, classes: Sequence[str], weight: npt.NDArray[np.floating], bias: npt.NDArray[np.floating]
) -> TransferModel:
    stages = list(session.measured.table.blocks)
    model = TransferModel(session.backbone, stages=stages, pooling=session.options.pooling, classes=classes)
    with torch.no_grad():
        # Logits are defined up to a constant.
        model.linear.weight.copy_(torch.from_numpy(weight - weight.mean(axis=0)))
        model.linear.bias.copy_(torch.from_numpy(bias - bias.mean()))
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def _as_record(chosen: AttributeSelection, table: AttributeTable, seen: int, fitted: int) -> ZeroShotRecord:
    def score(found: SeenUnseen) -> ZeroShotScore:
        return ZeroShotScore(seen=min(found.seen, 1.0), unseen=min(found.unseen, 1.0))

    return ZeroShotRecord(
        seen=table.classes[:seen],
        unseen=table.classes[seen:],
        attributes=table.attributes,
        method=chosen.model.method,
        penalty=chosen.model.penalty,
        table_penalty=chosen.model.table_penalty,
        seen_penalty=chosen.seen_penalty / chosen.temperature,
        calibrated=score(chosen.calibrated),
        plain=score(chosen.plain),
        low=chosen.low,
        high=min(chosen.high, 1.0),
        among_unseen=min(chosen.among_unseen, 1.0),
        folds=chosen.folds,
        images=chosen.images,
        fitted=fitted,
    )
