"""Session and decision -> a fitted model: a head from the bank, or a fine-tuned network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from transferkit.core.random import draw_seed
from transferkit.core.timing import timed
from transferkit.decision import HeldBack
from transferkit.measure import stratified_sample
from transferkit.nn import Classifier
from transferkit.options import FitOptions
from transferkit.probe import fit_closed_form
from transferkit.records import MAX_HELD_BACK, Decision, HeldBackScores, TrainingRecord
from transferkit.strategies import STRATEGIES, Plan
from transferkit.workflow.finetune_run import FineTuneRun, begin_run, finish_run
from transferkit.workflow.session import Session

if TYPE_CHECKING:
    from transferkit.finetune.watching import MakeWatch

__all__ = ["Outcome", "fit_decision", "keep_scores", "plan_decision"]


@dataclass(frozen=True)
class Outcome:
    """A fitted model and its accuracy on held-back images.

    Args:
        model: In evaluation mode, on the CPU.
        reasons: Sentences with the held-back numbers.
        held_back: Its accuracy on images that were held back from it.
        training: How it was fine-tuned; None for a closed form.
        scores: Logits of images that were held back, of `MAX_HELD_BACK` at most; None if none could be.
    """

    model: Classifier
    reasons: tuple[str, ...]
    held_back: HeldBack
    training: TrainingRecord | None = None
    scores: HeldBackScores | None = None

    @property
    def is_probe(self) -> bool:
        """Whether the backbone is unchanged, and only a head was fitted."""
        return self.training is None or self.training.kept.weight == 0


def plan_decision(session: Session, decision: Decision) -> Plan:
    """The plan of a decision on this backbone."""
    if session.backbone.spec.norm:  # swapped: its layers go on measuring statistics, if they do
        decision = replace(decision, norm="keep")
    return STRATEGIES[decision.strategy](decision, [stage.name for stage in session.backbone.stages])


def fit_decision(
    session: Session,
    decision: Decision,
    options: FitOptions,
    *,
    begun: FineTuneRun | None = None,
    watch: MakeWatch | None = None,
) -> Outcome:
    """Fit the model that was decided on.

    Args:
        session: Backbone, images, and what the frozen pass measured.
        decision: Whose plan is carried out.
        options: How heads are fitted and networks trained.
        begun: The trial to go on from, if there was one.
        watch: Makes what watches each fit by gradient.
    """
    plan = plan_decision(session, decision)
    if not plan.closed_form:
        return _fine_tune(session, plan, options, begun, watch)
    return _fit_head(session, plan, options)


def _fine_tune(
    session: Session, plan: Plan, options: FitOptions, begun: FineTuneRun | None, watch: MakeWatch | None
) -> Outcome:
    """A network by gradient, or the probe where that did better on held-back images."""
    tuned = finish_run(session, begun or begin_run(session, plan, options, watch=watch))
    kept, seconds = tuned.record.kept, session.seconds.get("fine-tune", 0.0)
    plain = kept.accuracy if kept.plain_accuracy is None else kept.plain_accuracy
    interval = None if kept.low is None or kept.high is None else (kept.low, kept.high)
    judged = HeldBack(
        accuracy=plain, images=tuned.record.held_back, is_network=True, seconds=seconds, interval=interval
    )
    return Outcome(tuned.model, (tuned.reason,), judged, tuned.record, keep_scores(tuned.scores, session.options.seed))


def _fit_head(session: Session, plan: Plan, options: FitOptions) -> Outcome:
    """A head in closed form, from the features at hand."""
    how = session.options
    with timed(session.seconds, "fit head"):
        fitted = fit_closed_form(
            plan,
            session.backbone,
            session.measured.features(session.measured.train),
            session.measured.labels,
            classes=session.data.summary.classes,
            pooling=how.pooling,
            head=options.head,
            class_weight=how.class_weight,
            selection=session.measured.selection,
            folds=session.measured.folds,
            seed=how.seed,
        )
    seconds = session.seconds.get("fit head", 0.0)
    accuracy = fitted.accuracy if fitted.held_back else None
    judged = HeldBack(
        accuracy=accuracy, images=fitted.held_back, is_network=False, seconds=seconds, interval=fitted.interval
    )
    return Outcome(fitted.model, (fitted.reason,), judged, scores=keep_scores(fitted.scores, how.seed))


def keep_scores(scores: HeldBackScores | None, seed: int) -> HeldBackScores | None:
    """The scores that a run keeps: a random sample with all classes if there are many; None of labels and numbers."""
    if scores is None:
        return None
    limit = max(MAX_HELD_BACK, len(np.unique(scores.labels)))
    if len(scores) > limit:
        rng = np.random.default_rng(draw_seed(seed, "held-back scores"))
        scores = scores.take(stratified_sample(scores.labels, limit, rng))
    return scores if len(scores) else None
