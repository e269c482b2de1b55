"""The steps of `rank`: a frozen pass of each model, and its measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from transferkit.core.errors import BackboneError, MissingDependencyError, list_problems
from transferkit.core.scratch_cache import scratch_cache
from transferkit.options import PassOptions
from transferkit.records import DryRun, PlannedStep
from transferkit.workflow.dry_run.adapting import about
from transferkit.workflow.dry_run.passes import audit_step, load_step, measuring_steps, pass_steps, planned_files
from transferkit.workflow.dry_run.prospect import Prospect, list_images, open_prospect
from transferkit.workflow.rank import MEASURED_IMAGES, name_models
from transferkit.workflow.views import ask_views, fixed_views, refuse_for_tensors
from transferkit.workflow.views.planned import PlannedView

__all__ = ["plan_rank"]

MEASURES_SECONDS = (0.5, 8.0)
"""Of all measures of one model on `MEASURED_IMAGES` images."""

SIZES = {"ranking.json": 120_000, "ranking.html": 90_000}


def plan_rank(
    models: Sequence[str | nn.Module] | str, data: Any, options: PassOptions, *, out: Path | None = None
) -> DryRun:
    """What `rank` would do.

    Args:
        models, data, options: As for `rank`.
        out: The run's folder.

    Raises:
        BackboneError: Not one of the models could be ranked.
    """
    asked = ask_views(options.geometry, options.views)
    named = name_models(models, pretrained=options.pretrained)
    with scratch_cache(options.cache) as scratch:
        seen = dataclasses.replace(options, cache=scratch, progress=False)
        opened = list_images(data, seen)
        if opened[0].normalised:
            refuse_for_tensors(asked)
        steps, left_out, last = list[PlannedStep](), list[str](), None
        warnings = list[str]()
        for name, model in named.items():
            own = dataclasses.replace(options, preprocessing=None) if isinstance(model, str) else options
            try:
                last = open_prospect(model, data, own, scratch=scratch, trains=False, opened=opened)
            except (BackboneError, MissingDependencyError) as error:
                left_out.append(f"{name}: {error}")
                continue
            if not steps:
                steps.append(audit_step(last))
            steps += _of_model(last, name)
            warnings += last.warnings
        if last is None:
            raise BackboneError(list_problems("None of the models can be ranked:", left_out))
        files = planned_files(out, SIZES)
        size = sum(SIZES.values())
        steps.append(
            PlannedStep(
                name="report",
                what="Compare the models, and write ranking.json and ranking.html.",
                seconds_high=2.0,
                memory_bytes=max(step.memory_bytes for step in steps),
                disk_bytes_low=size // 4,
                disk_bytes_high=2 * size,
            )
        )
        warnings += [f"Not ranked: {one}" for one in left_out]
        model = ", ".join(named)
        more = {**about(last), "model": model, "files": files, "warnings": tuple(warnings)}
        return DryRun.of_steps(steps, verb="rank", about=more)


def _of_model(prospect: Prospect, name: str) -> list[PlannedStep]:
    options = prospect.options
    if prospect.data.normalised:
        views: tuple[PlannedView, ...] = (PlannedView(name="crop"),)
    else:
        own = prospect.backbone.spec.preprocessing
        fixed = fixed_views(ask_views(options.geometry, options.views), own, prospect.data)
        views = tuple(
            PlannedView(name=view.name.partition("+")[0], mirrored=view.mirrored) for view in fixed.views
        ) or (PlannedView(name=ask_views(options.geometry, options.views).start),)
    images = min(MEASURED_IMAGES, len(prospect.train))
    share = images / MEASURED_IMAGES
    load = load_step(prospect)
    measures = PlannedStep(
        name="measures",
        what="Measures of transferability.",
        images=images,
        passes=0.0,
        seconds_low=share * MEASURES_SECONDS[0],
        seconds_high=share * MEASURES_SECONDS[1] + 2.0,
        memory_bytes=load.memory_bytes,
    )
    steps = [load, *pass_steps(prospect, views, times=False), *measuring_steps(prospect), measures]
    return [dataclasses.replace(step, what=f"{name}: {step.what}") for step in steps]
