"""What `fewshot` and `fewshot add` would do and cost: opened and timed briefly, nothing computed, nothing written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from transferkit.core.memory import peak_memory
from transferkit.core.paths import expand
from transferkit.core.scratch_cache import scratch_cache
from transferkit.data.predictable import list_predictable
from transferkit.records import DryRun, PlannedFile, PlannedStep
from transferkit.result import check_replaceable, load
from transferkit.scarce.adding import check_old_images, checked_name, extended_settings
from transferkit.scarce.few_shot import asked_views, check_episodes
from transferkit.scarce.few_shot_options import FewShotOptions, chosen_methods
from transferkit.workflow.dry_run import about, memory_of_features, open_prospect
from transferkit.workflow.dry_run.passes import audit_step, load_step, pass_steps
from transferkit.workflow.views.planned import plan_views

__all__ = ["plan_add", "plan_fewshot"]

EPISODE_SECONDS = (0.003, 0.03)
"""To draw and prepare an episode, beside the methods."""

METHOD_SECONDS = (0.0001, 0.01)
"""Of an episode: nearest mean to logistic regression."""

WHITENING_SECONDS = (1.0, 20.0)

ADD_SECONDS = (2.0, 60.0)
"""Features that are in the bank, to a pass over a thousand images."""

REPORT_BYTES = 400_000


def plan_fewshot(model: str | nn.Module, data: Any, options: FewShotOptions) -> DryRun:
    """What `fewshot` would do.

    Args:
        model, data, options: As for `fewshot`.

    Raises:
        TransferkitError: What `fewshot` would raise before its pass.
    """
    names = chosen_methods(options.method, transductive=options.transductive)
    with scratch_cache(options.cache) as scratch:
        prospect = open_prospect(model, data, options, scratch=scratch, trains=False)
        check_episodes(prospect.data.folds.take(prospect.rows), options)
        asked = None if prospect.data.normalised else asked_views(options)
        own = prospect.backbone.spec.preprocessing
        views = [
            view
            for view in plan_views(asked, own, prospect.data, image_seconds=prospect.paces.image_seconds, budget=None)
            if view.is_used
        ]
        steps = [load_step(prospect), audit_step(prospect), *pass_steps(prospect, views, times=False)]
        warnings = list(prospect.warnings)
        if options.prior not in (None, "unlabelled"):
            warnings.append("The images of prior= take passes of their own, which are not counted here.")
        each = [a + len(names) * b for a, b in zip(EPISODE_SECONDS, METHOD_SECONDS, strict=True)]
        whitening = (0.0, 0.0) if options.prior is None else WHITENING_SECONDS
        steps.append(
            PlannedStep(
                name="episodes",
                what=f"{options.episodes:,} episodes, answered by {', '.join(names)}.",
                seconds_low=whitening[0] + options.episodes * each[0],
                seconds_high=whitening[1] + options.episodes * each[1],
                memory_bytes=memory_of_features(prospect, len(prospect.rows)),
            )
        )
        return DryRun.of_steps(steps, verb="fewshot", about={**about(prospect), "warnings": tuple(warnings)})


def plan_add(
    run: str | Path, name: str, images: Any, *, out: str | Path, old_images: Any = None, overwrite: bool = False
) -> DryRun:
    """What `fewshot add` would do.

    Args:
        run, out: Folders of the finished run and of the larger one.
        name, images, old_images: As for `add_class`.
        overwrite: Whether a run in `out` may be replaced.

    Raises:
        TransferkitError: What `fewshot add` would raise before its pass.
    """
    result = load(run)
    checked_name(result, name)
    things, reasons = list_predictable(images)
    check_old_images(result, old_images)
    folder = expand(out)
    check_replaceable(folder, extended_settings(result.record, name), overwrite=overwrite)
    step = PlannedStep(
        name="add class",
        what=f"Features of {len(things)} new images and up to 1,000 old ones; one row of the classifier.",
        images=len(things),
        passes=float(max(1, len(result.preprocessing.views))),
        seconds_low=ADD_SECONDS[0],
        seconds_high=ADD_SECONDS[1],
        memory_bytes=int(1.5 * peak_memory()),
        disk_bytes_low=REPORT_BYTES,
        disk_bytes_high=_size(expand(run)) + 2 * REPORT_BYTES,
    )
    return DryRun.of_steps([step], verb="fewshot add", about={"files": _files(folder), "warnings": tuple(reasons)})


def _files(folder: Path) -> Sequence[PlannedFile]:
    names = ("model.safetensors", "result.json", "report.html")
    return tuple(
        PlannedFile(path=str(folder / name), action="replace" if (folder / name).exists() else "write")
        for name in names
    )


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
