"""A session -> its labels, compared with the scores of a probe that had not seen the images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError
from transferkit.core.timing import timed
from transferkit.data import Data
from transferkit.measure import LabelErrors, find_label_errors
from transferkit.probe.heads import HeadFit, fit_heads
from transferkit.records import JOINED, LARGE, LabelReview, ReviewedLabel
from transferkit.strategies import STRATEGIES, PlanSettings
from transferkit.workflow.session import Session, refuse_targets

__all__ = ["likely_label_errors", "review_session"]

PICTURES = 120
"""Rows with a thumbnail: a page of one to two megabytes."""

SHOWN = 24
"""Likely label errors in the report of a run."""

COMPARED_AT_MOST = 5_000
"""Training images up to which a run looks for label errors: a second, with five thousand features."""


@dataclass(frozen=True)
class _Compared:
    """The M images that could be compared, and how suspicious their labels are."""

    indices: npt.NDArray[np.int64]
    errors: LabelErrors


def review_session(session: Session, *, limit: int, command: str = "") -> LabelReview:
    """The labels that a probe contradicts, worst first: training images while held back, validation images as they are.

    The probe is the ridge classifier on all stages joined; its held-back scores are exact, and related images are held
    back together.

    Args:
        session: Backbone, images, and what the frozen pass measured.
        limit: Rows to list at most, >= 1.
        command: What to quote as the way to do this again.

    Raises:
        DataError: No training image can be held back without its class.
    """
    data, train = session.data, session.measured.train
    refuse_targets(data, "doctor labels")
    with timed(session.seconds, "label errors"):
        compared = _compare(session)
        errors = compared.errors
        doubtful = errors.order[: int((errors.suspicion > 0).sum())]
        rows = tuple(_rows(data, compared, doubtful[:limit]))
    listed = {row.item for row in rows}
    return LabelReview(
        data=data.summary,
        backbone=session.backbone.spec.name,
        images=len(compared.indices),
        left_out=len(train) + len(data.indices("val")) - len(compared.indices),
        doubtful=len(doubtful),
        likely_errors=int(errors.likely.sum()),
        rows=rows,
        corrected=tuple(one for one in data.corrected if one.item not in listed),
        command=command,
        seconds=sum(session.seconds.values()),
    )


def likely_label_errors(session: Session) -> tuple[ReviewedLabel, ...]:
    """The worst likely label errors, with thumbnails, for the report of a run.

    Args:
        session: As for `review_session`.

    Returns:
        At most 24; none where images are too many to be compared in passing, or cannot be held back.
    """
    if len(session.measured.train) > COMPARED_AT_MOST or session.data.targets is not None:
        return ()
    with timed(session.seconds, "label errors"):
        try:
            compared = _compare(session)
        except DataError:  # `doctor labels` says why
            return ()
        errors = compared.errors
        likely = errors.order[errors.likely[errors.order]]
        return tuple(_rows(session.data, compared, likely[:SHOWN]))


def _compare(session: Session) -> _Compared:
    data, measured = session.data, session.measured
    head = _fit(session)
    judged = head.counting > 0
    if not judged.any():
        raise DataError(
            "Labels cannot be reviewed: no training image can be held back without its class. Each class needs two "
            "independent images (of different groups)."
        )
    held = data.indices("val")
    scores = [head.logits[judged]]
    if len(held):
        chunks = measured.features(held).chunks()
        scores += [chunk @ head.weight.T + head.bias for chunk in chunks]
    indices = np.concatenate([measured.train[head.rows[judged]], held])
    return _Compared(indices, find_label_errors(np.concatenate(scores), data.labels[indices]))


def _fit(session: Session) -> HeadFit:
    measured, options = session.measured, session.options
    plan = STRATEGIES["linear_probe"](
        PlanSettings(strategy="linear_probe", stage=JOINED), [stage.name for stage in session.backbone.stages]
    )
    (head,) = fit_heads(
        plan,
        measured.features(measured.train),
        measured.labels,
        classes=session.data.summary.num_classes,
        head="ridge",
        class_weight=options.class_weight,
        folds=measured.folds,
        seed=options.seed,
    )
    return head


def _rows(data: Data, compared: _Compared, places: npt.NDArray[np.int64]) -> Iterator[ReviewedLabel]:
    """Rows for some of the compared images, the first ones with a picture."""
    classes, errors = data.summary.classes, compared.errors
    before = {one.item for one in data.corrected}
    for number, place in enumerate(places):
        index = int(compared.indices[place])
        label, item = classes[data.labels[index]], data.items[index]
        yield ReviewedLabel(
            item=item,
            split=str(data.splits[index]),
            label=label,
            suggested=classes[errors.suggested[place]],
            probability=float(errors.given[place]),
            suggested_probability=float(errors.best[place]),
            is_likely_error=bool(errors.likely[place]),
            corrected=label if item in before else "",
            picture=data.thumbnail(index, LARGE) if number < PICTURES else None,
        )
