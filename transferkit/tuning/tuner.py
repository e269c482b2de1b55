"""A search from beginning to end: session and space -> study, worked on by one process or several -> record."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from transferkit.core.paths import expand
from transferkit.core.progress import announce
from transferkit.core.provenance import environment
from transferkit.features import choose_device
from transferkit.finetune import count_steps, fit_recipe
from transferkit.finetune.watching import MakeWatch
from transferkit.records import Decision, TuningRecord, TuningTrial
from transferkit.tuning.default_space import searched_space, settle_trials
from transferkit.tuning.objective import HeldBackAccuracy
from transferkit.tuning.panda import ReadSegment, babysit
from transferkit.tuning.points import PROBE, TUNED_INSTEAD, check_space
from transferkit.tuning.retest import retest_settings
from transferkit.tuning.search_options import TuneOptions
from transferkit.tuning.search_record import write_search
from transferkit.tuning.space import Choices, Dimension, Range, Space
from transferkit.tuning.stages import SearchStage, plan_stages, stage_of
from transferkit.tuning.starts import starting_points
from transferkit.tuning.storage import hide_password, told_if_gone
from transferkit.tuning.study import DETAILS, ERROR, SECONDS, SLOT, Search, importances, join_study, work
from transferkit.tuning.style import choose_style
from transferkit.workflow.decide import decide_session
from transferkit.workflow.session import Session, open_session

__all__ = ["run_search"]

STUDY_FILE = "study.db"

STATE_NAMES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def run_search(
    model: str | nn.Module,
    data: Any,
    options: TuneOptions,
    *,
    watch: Callable[[int], MakeWatch | None],
    read: ReadSegment,
    command: str,
) -> TuningRecord:
    """Search, and return what was found; it is written into `out` as well.

    Args:
        model, data: As for `adapt`.
        options: Of all trials, and of the search.
        watch, read: What a training is babysat with, as for `babysit`.
        command: What makes the search again.

    Raises:
        OptionError: Something cannot be searched like this.
        TransferkitError: Another of its kinds.
    """
    begun = time.perf_counter()
    session = open_session(model, data, options, trains=True, needs_classes="tune")
    if options.retest:
        found = retest_settings(session, options, command=command, begun=begun)
    else:
        options = _named(session, options)
        decision = decide_session(session, options).decision
        style, why = choose_style(options, decision, continues=_is_begun(options))
        announce(why, enabled=options.progress)
        if style == "panda":
            found = babysit(session, options, watch=watch, read=read, why=why, command=command, begun=begun)
        else:
            helps = partial(_help, model, data)
            found = _try_points(session, options, decision, helps=helps, command=command, begun=begun)
            found = replace(found, why_style=why)
    write_search(found, options)
    return found


def _try_points(
    session: Session,
    options: TuneOptions,
    decision: Decision,
    *,
    helps: Callable[..., None],
    command: str,
    begun: float,
) -> TuningRecord:
    """A search of many points.

    Args:
        session: Opened and measured.
        options: With the name of the strategy that is tuned.
        decision: Its own.
        helps: What another process does, given the options, the search and its threads; picklable.
        command, begun: As for `babysit`.
    """
    images = session.data.summary.train_images
    space = searched_space(
        options,
        lr=decision.lr,
        images=images,
        stages=[stage.name for stage in session.backbone.stages],
    )
    check_space(space, options)
    options = settle_trials(options, space)
    search = Search(
        space=space,
        stages=plan_stages(
            options.sampler, options.trials, steps=count_steps(options.recipe, images, batch_size=options.batch_size)
        ),
        seed=options.seed,
        starts=_starts(session, decision, space, options),
        pruner=options.pruner,
        shared=_shared(session, options),
    )
    with _kept(options) as storage, told_if_gone(str(storage)):
        options = replace(options, storage=storage)
        study = join_study(search, storage=storage, name=options.study)
        if options.launcher == "ray":
            _run_on_ray(partial(helps, options, search), options)
        others = _start_workers(helps, options, search)
        try:
            _work(session, options, search, study, begun)
        finally:
            for other in others:
                other.join()
        return _record(session, options, search, study, command=command, begun=begun)


def _is_begun(options: TuneOptions) -> bool:
    """Whether `out` holds a study."""
    return options.out is not None and (expand(options.out) / STUDY_FILE).is_file()


def _named(session: Session, options: TuneOptions) -> TuneOptions:
    """The options, with the strategy that is tuned."""
    if options.strategy != "auto":
        return options
    chosen = decide_session(session, options).decision
    if chosen.strategy != "linear_probe":
        announce(f"tuning {chosen.strategy}, which is advised", enabled=options.progress)
        return replace(options, strategy=chosen.strategy, unfreeze=list(chosen.tuned) or None)
    announce(f"a linear probe is advised, which has little to tune: tuning {TUNED_INSTEAD}", enabled=options.progress)
    return replace(options, strategy=TUNED_INSTEAD)


def _shared(session: Session, options: TuneOptions) -> dict[str, str]:
    """What all trials have in common, and with it their scores."""
    spec, recipe = session.backbone.spec, options.recipe.changed
    return {
        "images": session.data.summary.content_id,
        "backbone": spec.name,
        "image size": " x ".join(str(side) for side in spec.preprocessing.height_width),
        "strategy": options.strategy,
        "train": ", ".join(f"{name}={value}" for name, value in sorted(recipe.items())),
        "seed": str(options.seed),
    }


def _starts(session: Session, decision: Decision, space: Space, options: TuneOptions) -> list[dict[str, Any]]:
    """Points to begin with; half of the first stage is left to chance."""
    if not options.warm_start or options.strategy == PROBE:
        return []
    first = plan_stages(options.sampler, options.trials)[0].trials
    found = starting_points(
        space,
        lr=decision.lr,
        stages=len(session.backbone.stages),
        batch_size=_batch_size(session, options),
        seed=options.seed,
    )
    return found[: max(1, first // 2)]


def _batch_size(session: Session, options: TuneOptions) -> int:
    """The one that `adapt` would take."""
    recipe = fit_recipe(options.recipe, session.data.summary.train_images, batch_size=options.batch_size)
    return recipe.batch_size or 1


@contextmanager
def _kept(options: TuneOptions) -> Iterator[str | None]:
    """The storage's URL: as asked, a file in `out`, a temporary file for several workers, or None for memory."""
    if options.storage is not None:
        yield str(options.storage)
    elif options.out is not None:
        folder = expand(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        yield f"sqlite:///{(folder / STUDY_FILE).absolute()}"
    elif options.workers > 1 or options.launcher != "local":
        with tempfile.TemporaryDirectory(prefix="transferkit-") as made:
            yield f"sqlite:///{Path(made) / STUDY_FILE}"
    else:
        yield None


def _work(session: Session, options: TuneOptions, search: Search, study: Any, begun: float) -> None:
    """Trials of this process."""
    best = [-1.0]

    def done(trial: FrozenTrial) -> None:
        slot = trial.user_attrs[SLOT]
        stage, _ = stage_of(search.stages, slot)
        value = trial.user_attrs.get(DETAILS, {}).get("accuracy")
        said = STATE_NAMES[trial.state] if value is None else f"{100 * value:.1f} %"
        mark = ""
        if value is not None and value > best[0]:
            best[0], mark = value, ", the best so far" if best[0] >= 0 else ""
        announce(f"trial {slot + 1} of {search.trials} ({stage.name}): {said}{mark}", enabled=options.progress)

    objective = HeldBackAccuracy(session, options, by_fold=options.pruner == "wilcoxon")
    work(study, search, objective, allows=_clock(search, options.seconds, begun), done=done)


def _clock(search: Search, seconds: float | None, begun: float) -> Callable[[SearchStage], bool]:
    """Whether a trial of a stage may begin: each stage has its share of the time, by the epochs in it."""
    if seconds is None:
        return lambda stage: True
    effort = [stage.trials * stage.share for stage in search.stages]
    ends = {
        stage.name: begun + seconds * sum(effort[: place + 1]) / sum(effort)
        for place, stage in enumerate(search.stages)
    }
    return lambda stage: time.perf_counter() < ends[stage.name]


def _start_workers(
    helps: Callable[..., None], options: TuneOptions, search: Search
) -> list[multiprocessing.process.BaseProcess]:
    """Further processes; all share the cores."""
    if options.workers == 1 or options.launcher != "local":
        return []
    threads = max(1, torch.get_num_threads() // options.workers)
    torch.set_num_threads(threads)
    context = multiprocessing.get_context("spawn")
    quiet = replace(options, progress=False)
    found = list[multiprocessing.process.BaseProcess]()
    for _ in range(options.workers - 1):
        process = context.Process(target=helps, args=(quiet, search, threads))
        process.start()
        found.append(process)
    return found


def _run_on_ray(work: Callable[[int], None], options: TuneOptions) -> None:
    """Trials on the cluster; those of workers that were lost for good are left to this process."""
    from transferkit.tuning.ray_workers import run_on_ray

    run_on_ray(
        work,
        workers=options.workers,
        storage=str(options.storage),
        takes_gpus=options.device in ("auto", "cuda"),
        progress=options.progress,
    )


def _help(model: Any, data: Any, options: TuneOptions, search: Search, threads: int) -> None:
    torch.set_num_threads(threads)
    session = open_session(model, data, options, trains=True, needs_classes="tune")
    with told_if_gone(str(options.storage)):
        study = join_study(search, storage=options.storage, name=options.study)
        _work(session, options, search, study, time.perf_counter())


def _record(
    session: Session,
    options: TuneOptions,
    search: Search,
    study: Any,
    *,
    command: str,
    begun: float,
) -> TuningRecord:
    trials = [one for one in study.get_trials(deepcopy=False) if SLOT in one.user_attrs]
    complete = [one for one in trials if one.state == TrialState.COMPLETE]
    return TuningRecord(
        data=session.data.summary,
        backbone=session.backbone.spec.name,
        strategy=options.strategy,
        space={name: _in_words(one) for name, one in search.space.items()},
        log_scaled=tuple(name for name, one in search.space.items() if isinstance(one, Range) and one.log),
        importance=importances(study, search),
        sampler=options.sampler,
        pruner=options.pruner,
        trials=tuple(_trial(one, search) for one in trials if one.state in STATE_NAMES),
        probe=complete[-1].user_attrs[DETAILS]["probe"] if complete else None,
        images=complete[-1].user_attrs[DETAILS]["images"] if complete else 0,
        base=options.recipe.changed,
        storage=hide_password(str(options.storage or "")),
        study=options.study,
        shape=session.backbone.spec.preprocessing.height_width,
        command=command.replace(str(options.storage), hide_password(str(options.storage))),
        environment=environment(seed=options.seed, device=str(choose_device(options.device))),
        seconds=time.perf_counter() - begun,
    )


def _in_words(one: Dimension) -> str:
    """A range in words."""
    if isinstance(one, Choices):
        return " or ".join(str(value) for value in one.values)
    return f"{one.low:g} to {one.high:g}{' (log)' if one.log else ''}"


def _trial(one: FrozenTrial, search: Search) -> TuningTrial:
    stage, _ = stage_of(search.stages, one.user_attrs[SLOT])
    known = one.user_attrs.get(DETAILS, {})
    return TuningTrial(
        number=one.number,
        stage=stage.name,
        is_full=stage.is_last,
        values=dict(one.params),
        state=STATE_NAMES[one.state],
        accuracy=known.get("accuracy"),
        log_loss=known.get("log_loss"),
        kept=known.get("kept"),
        epochs=known.get("epochs", 0),
        seconds=one.user_attrs.get(SECONDS, 0.0),
        error=one.user_attrs.get(ERROR, ""),
    )
