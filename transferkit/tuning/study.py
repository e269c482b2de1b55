"""A search as an Optuna study that several processes can work on, be killed, and go on with.

Every trial of a search is a slot in a queue, made when the study is: whoever is free takes the next one, so that the
number of trials is exact however many work on them. A worker shows every few seconds that it is alive; the trial of one
that is not is put back into the queue.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from transferkit.core.errors import OptionError, TransferkitError
from transferkit.tuning.space import Choices, Point, Space, draw_points, lay_grid, narrow
from transferkit.tuning.stages import FINALISTS, SearchStage, stage_of
from transferkit.tuning.storage import GIVEN_UP_AFTER, open_storage

__all__ = [
    "DETAILS",
    "ERROR",
    "MAKE_PRUNER",
    "SECONDS",
    "SLOT",
    "Score",
    "Search",
    "StoppedEarly",
    "importances",
    "join_study",
    "with_advice",
    "work",
]

FEWEST_TRIALS = 8
"""Trials below which no importance is computed: PED-ANOVA compares the best tenth with all."""

SLOT, READY, SECONDS, DETAILS, ERROR = "slot", "slots", "seconds", "details", "error"
"""Attributes of trials and of the study."""

MAKE_PRUNER: Mapping[str, Callable[[], optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=5),
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
    "wilcoxon": lambda: optuna.pruners.WilcoxonPruner(p_threshold=0.1),
}
"""One of `PRUNERS` -> Optuna's."""


class StoppedEarly(Exception):
    """A trial was ended by the pruner; no error."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a trial is worth.

    Args:
        value: What the search maximises.
        details: Name -> what else is worth keeping, as plain values.
    """

    value: float
    details: Mapping[str, Any]


Report = Callable[[int, float], None]
"""Step and value so far -> nothing; raises `StoppedEarly`."""

Objective = Callable[[Point, SearchStage, Report], Score]
"""Point, stage of the trial, report -> score."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched, and how.

    Args:
        space: Name -> range.
        stages: In their order.
        seed: Of the points.
        starts: Points to begin with, before others are chosen, of the samplers that choose at random or by a model; the
            first is compared with the best points in full as well.
        pruner: One of `PRUNERS`.
        shared: What all trials have in common, in words -> its value; a study of other images, for one, is not gone
            on with.
    """

    space: Space
    stages: Sequence[SearchStage]
    seed: int = 0
    starts: Sequence[Point] = ()
    pruner: str = "none"
    shared: Mapping[str, str] = field(default_factory=dict)

    @property
    def trials(self) -> int:
        """Number of trials in all."""
        return sum(stage.trials for stage in self.stages)


