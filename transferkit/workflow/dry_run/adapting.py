"""The steps of `analyze` and `adapt`, in order, with their cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from transferkit.core.distributed import launched_rank_and_world_size
from transferkit.core.errors import CacheError, TransferkitError
from transferkit.core.memory import peak_memory
from transferkit.core.paths import expand
from transferkit.core.scratch_cache import scratch_cache
from transferkit.decision import TUNED_SHARES
from transferkit.features import Engines, FeatureBank, choose_device
from transferkit.finetune import count_processes
from transferkit.options import AdaptOptions, PassOptions
from transferkit.records import DryRun, Evidence, PlannedStep
from transferkit.workflow.decide import check_stages, choose_strategy
from transferkit.workflow.dry_run.passes import (
    audit_step,
    load_step,
    measuring_steps,
    memory_of_features,
    pass_steps,
    planned_files,
)
from transferkit.workflow.dry_run.prospect import Prospect, open_prospect
from transferkit.workflow.dry_run.training import BYTES_OF_WEIGHTS, Training, training_of
from transferkit.workflow.measure import measure_features
from transferkit.workflow.session import open_source
from transferkit.workflow.training_folder import WORK
from transferkit.workflow.views import AskedViews, ask_views
from transferkit.workflow.views.planned import PlannedView, plan_views

__all__ = ["about", "measuring", "plan_adapt", "plan_analyze", "plan_extract", "undecided_strategies"]

NOTHING = 1
"""Bytes that a bank may take from which features are read and to which none are added."""

DECIDED_AT = 2e11
"""Products of N D min(N, D) up to which measurements are made for a plan: about half a minute."""

REPORT_BYTES = (180_000, 900_000)
"""Of the report, its pictures among it."""

RESULT_BYTES = 90_000
RECORD_BYTES = 1_000
LOG_BYTES = 8_000

VERIFY_RANGE = (0.6, 2.2)
REPORT_SECONDS = (0.3, 2.5)

CLOSED_FORM_SECONDS = (0.1, 2.5)


def plan_analyze(model: str | nn.Module, data: Any, options: PassOptions, *, out: Path | None = None) -> DryRun:
    """What `analyze` would do.

    Args:
        model, data, options: As for `analyze`.
        out: The run's folder.
    """
    with scratch_cache(options.cache) as scratch:
        prospect = open_prospect(model, data, options, scratch=scratch, trains=True)
        steps = measuring(prospect, views_of(prospect, options, budget=None))
        files = planned_files(out, {"evidence.json": RESULT_BYTES})
        steps.append(_write(files_bytes=RESULT_BYTES, most=2 * RESULT_BYTES, what="Write evidence.json."))
        return DryRun.of_steps(steps, verb="analyze", about={**about(prospect), "files": files})


def plan_extract(model: str | nn.Module, data: Any, options: PassOptions, *, out: Path | None = None) -> DryRun:
    """What one process of `extract` would do: an equal share of the first view's pass.

    Args:
        model, data, options, out: As for `plan_analyze`.
    """
    rank, world = launched_rank_and_world_size()
    with scratch_cache(options.cache) as scratch:
        prospect = open_prospect(model, data, options, scratch=scratch, trains=False)
        views = views_of(prospect, options, budget=None)[:1]
        everything = sum(prospect.planned_data.images.values()) / max(len(prospect.rows), 1)  # the test images too
        passes = [_share_of(step, everything / world) for step in pass_steps(prospect, views, times=False)]
        name = f"extraction-{rank}-of-{world}.json"
        steps = [load_step(prospect), _share_of(audit_step(prospect), 1 / world), *passes]
        steps.append(_write(files_bytes=RECORD_BYTES, most=2 * RECORD_BYTES, what=f"Write {name}."))
        files = planned_files(out, {name: RECORD_BYTES})
        return DryRun.of_steps(steps, verb="extract", about={**about(prospect), "files": files})


def _share_of(step: PlannedStep, share: float) -> PlannedStep:
    """The step over a share of its images; of several processes on one machine each takes longer."""
    return replace(
        step,
        images=round(share * step.images),
        in_bank=round(share * step.in_bank),
        seconds_low=share * step.seconds_low,
        seconds_high=share * step.seconds_high,
        disk_bytes_low=round(share * step.disk_bytes_low),
        disk_bytes_high=round(share * step.disk_bytes_high),
    )


def measuring(prospect: Prospect, views: tuple[PlannedView, ...]) -> list[PlannedStep]:
    """Everything before the decision."""
    return [load_step(prospect), audit_step(prospect), *pass_steps(prospect, views), *measuring_steps(prospect)]


def views_of(prospect: Prospect, options: PassOptions, *, budget: float | None) -> tuple[PlannedView, ...]:
    """The views that a run would make passes of."""
    return plan_views(
        _asked(prospect, options),
        prospect.backbone.spec.preprocessing,
        prospect.data,
        image_seconds=prospect.paces.image_seconds,
        budget=budget,
    )


def _asked(prospect: Prospect, options: PassOptions) -> AskedViews | None:
    return None if prospect.data.normalised else ask_views(options.geometry, options.views)


def about(prospect: Prospect) -> dict[str, Any]:
    """What a plan says of its images and backbone."""
    return {
        "model": prospect.backbone.spec.name,
        "data": prospect.planned_data,
        "device": str(choose_device(prospect.options.device)),
        "warnings": tuple(prospect.warnings),
    }


def plan_adapt(model: str | nn.Module, data: Any, options: AdaptOptions) -> DryRun:
    """What `adapt` would do.

    Args:
        model, data, options: As for `adapt`; nothing is written.

    Raises:
        TransferkitError: What `adapt` would raise before it trains.
    """
    trains, budget = options.strategy != "linear_probe", options.budget_seconds
    with scratch_cache(options.cache) as scratch:
        prospect = open_prospect(
            model,
            data,
            options,
            scratch=scratch,
            trains=trains,
            check=lambda backbone: check_stages(backbone, options),
        )
        views = views_of(prospect, options, budget=budget)
        steps = measuring(prospect, views)
        strategy, evidence = _decided(prospect, options)
        if evidence is not None and evidence.views is not None:
            used = len(evidence.views.views)
        else:
            used = sum(view.is_used for view in views)
        fits = _fits(prospect, options, strategy)
        steps += [*_fit_steps(prospect, fits, strategy, budget), _verify(prospect, options, fits, strategy, used)]
        steps.append(_saving(prospect, options, fits, strategy))
        files = planned_files(None if options.out is None else expand(options.out), _sizes(prospect, fits, strategy))
        return DryRun.of_steps(
            steps,
            verb="adapt",
            about={
                **about(prospect),
                "strategy": strategy,
                "files": files,
                "warnings": (*prospect.warnings, *_warnings(prospect, options, strategy, fits)),
            },
        )


def _decided(prospect: Prospect, options: AdaptOptions) -> tuple[str, Evidence | None]:
    """The strategy, where it was named or follows from the task or what is in the bank; "" where only the run can
    tell."""
    if options.strategy != "auto":
        return options.strategy, None
    if options.mode == "search":
        return "", None
    if options.mode == "evidence" and prospect.data.summary.task != "single_label":
        return "linear_probe", None
    evidence = evidence_in_bank(prospect, budget=options.budget_seconds)
    if evidence is None:
        return "", None
    return choose_strategy(evidence, options).strategy, evidence


def evidence_in_bank(prospect: Prospect, *, budget: float | None = None) -> Evidence | None:
    """What the frozen pass would measure, where all its features are in the bank; None otherwise."""
    images, width = len(prospect.train), prospect.width
    is_small = images * width * min(images, width) <= DECIDED_AT
    if not (is_small and prospect.is_exact and prospect.has_weights):
        return None
    options = prospect.options
    bank = FeatureBank(options.cache, limit=NOTHING)
    try:
        return measure_features(
            prospect.backbone,
            prospect.data,
            options,
            bank=bank,
            engines=Engines(options.engine, folder=bank.folder),
            source=open_source(options),
            views=_asked(prospect, options),
            budget=budget,
            trains=True,
        ).evidence
    except CacheError:  # a row is lacking
        return None


def undecided_strategies(prospect: Prospect) -> tuple[str, ...]:
    """What strategy=auto may fine-tune with."""
    return tuple(TUNED_SHARES) if prospect.data.summary.fewest_groups >= 2 else ()


def _fits(prospect: Prospect, options: AdaptOptions, strategy: str) -> list[Training]:
    """The fine-tuning that is sure, or may be."""
    if strategy == "linear_probe":
        return []
    if strategy:
        return [training_of(prospect, options, strategy)]
    tried = (_possible(prospect, options, name) for name in undecided_strategies(prospect))
    return [fit for fit in tried if fit is not None]


def _possible(prospect: Prospect, options: AdaptOptions, strategy: str) -> Training | None:
    """The training of a strategy; None where it cannot be, so that it is not chosen."""
    try:
        return training_of(prospect, options, strategy)
    except TransferkitError:
        return None


def _fit_steps(prospect: Prospect, fits: list[Training], strategy: str, budget: float | None) -> list[PlannedStep]:
    """The probe's head, or training; what is not decided costs nothing at least."""
    low, high = CLOSED_FORM_SECONDS
    head = PlannedStep(
        name="fit head",
        what="Fit the head in closed form.",
        images=len(prospect.train),
        passes=0.0,
        seconds_low=low if strategy == "linear_probe" else 0.0,
        seconds_high=high,
        memory_bytes=memory_of_features(prospect, len(prospect.train)),
        is_certain=strategy == "linear_probe",
    )
    if strategy == "linear_probe" or not fits:
        return [head]
    longest = max((fit.step for fit in fits), key=lambda step: step.seconds_high)
    # Training ends at the first epoch after the budget; a head is fitted, and the last epoch goes on.
    most = longest.seconds_high if budget is None else min(longest.seconds_high, 1.3 * budget + 3)
    if strategy:
        return [replace(longest, seconds_low=min(longest.seconds_low, most), seconds_high=most)]
    what = "Only if evidence asks for it: " + " or ".join(fit.step.what.rstrip(".") for fit in fits) + "."
    return [
        head,
        replace(
            longest,
            what=what,
            seconds_low=0.0,
            seconds_high=most,
            memory_bytes=max(fit.step.memory_bytes for fit in fits),
            disk_bytes_low=0,
            disk_bytes_high=max(fit.step.disk_bytes_high for fit in fits),
            is_certain=False,
        ),
    ]


