"""Evidence and options -> Choice -> Decision: what was asked for, tried or advised, completed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from transferkit import zoo
from transferkit.core.distributed import broadcast, connect
from transferkit.core.timing import timed
from transferkit.decision import (
    SMALL_BATCH,
    Conditions,
    Normalisation,
    best_probe,
    choose,
    choose_for_targets,
    complete,
    settle_norm,
)
from transferkit.features import choose_device
from transferkit.finetune import count_processes
from transferkit.nn import Backbone
from transferkit.nn.norm import NEEDS_SEVERAL
from transferkit.options import AdaptOptions
from transferkit.records import JOINED, SELECTED, TOP, Alternative, BackboneSpec, Choice, Decision, Evidence
from transferkit.strategies import NORMS, with_unfrozen
from transferkit.workflow.finetune_run import FineTuneRun, begin_run
from transferkit.workflow.fit import plan_decision
from transferkit.workflow.norm_swap import measure_swapped
from transferkit.workflow.search import Trial, search
from transferkit.workflow.session import Session

if TYPE_CHECKING:
    from transferkit.finetune.watching import MakeWatch

__all__ = ["Decided", "check_stages", "choose_strategy", "conditions_for", "decide_session", "named_choice"]

PROBE_NORM = Normalisation(kind="frozen", reasons=())
"""A closed form leaves the backbone as it is."""

DEFAULT_STAGE = {"linear_probe": JOINED}
"""Strategy -> the stage that its head reads before anything is measured; fine-tuned networks are read at the top."""


def named_choice(
    backbone: BackboneSpec, *, strategy: str, stage: str | int | None, unfreeze: int | str | Sequence[str] | None = None
) -> Choice:
    """The choice of a strategy that was asked for by name.

    Args:
        backbone: Whose stages it is about.
        strategy: A registered name.
        stage: What the head reads, by name or index; None: the strategy's default.
        unfreeze: Stages to train; None leaves them to the strategy.

    Raises:
        OptionError: If the backbone or the strategy cannot do that.
    """
    named = DEFAULT_STAGE.get(strategy, TOP) if stage is None else stage
    chosen = str(named) if named in (JOINED, SELECTED) else backbone.find_stages(named)[0]
    said = f"{strategy} on {chosen} was requested."
    choice = Choice(strategy=strategy, stage=chosen, mode="given", reasons=(said,))
    return with_unfrozen(choice, unfreeze, [known.name for known in backbone.stages])


def check_stages(backbone: Backbone, options: AdaptOptions) -> None:
    """Whether the backbone has the stages that a named strategy is to read and train.

    Raises:
        OptionError: It has not.
    """
    if options.strategy != "auto":
        named_choice(backbone.spec, strategy=options.strategy, stage=options.stage, unfreeze=options.unfreeze)


def choose_strategy(evidence: Evidence, options: AdaptOptions) -> Choice:
    """The strategy that was asked for, beside what was measured of others, or the one that evidence or rule advises.

    Raises:
        OptionError: If the backbone or the strategy cannot do what was asked for.
    """
    if options.strategy != "auto":
        return _compared(evidence, options)
    budget = options.budget if options.budget == "auto" else _left(options.budget_seconds, evidence)
    return choose(evidence, mode=options.mode, budget=budget)


def _compared(evidence: Evidence, options: AdaptOptions) -> Choice:
    """The strategy that was asked for, with what is expected of it and of the others.

    A probe whose stage was not named reads the stage, or the selected features, with the best measured probe.
    """
    is_free = options.strategy == "linear_probe" and options.stage is None
    stage = best_probe(evidence) if is_free else options.stage
    asked = named_choice(evidence.backbone, strategy=options.strategy, stage=stage, unfreeze=options.unfreeze)
    known = {(option.strategy, option.stage): option for option in choose(evidence).options}
    expected = known.pop((asked.strategy, asked.stage), None)
    reasons = (
        (
            f"{asked.strategy} was requested; of the probes measured, {stage} has the highest expected "
            f"{evidence.data.measure}.",
        )
        if is_free and expected is not None
        else asked.reasons
    )
    if asked.tuned:
        reasons = (*reasons, f"The stages to train were requested as well: {', '.join(asked.tuned)}.")
    # What is expected of a strategy is of its own choice of stages.
    expected = None if asked.tuned else expected
    return replace(asked, reasons=reasons, expected=expected, alternatives=tuple(known.values()))


def conditions_for(evidence: Evidence, options: AdaptOptions) -> Conditions:
    """The requested training conditions, for `complete`."""
    recipe, norm, device = options.recipe, options.norm, choose_device(options.device)
    conditions = Conditions(
        batch_size=recipe.batch_size or options.batch_size,
        optimizer=recipe.optimizer,
        lr=None if recipe.lr is None or isinstance(recipe.lr, str) else float(recipe.lr),
        lr_scale=recipe.lr_scale,
        layer_decay=recipe.layer_decay,
        norm=norm,
        processes=count_processes(device, options.trainer or {}),
        on_gpus=device.type == "cuda",
        needs_several=norm in NEEDS_SEVERAL,
    )
    if norm != "auto" or conditions.at_once(evidence.data.train_images) >= SMALL_BATCH:
        return conditions
    if evidence.backbone.batch_norm is False:
        return conditions
    return replace(conditions, relative=zoo.native_group_norm(evidence.backbone.name) or "")


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What was decided.

    Args:
        session: To go on with: its normalisation may have been swapped.
        decision: Complete, but for what only the fit can tell.
        begun: The trial that the fit goes on from, if there is one.
    """

    session: Session
    decision: Decision
    begun: FineTuneRun | None = None