class StagedSampler(BaseSampler):
    """Chooses a trial's point as its stage wants it, by the trials that are finished."""

    def __init__(self, search: Search) -> None:
        self._search = search
        with _quiet():
            self._tpe = TPESampler(seed=search.seed, multivariate=True, constant_liar=True)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The whole space: a point is chosen at once."""
        return describe_space(self._search.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The trial's point."""
        search, slot = self._search, trial.user_attrs.get(SLOT, 0)  # `work` drops a trial without one
        stage, number = stage_of(search.stages, slot)
        if slot < len(search.starts) and stage.source in ("random", "tpe"):
            return dict(search.starts[slot])
        if stage.source == "tpe":
            with _quiet():
                known = self._tpe.infer_relative_search_space(study, trial)
                return self._tpe.sample_relative(study, trial, known)
        return self._point(stage, number, slot, finished_trials(study))

    def _point(self, stage: SearchStage, number: int, slot: int, finished: Sequence[FrozenTrial]) -> dict[str, Any]:
        space, seed = self._search.space, self._search.seed
        if stage.source == "grid":
            points = lay_grid(space, stage.trials)
            return points[number % len(points)]
        best = best_points(finished, self._search.stages)
        if not best or stage.source == "random":
            return draw_points(space, 1, seed=seed, first=slot)[0]
        if stage.source == "best":
            chosen = with_advice(best[: stage.trials], self._search.starts)
            return chosen[min(number, len(chosen) - 1)]
        return draw_points(narrow(space, best[:FINALISTS]), 1, seed=seed, first=slot)[0]

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Before there is a model."""
        with _quiet():
            return self._tpe.sample_independent(study, trial, param_name, param_distribution)


def best_points(finished: Sequence[FrozenTrial], stages: Sequence[SearchStage]) -> list[dict[str, Any]]:
    """Points of the trials before the last stage, each once: those that were trained longest first, the best before.

    What was trained for fewer epochs is not comparable.
    """
    of_stage = {one.number: stage_of(stages, one.user_attrs[SLOT])[0] for one in finished}
    own = [one for one in finished if not of_stage[one.number].is_decider]
    own.sort(key=lambda one: (-of_stage[one.number].share, -(one.value or 0.0), one.number))
    points = [dict(one.params) for one in own]
    return [point for place, point in enumerate(points) if point not in points[:place]]


def with_advice(best: Sequence[dict[str, Any]], starts: Sequence[Point]) -> list[dict[str, Any]]:
    """The best points, with the first one that the search began with in place of the last, unless it is among them.

    That one is the advice: whatever short trainings make of it, a search should not end with less.
    """
    advice = [dict(point) for point in starts[:1]]
    return list(best) if not advice or advice[0] in best else [*best[: len(best) - 1], *advice]


def finished_trials(study: Study) -> list[FrozenTrial]:
    """Those with a score."""
    return [one for one in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if SLOT in one.user_attrs]


def importances(study: Study, search: Search) -> dict[str, float]:
    """Setting -> share of the differences in value that it explains, highest first; empty if there are too few trials.

    By trials of the stage with most of them, as those of different stages are not comparable.

    References:
        Watanabe et al., PED-ANOVA, IJCAI 2023; Optuna's implementation.
    """
    finished = finished_trials(study)
    groups = [[one for one in finished if stage_of(search.stages, one.user_attrs[SLOT])[0] is stage]
              for stage in search.stages]  # fmt: skip
    largest = max(groups, key=len)
    varied = [name for name in search.space if len({one.params[name] for one in largest}) > 1]
    if len(largest) < FEWEST_TRIALS or not varied or len({one.value for one in largest}) < FEWEST_TRIALS:
        return {}
    with _quiet():
        alone = optuna.create_study(direction="maximize")
        alone.add_trials(largest)
        found = optuna.importance.get_param_importances(alone, params=varied)
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def describe_space(space: Space) -> dict[str, BaseDistribution]:
    """Name -> Optuna's distribution."""
    described = dict[str, BaseDistribution]()
    for name, one in space.items():
        if isinstance(one, Choices):
            described[name] = CategoricalDistribution(one.values)
        elif one.whole:
            described[name] = IntDistribution(int(one.low), int(one.high), log=one.log)
        else:
            described[name] = FloatDistribution(one.low, one.high, log=one.log)
    return described


def join_study(search: Search, *, storage: str | None, name: str) -> Study:
    """The study of that name: made, with all its slots, or joined.

    Args:
        search: What is searched.
        storage: An Optuna URL ("sqlite:///study.db", "postgresql://..."); None keeps it in memory.
        name: Of the study.

    Raises:
        MissingDependencyError: The storage needs a driver that is not installed.
        OptionError: The storage cannot be opened, or holds a study of that name with another space.
    """
    with _quiet():
        kept = None if storage is None else open_storage(storage)
        options: dict[str, Any] = {
            "study_name": name,
            "storage": kept,
            "sampler": StagedSampler(search),
            "pruner": MAKE_PRUNER[search.pruner](),
        }
        try:
            study = optuna.create_study(direction="maximize", **options)
        except optuna.exceptions.DuplicatedStudyError:
            study = optuna.load_study(**options)
            _check_same(study, search)
        else:
            study.set_user_attr("space", {key: repr(one) for key, one in search.space.items()})
            study.set_user_attr("stages", [repr(stage) for stage in search.stages])
            study.set_user_attr("shared", dict(search.shared))
            for slot in range(search.trials):
                study.enqueue_trial({}, user_attrs={SLOT: slot})
            study.set_user_attr(READY, search.trials)
    return study