def _verify(prospect: Prospect, options: AdaptOptions, fits: list[Training], strategy: str, views: int) -> PlannedStep:
    """Scoring validation and test images: from the bank for a probe, by the model otherwise."""
    scored = ["val"] if options.evaluate is False else ["val", "test"]
    images = sum(len(prospect.data.indices(split)) for split in scored)
    test = images - len(prospect.data.indices("val"))
    each = views * prospect.image_seconds
    members = max((fit.members for fit in fits), default=1)
    certain_members = 1 if strategy in ("", "linear_probe") else members
    rows = prospect.row_bytes(test)
    is_probe = strategy in ("", "linear_probe")
    return PlannedStep(
        name="verify",
        what="Score the validation and test images." if len(scored) == 2 else "Score the validation images.",
        images=images,
        passes=float(views),
        seconds_low=0.5 * VERIFY_RANGE[0] * test * each * (1 if is_probe else min(1, certain_members)),
        seconds_high=VERIFY_RANGE[1] * images * each * members + 0.5,
        basis="remembered" if prospect.paces.remembered else "measured now",
        memory_bytes=memory_of_features(prospect, len(prospect.train)),
        disk_bytes_low=rows * _least_views(views) if strategy == "linear_probe" else 0,
        disk_bytes_high=rows * views,
    )


