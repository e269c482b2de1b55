"""What a search would do and cost: its stages of trials at this machine's pace. Nothing is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from transferkit.core.paths import expand
from transferkit.core.scratch_cache import scratch_cache
from transferkit.finetune import count_steps, fit_recipe
from transferkit.records import DryRun, PlannedStep
from transferkit.tuning.default_space import searched_space, settle_trials
from transferkit.tuning.objective import FINAL_FOLDS
from transferkit.tuning.points import PROBE, TUNED_INSTEAD
from transferkit.tuning.search_options import TuneOptions
from transferkit.tuning.stages import SearchStage, plan_stages
from transferkit.tuning.tuner import STUDY_FILE
from transferkit.workflow.decide import check_stages, choose_strategy
from transferkit.workflow.dry_run import (
    CLOSED_FORM_SECONDS,
    Prospect,
    about,
    evidence_in_bank,
    measuring,
    memory_of_features,
    open_prospect,
    planned_files,
    training_of,
    views_of,
)

__all__ = ["plan_tune"]

TRIAL_RANGE = (0.4, 1.3)
"""Beside the range of one training: batch size and depth differ between points."""

PRUNED = 0.4
"""Least share of the epochs that trials with a pruner train for."""

CUTS = 4
"""Depths of unfreezing, each with cached activations of its own."""

SIZES = {STUDY_FILE: 200_000, "tuning.json": 60_000, "tuning.html": 150_000, "experiment/best.yaml": 600}


def plan_tune(model: str | nn.Module, data: Any, options: TuneOptions) -> DryRun:
    """What `tune` would do.

    Args:
        model, data, options: As for `tune`; nothing is written.

    Raises:
        TransferkitError: What `tune` would raise before it trains.
    """
    with scratch_cache(options.cache) as scratch:
        prospect = open_prospect(
            model,
            data,
            options,
            scratch=scratch,
            trains=True,
            check=lambda backbone: check_stages(backbone, options),
        )
        strategy, warnings = _strategy(prospect, options)
        options = _settled(prospect, replace(options, strategy=strategy))
        steps = measuring(prospect, views_of(prospect, options, budget=None))
        full = count_steps(options.recipe, len(prospect.train), batch_size=options.batch_size)
        stages = plan_stages(options.sampler, options.trials, steps=full)
        steps += _limited([_stage_step(prospect, options, stage) for stage in stages], options.seconds)
        out = None if options.out is None else expand(options.out)
        size = sum(SIZES.values())
        steps.append(
            PlannedStep(
                name="report",
                what="Write the record, its page and the best settings.",
                seconds_high=2.0,
                memory_bytes=steps[-1].memory_bytes,
                disk_bytes_low=0 if out is None else size // 3,
                disk_bytes_high=0 if out is None else 3 * size,
            )
        )
        if out is not None and (out / STUDY_FILE).exists():
            warnings.append(f"{out / STUDY_FILE} is continued: trials that are done there are not made again.")
        if options.workers > 1:
            warnings.append(f"Memory is that of one process, and there are {options.workers}; they share the cores.")
        about_it = about(prospect)
        return DryRun.of_steps(
            steps,
            verb="tune",
            about={
                **about_it,
                "strategy": strategy,
                "files": planned_files(out, SIZES),
                "warnings": (*about_it["warnings"], *warnings),
            },
        )


def _strategy(prospect: Prospect, options: TuneOptions) -> tuple[str, list[str]]:
    """What is tuned, and a sentence where that is not certain."""
    if options.strategy != "auto":
        return options.strategy, []
    evidence = evidence_in_bank(prospect)
    if evidence is None:
        return TUNED_INSTEAD, [f"What is tuned is decided by the frozen pass; the cost is that of {TUNED_INSTEAD}."]
    chosen = choose_strategy(evidence, options).strategy
    return (TUNED_INSTEAD if chosen == PROBE else chosen), []


def _settled(prospect: Prospect, options: TuneOptions) -> TuneOptions:
    stages = [stage.name for stage in prospect.backbone.stages]
    space = searched_space(options, lr=1.0, images=len(prospect.train), stages=stages)  # of which only the size counts
    return settle_trials(options, space)


def _probe_step(prospect: Prospect, stage: SearchStage) -> PlannedStep:
    low, high = CLOSED_FORM_SECONDS
    return PlannedStep(
        name=f"trials {stage.name}",
        what=f"{stage.trials} trials ({stage.name}), each a head solved for on the features of a stage.",
        images=len(prospect.train),
        passes=0.0,
        seconds_low=0.3 * stage.trials * low,
        seconds_high=stage.trials * high,
        memory_bytes=memory_of_features(prospect, len(prospect.train)),
    )


def _stage_step(prospect: Prospect, options: TuneOptions, stage: SearchStage) -> PlannedStep:
    if options.strategy == PROBE:
        return _probe_step(prospect, stage)
    full = fit_recipe(options.recipe, len(prospect.train))
    folds = options.recipe.folds
    if folds is None:
        folds = max(full.folds or 1, FINAL_FOLDS) if stage.is_decider else full.folds
    one = training_of(prospect, options, options.strategy, share=stage.share, folds=folds)
    low = TRIAL_RANGE[0] * one.step.seconds_low * (1 if options.pruner == "none" else PRUNED)
    return replace(
        one.step,
        name=f"trials {stage.name}",
        what=f"{stage.trials} trials ({stage.name}), each {one.step.what}",
        passes=round(stage.trials * one.step.passes, 2),
        seconds_low=stage.trials * low / options.workers,
        seconds_high=stage.trials * TRIAL_RANGE[1] * one.step.seconds_high,
        disk_bytes_high=CUTS * one.step.disk_bytes_high if not stage.is_decider else one.step.disk_bytes_high,
    )


def _limited(steps: list[PlannedStep], seconds: float | None) -> list[PlannedStep]:
    """Stages within the time of the search; the trial that is being trained at its end goes on."""
    if seconds is None:
        return steps
    whole = sum(step.seconds_high for step in steps)
    share = min(1.0, 1.2 * seconds / whole) if whole else 1.0
    return [
        replace(
            step, seconds_low=min(step.seconds_low, share * step.seconds_high), seconds_high=share * step.seconds_high
        )
        for step in steps
    ]