def _check_same(study: Study, search: Search) -> None:
    """Raise unless the study that was found is the same search; wait until whoever makes it has finished."""
    until = time.monotonic() + GIVEN_UP_AFTER
    while READY not in study.user_attrs:
        if time.monotonic() > until:
            raise OptionError(
                f"The study {study.study_name!r} was left unfinished when it was made. Choose another name."
            )
        time.sleep(0.1)
    known = study.user_attrs["space"], study.user_attrs["stages"]
    if known != ({key: repr(one) for key, one in search.space.items()}, [repr(stage) for stage in search.stages]):
        raise OptionError(
            f"The storage holds a study {study.study_name!r} with another space, sampler or number of trials. Choose "
            "another study=NAME (on the command line tune.study=NAME), or the same settings to go on with it."
        )
    before = study.user_attrs.get("shared", {})
    if other := [name for name, value in search.shared.items() if before.get(name, value) != value]:
        raise OptionError(
            f"The storage holds a study {study.study_name!r} whose trials differ from these in: {', '.join(other)}. "
            "Their scores cannot be compared. Choose another out=DIR or study=NAME (tune.study=NAME), or go back to "
            "what it was made with. retest=true (tune.retest=true) trains its best settings on the images as they are "
            "now."
        )


def work(
    study: Study,
    search: Search,
    objective: Objective,
    *,
    allows: Callable[[SearchStage], bool] = lambda stage: True,
    done: Callable[[FrozenTrial], None] = lambda trial: None,
    waiting_seconds: float = 1.0,
) -> None:
    """Take trials from the study's queue until all are finished, by this process or another.

    Args:
        study: Joined.
        search: The same as the study's.
        objective: What a point is worth.
        allows: Whether there is time for another trial of a stage; else it is left out.
        done: Called after each trial of this process.
        waiting_seconds: Between two looks whether others have finished.
    """
    described = describe_space(search.space)
    while True:
        with _quiet():
            optuna.storages.fail_stale_trials(study)
            open_trials = study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
        if not open_trials:
            return
        if not any(one.state == TrialState.WAITING for one in open_trials):
            time.sleep(waiting_seconds)
            continue
        with _quiet():
            trial = study.ask(described)
        if SLOT not in trial.user_attrs:  # another process took the last slot in between
            study.tell(trial, state=TrialState.FAIL)
            continue
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # taken for dead, and in the queue again
            done(_run(study, search, trial, objective, allows))


def _run(
    study: Study, search: Search, trial: optuna.Trial, objective: Objective, allows: Callable[[SearchStage], bool]
) -> FrozenTrial:
    stage, _ = stage_of(search.stages, trial.user_attrs[SLOT])

    def report(step: int, value: float) -> None:
        trial.report(value, step)
        with _quiet():
            if trial.should_prune():
                raise StoppedEarly

    if not allows(stage):
        trial.set_user_attr(ERROR, "There was no time left for it.")
        return study.tell(trial, state=TrialState.FAIL)
    begun = time.perf_counter()
    try:
        with _signs_of_life(trial):
            score = objective(trial.params, stage, report)
    except StoppedEarly:
        trial.set_user_attr(SECONDS, time.perf_counter() - begun)
        return study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
    except TransferkitError as error:
        trial.set_user_attr(ERROR, str(error))
        return study.tell(trial, state=TrialState.FAIL)
    except BaseException as error:  # Ctrl-C, or a bug: the slot is free for whoever goes on
        _put_back(study, trial, type(error).__name__)
        raise
    trial.set_user_attr(SECONDS, time.perf_counter() - begun)
    trial.set_user_attr(DETAILS, dict(score.details))
    return study.tell(trial, score.value, skip_if_finished=True)


def _put_back(study: Study, trial: optuna.Trial, why: str) -> None:
    """Queue the trial's point again."""
    with _quiet():
        again = optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={SLOT: trial.user_attrs[SLOT]},
        )
        study.add_trial(again)
        trial.set_user_attr(ERROR, f"It was interrupted ({why}) and queued again.")
        study.tell(trial, state=TrialState.FAIL)


@contextmanager
def _signs_of_life(trial: optuna.Trial) -> Iterator[None]:
    """Tell the storage every few seconds that this trial is being worked on."""
    storage = trial.study._storage  # by ask and tell, Optuna leaves this to the caller
    if not isinstance(storage, BaseHeartbeat):  # in memory: nobody else could go on
        yield
        return
    ended, every = threading.Event(), storage.get_heartbeat_interval()

    def beat() -> None:
        while True:
            with suppress(optuna.exceptions.StorageInternalError):  # a server that begins anew: told at the next beat
                storage.record_heartbeat(trial._trial_id)
            if ended.wait(every):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's log, and its warnings that heartbeats are experimental and `optimize` is the usual way."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            yield
    finally:
        optuna.logging.set_verbosity(level)