def _least_views(views: int) -> int:
    """Without the mirror images that may be rejected."""
    return max(1, views // 2)


def _sizes(prospect: Prospect, fits: list[Training], strategy: str) -> dict[str, int]:
    model = BYTES_OF_WEIGHTS * prospect.backbone.spec.parameters * max((fit.members for fit in fits), default=1)
    return {
        "model.safetensors": model + 4 * prospect.width * prospect.data.summary.num_classes,
        "report.html": sum(REPORT_BYTES) // 2,
        "result.json": RESULT_BYTES,
    }


def _saving(prospect: Prospect, options: AdaptOptions, fits: list[Training], strategy: str) -> PlannedStep:
    model = _sizes(prospect, fits, strategy)["model.safetensors"]
    least = BYTES_OF_WEIGHTS * prospect.backbone.spec.parameters
    is_kept = options.out is not None
    low, high = REPORT_BYTES
    return PlannedStep(
        name="report",
        what="Write model, result and report." if is_kept else "Nothing is written: there is no out=.",
        seconds_low=REPORT_SECONDS[0],
        seconds_high=REPORT_SECONDS[1],
        memory_bytes=peak_memory(),
        disk_bytes_low=least + RESULT_BYTES // 2 + low if is_kept else 0,
        disk_bytes_high=model + 2 * RESULT_BYTES + high + LOG_BYTES if is_kept else 0,
    )


def _write(*, files_bytes: int, most: int, what: str) -> PlannedStep:
    return PlannedStep(
        name="report",
        what=what,
        seconds_high=0.5,
        memory_bytes=peak_memory(),
        disk_bytes_low=files_bytes // 2,
        disk_bytes_high=most,
    )


def _warnings(prospect: Prospect, options: AdaptOptions, strategy: str, fits: list[Training]) -> list[str]:
    said = []
    if options.strategy == "auto" and not strategy:
        said.append(
            "mode=search tries strategies by training them: the cost is that of the longest one alone, at least."
            if options.mode == "search"
            else "The strategy is decided by the frozen pass: seconds go from a linear probe to the longest "
            "fine-tuning. Once its features are in the bank (transferkit analyze), a dry run decides for real."
        )
    started = None if options.out is None else expand(options.out) / WORK
    if fits and started is not None and options.resume is not False and any(started.glob("*/*/last.ckpt*")):
        said.append(f"{started} holds an interrupted run: what it has trained is not trained again.")
    if options.budget == "auto":
        said.append("budget=auto chooses by expected accuracy and time, after the frozen pass.")
    processes = count_processes(choose_device(options.device), options.trainer or {})
    if fits and processes > 1:
        said.append(f"Seconds of training are those of one process; {processes} share the batches.")
    return said
