"""Session and decision -> a fitted model: a head from the bank, or a fine-tuned network."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transferkit.decision import HeldBack
from transferkit.nn import Classifier
from transferkit.probe import fit_closed_form
from transferkit.records import Decision, TrainingRecord
from transferkit.strategies import STRATEGIES, Plan
from transferkit.workflow.finetune_run import FineTuneOptions, FineTuneRun
from transferkit.workflow.measure import timed
from transferkit.workflow.session import Options, Session

__all__ = ["Outcome", "fit_decision", "plan_decision"]


@dataclass(frozen=True)
class Outcome:
    """What came of a decision.

    Args:
        model: In evaluation mode, on the CPU.
        reasons: Sentences with the held-back numbers.
        held_back: How it did on images that were held back from it.
        training: How it was fine-tuned; None for a closed form.
        held_back_accuracy: Of the model on images held back from its fit, in [0, 1]; None where that is not known.
    """

    model: Classifier
    reasons: tuple[str, ...]
    held_back: HeldBack
    training: TrainingRecord | None = None
    held_back_accuracy: float | None = None

    @property
    def is_probe(self) -> bool:
        """Whether the backbone is as it was, and only a head was fitted."""
        return self.training is None or self.training.kept.weight == 0


def plan_decision(session: Session, decision: Decision) -> Plan:
    """What a decision leads to on this backbone."""
    if session.backbone.spec.norm:  # swapped: what its layers measure, if anything, is theirs to go on measuring
        decision = replace(decision, norm="keep")
    return STRATEGIES[decision.strategy](decision, [stage.name for stage in session.backbone.stages])


def fit_decision(
    session: Session,
    decision: Decision,
    options: Options,
    *,
    head: str,
    training: FineTuneOptions,
    begun: FineTuneRun | None = None,
) -> Outcome:
    """Do what was decided.

    Args:
        session: Backbone, images, and what the frozen pass measured.
        decision: Whose plan is carried out.
        options: How the session was opened.
        head: As for `fit_closed_form`.
        training: How to train, if it comes to that.
        begun: The run that was begun when it was decided, if one was.
    """
    plan = plan_decision(session, decision)
    if not plan.closed_form:
        tuned = (begun or FineTuneRun(session, plan, options, head, training)).run()
        kept, seconds = tuned.record.kept, session.seconds.get("fine-tune", 0.0)
        plain = kept.accuracy if kept.plain_accuracy is None else kept.plain_accuracy
        judged = HeldBack(accuracy=plain, images=tuned.record.held_back, is_network=True, seconds=seconds)
        return Outcome(tuned.model, (tuned.reason,), judged, tuned.record)
    with timed(session.seconds, "fit head"):
        fitted = fit_closed_form(
            plan,
            session.backbone,
            session.measured.table.take(session.measured.train),
            session.measured.labels,
            classes=session.data.summary.classes,
            pooling=options.pooling,
            head=head,
            class_weight=options.class_weight,
            selection=session.measured.selection,
            folds=session.measured.folds,
            seed=options.seed,
        )
    seconds = session.seconds.get("fit head", 0.0)
    accuracy = fitted.accuracy if fitted.held_back else None
    judged = HeldBack(accuracy=accuracy, images=fitted.held_back, is_network=False, seconds=seconds)
    return Outcome(fitted.model, (fitted.reason,), judged)
