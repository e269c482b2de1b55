"""Policies for choosing a strategy, each a function of a cell and of the cells of other tasks to fit on."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence

from regret.cells import Cell, by_task, with_only
from regret.learning import learn
from transferkit.decision import GainModel, rule, weigh
from transferkit.decision.gains import UNKNOWN_SIMILARITY
from transferkit.records import JOINED, SELECTED, TOP, Alternative, Choice
from transferkit.workflow.search import Trial, search

Outcome = tuple[float, float]
"""Test accuracy, and seconds after the frozen pass."""


Policy = Callable[[Cell, Sequence[Cell]], Outcome]
"""A cell, and the cells of other families to fit on."""


LOOKING = ("similarity", "probe", "selection")
"""Phases of the measurement after the frozen pass that a decision needs."""


def take(cell: Cell, strategy: str, *, looked: bool = False, seconds: float | None = None) -> Outcome:
    """Accuracy of a strategy, and the seconds for it and for choosing it."""
    if strategy in cell.tuned:
        found = cell.tuned[strategy]
        return found["test"], found["seconds"] + sum(cell.evidence.seconds[phase] for phase in LOOKING)
    spent = cell.strategies[strategy]["seconds"] if seconds is None else seconds
    if looked:
        spent += sum(cell.evidence.seconds[phase] for phase in LOOKING)
    elif strategy.startswith(SELECTED):
        spent += cell.evidence.seconds["selection"]
    return cell.strategies[strategy]["test"], spent


def take_stage(cell: Cell, stage: str, *, looked: bool = False) -> Outcome:
    """The same, the head chosen as `adapt` chooses it."""
    return take(cell, cell.kept(stage), looked=looked, seconds=cell.seconds(stage))


def take_decided(cell: Cell, decision: Choice) -> Outcome:
    """The outcome that `adapt` returns for a decision."""
    if decision.strategy == "linear_probe":
        return take_stage(cell, decision.stage, looked=True)
    return take(cell, decision.strategy)


def by_evidence(cell: Cell, others: Sequence[Cell]) -> Outcome:
    """`mode=evidence`, with coefficients from the other families."""
    return take_decided(cell, weigh(cell.evidence, knowledge=learned_from(others)))


def by_search(cell: Cell, others: Sequence[Cell]) -> Outcome:
    """`mode=search`, with the same coefficients; its trials are the folds that were run."""
    tried = []

    def begin(option: Alternative) -> Trial:
        tried.append(option.strategy)
        return cell.pilot(option.strategy)

    decision = search(
        cell.evidence, begin, choose=functools.partial(weigh, knowledge=learned_from(others)), progress=False
    )
    accuracy, seconds = take_decided(cell, decision)
    return accuracy, seconds + sum(cell.trial_seconds(name) for name in tried if name != decision.strategy)


def by_measurement(cell: Cell, others: Sequence[Cell]) -> Outcome:
    """The highest held-back accuracy among the ridge probes, without other tasks."""
    scores = [score for score in cell.evidence.probes if score.method == "ridge"]
    return take_stage(cell, max(scores, key=lambda score: score.interval[0]).stage, looked=True)


def by_rule(cell: Cell, others: Sequence[Cell]) -> Outcome:
    """`mode=rule`; if it chooses fine-tuning that was not run, its linear classifier on the top stage."""
    advice = rule_of(cell)
    if advice.strategy in cell.tuned:
        return take(cell, advice.strategy)
    return take_stage(cell, advice.stage if advice.strategy == "linear_probe" else TOP)


def rule_of(cell: Cell) -> Choice:
    """The choice of the rule; an unknown similarity is set to the middle, which counts as near."""
    similarity = UNKNOWN_SIMILARITY if cell.evidence.similarity is None else cell.evidence.similarity
    return rule(
        images=cell.evidence.data.train_images,
        per_class=cell.evidence.data.train_per_class,
        similarity=similarity,
        stages=tuple(stage.name for stage in cell.evidence.backbone.stages),
    )


def always(strategy: str) -> Policy:
    """The same strategy for every task; its ridge head if a class of one image allows no other."""
    ridge = f"{strategy.rpartition(' ')[0]} ridge"
    return lambda cell, others: take(cell, strategy if strategy in (*cell.strategies, *cell.tuned) else ridge)


def always_stage(stage: str) -> Policy:
    return lambda cell, others: take_stage(cell, stage)


def best_constant(cell: Cell, others: Sequence[Cell]) -> Outcome:
    """The strategy with the lowest mean regret on the other families, over cells with the same strategies run."""
    return always(constant_from(with_only(others, cell.tuned)))(cell, others)


def by_cross_validation(cell: Cell, others: Sequence[Cell]) -> Outcome:
    """Run everything, choose the highest held-back accuracy."""
    known = {name: found for name, found in cell.strategies.items() if found["held_back"] is not None}
    scores = {name: (-found["held_back"], found["log_loss"]) for name, found in known.items()}
    scores |= {name: (-cell.pilot(name).kept.accuracy, cell.pilot(name).kept.log_loss) for name in cell.tuned}
    best = min(scores, key=lambda name: scores[name])
    return (cell.tuned if best in cell.tuned else cell.strategies)[best]["test"], cell.exhaustive


def at_random(cell: Cell, others: Sequence[Cell]) -> Outcome:
    found = (*cell.strategies.values(), *cell.tuned.values())
    return statistics.fmean(one["test"] for one in found), statistics.fmean(one["seconds"] for one in found)


POLICIES: dict[str, Policy] = {
    "mode=evidence": by_evidence,
    "highest measured probe": by_measurement,
    "mode=rule": by_rule,
    "best constant": best_constant,
    "always selected, head=auto": always_stage(SELECTED),
    "always selected, ridge": always(f"{SELECTED} ridge"),
    "always selected, average of heads": always(f"{SELECTED} average"),
    "always joined, head=auto": always_stage(JOINED),
    "always joined, ridge": always(f"{JOINED} ridge"),
    "always top stage, head=auto": always_stage(TOP),
    "always top stage, logistic": always(f"{TOP} logistic"),
    "cross-validation of everything": by_cross_validation,
    "random": at_random,
}


def policies_for(cells: Sequence[Cell]) -> dict[str, Policy]:
    """Policies including those that need fine-tuning, if any was run."""
    tuned = sorted(set.intersection(*(set(cell.tuned) for cell in cells)))
    return POLICIES | ({"mode=search": by_search} if tuned else {}) | {f"always {name}": always(name) for name in tuned}


_learned: dict[tuple[str, ...], GainModel] = {}


_constants: dict[tuple[str, ...], str] = {}


def _key(cells: Sequence[Cell]) -> tuple[str, ...]:
    tuned = sorted({name for cell in cells for name in cell.tuned})
    families = sorted({f"{cell.model} {cell.family}" for cell in cells})
    return (str(len(cells)), *families, *tuned)


def learned_from(cells: Sequence[Cell]) -> GainModel:
    """The gain model fitted on these cells, cached per set of cells."""
    key = _key(cells)
    if key not in _learned:
        _learned[key] = learn(cells)
    return _learned[key]


def constants_of(cells: Sequence[Cell]) -> list[str]:
    """The strategies that were run on every backbone."""
    menus: dict[str, list[str]] = {}
    for cell in cells:
        menus[cell.model] = max(menus.get(cell.model, []), [*cell.strategies, *cell.tuned], key=len)
    first, *others = menus.values()
    return [name for name in first if all(name in menu for menu in others)]


def constant_from(cells: Sequence[Cell]) -> str:
    """The best constant strategy on these cells."""
    key = _key(cells)
    if key not in _constants:
        names = constants_of(cells)

        def regret(name: str) -> float:
            return by_task(cells, [cell.best - always(name)(cell, ())[0] for cell in cells])

        _constants[key] = min(names, key=regret)
    return _constants[key]
