"""An ensemble of heads on the stages of one backbone: one linear layer, at the cost of a single head on all stages.

Logits of linear heads that read the same features add up to a linear head, so averaging them costs nothing when
predicting, and the result is a model like any other: it is saved, exported and reported in the same way.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.timing import timed
from transferkit.ensemble.weighing import Weighed, weigh_members
from transferkit.measure import log_loss
from transferkit.nn import TransferModel
from transferkit.probe import HeadFit, fit_heads
from transferkit.records import JOINED, SELECTED, HeldBackScores
from transferkit.strategies import STRATEGIES, PlanSettings
from transferkit.workflow.fit import Outcome, keep_scores
from transferkit.workflow.session import Session

__all__ = ["average_heads"]

MIN_IMAGES = 40
"""Held-back images below which weights would be chance."""


@dataclass(frozen=True)
class _Member:
    """A head and the stage that it reads."""

    stage: str
    head: HeadFit
    columns: npt.NDArray[np.int64]

    def __str__(self) -> str:
        return f"{self.head.name} on {self.stage}"


def average_heads(session: Session, single: Outcome, *, head: str) -> Outcome:
    """Heads on single stages, all stages and selected features, averaged if that is better on held-back images.

    Args:
        session: Backbone, images, and what the frozen pass measured.
        single: What was fitted as decided; returned as it is, with a reason, unless the average is at least as accurate
            and has a lower log loss on the images that were held back from both.
        head: "ridge", "logistic", "average" or "auto", of the head on all stages.

    Returns:
        The average as one head on all stages, or `single`.
    """
    if single.training is not None:
        return _kept(single, "no ensemble of heads was tried: a network was fine-tuned, and may be blended already")
    if single.scores is None or len(single.scores) < MIN_IMAGES:
        held = 0 if single.scores is None else len(single.scores)
        return _kept(single, f"weights of an ensemble need {MIN_IMAGES} held-back images, and there are {held}")
    with timed(session.seconds, "ensemble"):
        members = _fit_members(session, head)
        rows, logits = _align(members, session)
        weighed = weigh_members(
            logits, session.measured.labels[rows], folds=session.measured.folds.take(rows), seed=session.options.seed
        )
        return _better(session, single, members, rows, weighed)


def _fit_members(session: Session, head: str) -> list[_Member]:
    measured, how = session.measured, session.options
    table = measured.features(measured.train)
    stages = [stage.name for stage in session.backbone.stages]
    found = []
    for stage in (*stages, JOINED, SELECTED):
        plan = STRATEGIES["linear_probe"](PlanSettings(strategy="linear_probe", stage=stage), stages)
        heads = fit_heads(
            plan,
            table,
            measured.labels,
            classes=session.data.summary.num_classes,
            head=head if stage == JOINED else "ridge",
            class_weight=how.class_weight,
            selection=measured.selection,
            folds=measured.folds,
            seed=how.seed,
        )
        columns = table.select(plan.stages)[1]
        # The average of two heads is found by the weights, if it is any good.
        found += [_Member(stage, head, columns) for head in heads if len(heads) == 1 or head.name != "average"]
    return found


def _align(members: Sequence[_Member], session: Session) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """(M,) images that were held back from all members, and their (P, M, K) logits."""
    labels, classes = session.measured.labels, session.data.summary.num_classes
    logits = np.full((len(members), len(labels), classes), np.nan)
    for member, own in zip(members, logits, strict=True):
        scores = member.head.scores(labels)
        own[scores.rows] = scores.logits
    rows = np.flatnonzero(np.isfinite(logits).all(axis=(0, 2)))
    return rows, logits[:, rows]


def _better(
    session: Session, single: Outcome, members: Sequence[_Member], rows: npt.NDArray[np.int64], weighed: Weighed
) -> Outcome:
    assert single.scores is not None
    _, ours, theirs = np.intersect1d(rows, single.scores.rows, return_indices=True)
    labels, known = single.scores.labels[theirs], single.scores.take(theirs)
    scores = HeldBackScores(labels=session.measured.labels[rows], logits=weighed.logits.astype(np.float32), rows=rows)
    mine = scores.take(ours)
    losses = [log_loss(one.probabilities, labels) for one in (known, mine)]
    said = (
        f"an average of {weighed.kept} heads on stages has {100 * mine.accuracy:.1f} % (log loss {losses[1]:.3f}) on "
        f"{len(labels):,} held-back images, the single head {100 * known.accuracy:.1f} % ({losses[0]:.3f})"
    )
    if mine.accuracy < known.accuracy or losses[1] >= losses[0]:
        return _kept(single, said)
    named = [f"{one!s} ({weight:.2g})" for one, weight in zip(members, _shares(weighed), strict=True) if weight]
    return replace(
        single,
        model=_compose(session, members, weighed),
        reasons=(*single.reasons, f"Ensemble: {said}; the average is returned: {', '.join(named)}."),
        held_back=replace(single.held_back, accuracy=weighed.accuracy, images=len(rows)),
        scores=keep_scores(scores, session.options.seed),
    )


def _kept(single: Outcome, why: str) -> Outcome:
    return replace(single, reasons=(*single.reasons, f"Ensemble: {why}; the single head is returned."))


def _shares(weighed: Weighed) -> npt.NDArray[np.float64]:
    shares: npt.NDArray[np.float64] = weighed.weights / weighed.weights.sum()
    return shares


def _compose(session: Session, members: Sequence[_Member], weighed: Weighed) -> TransferModel:
    """One linear layer on all stages that any member with a weight reads."""
    backbone, pooling = session.backbone, session.options.pooling
    used = [(one, float(weight)) for one, weight in zip(members, weighed.weights, strict=True) if weight]
    table = session.measured.features(session.measured.train[:1])
    every = [stage.name for stage in backbone.stages]
    read = set(every) if any(one.stage in (JOINED, SELECTED) for one, _ in used) else {one.stage for one, _ in used}
    stages = [name for name in every if name in read]
    columns = table.select(stages)[1]
    place = {int(column): at for at, column in enumerate(columns)}
    classes = session.data.summary.classes
    weight, bias = np.zeros((len(classes), len(columns))), np.zeros(len(classes))
    for one, share in used:
        weight[:, [place[int(column)] for column in one.columns]] += share * one.head.weight
        bias += share * one.head.bias
    model = TransferModel(copy.deepcopy(backbone), stages=stages, pooling=pooling, classes=classes)
    with torch.no_grad():
        model.linear.weight.copy_(torch.from_numpy(weight))
        model.linear.bias.copy_(torch.from_numpy(bias))
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    return model.eval()