def decide_session(session: Session, options: AdaptOptions, *, watch: MakeWatch | None = None) -> Decided:
    """Choose, complete the choice, and swap normalisation if that is decided and the features do not get worse.

    Args:
        session: What was opened and measured.
        options: What was asked for.
        watch: Makes what watches each fit of a search.

    Raises:
        OptionError: Something that was asked for is impossible with this backbone.
    """
    evidence = session.measured.evidence
    if options.budget_seconds is not None:
        connect(choose_device(options.device))  # each process has a clock of its own, and they must decide alike
    conditions = conditions_for(evidence, options)
    # What is impossible is refused before any trial; a run that never fine-tunes has nothing to be refused.
    norm = PROBE_NORM if options.strategy == "linear_probe" else settle_norm(evidence, conditions)
    trials = _Trials(session, options, conditions, norm=norm.kind if norm.kind in NORMS else "frozen", watch=watch)
    with timed(session.seconds, "decide"):
        if options.strategy == "auto" and options.mode == "search":
            budget = _left(options.budget_seconds, evidence)
            is_classes = evidence.data.task == "single_label"
            how = choose if is_classes else partial(choose_for_targets, is_search=True)
            choice = search(evidence, trials.begin, budget=budget, progress=options.progress, choose=how)
        else:
            choice = choose_strategy(evidence, options)
            choice = broadcast(choice) if options.strategy == "auto" else choice
        if choice.strategy != "linear_probe" and norm.kind not in NORMS:
            session, norm = _swap_norm(session, norm)
        decision = complete(choice, evidence, conditions, norm)
    begun = trials.begun.get(decision.strategy) if decision.norm == trials.norm else None
    return Decided(session=session, decision=decision, begun=begun)


@dataclass
class _Trials:
    """Fine-tuning runs that were begun in the search, by strategy; the chosen one goes on from there.

    Args:
        norm: "keep" or "frozen"; a swap comes after the decision.
    """

    session: Session
    options: AdaptOptions
    conditions: Conditions
    norm: str
    watch: MakeWatch | None = None
    begun: dict[str, FineTuneRun] = field(default_factory=dict)

    def begin(self, option: Alternative) -> Trial:
        """Train the folds of one strategy."""
        evidence = self.session.measured.evidence
        named = replace(self.options, strategy=option.strategy, stage=option.stage)
        norm = Normalisation(kind=self.norm, reasons=())
        decision = complete(choose_strategy(evidence, named), evidence, self.conditions, norm)
        plan = plan_decision(self.session, decision)
        run = self.begun[option.strategy] = begin_run(self.session, plan, self.options, watch=self.watch)
        verdict = run.judged.verdict
        return Trial(verdict.kept, verdict.candidates[0], run.images.held_back)


def _left(budget: float | None, evidence: Evidence) -> float | None:
    """What further views have left of a budget, in seconds, rounded to three digits; at least half of it."""
    if budget is None or evidence.views is None or evidence.views.seconds == 0:
        return budget
    return float(f"{budget - min(evidence.views.seconds, budget / 2):.3g}")


def _swap_norm(session: Session, norm: Normalisation) -> tuple[Session, Normalisation]:
    """The session to go on with, swapped unless its features get worse; and what came of it."""
    session, outcome = measure_swapped(session, norm.kind)
    # Where the swap was refused: statistics of random weights are not worth freezing, those of trained ones are.
    kind = session.backbone.spec.norm or ("frozen" if session.backbone.spec.pretrained else "keep")
    return session, Normalisation(kind=kind, reasons=(*norm.reasons, outcome))
