"""What predicting, scoring and exporting with a finished run would do and cost: a few images are timed."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferkit.core.errors import DataError, OptionError
from transferkit.core.memory import peak_memory
from transferkit.core.paths import expand
from transferkit.core.scratch_cache import scratch_cache
from transferkit.data import MAX_PIXELS, check_data_path, check_prepared, open_data
from transferkit.data.glance import Glance
from transferkit.data.predictable import list_predictable
from transferkit.features import choose_device
from transferkit.records import DataSummary, DryRun, PlannedData, PlannedFile, PlannedStep
from transferkit.result.evaluation import check_classes, check_task, choose_images, target_opening
from transferkit.result.prediction import nothing_read
from transferkit.result.result import Result, load

__all__ = ["plan_evaluate", "plan_export", "plan_predict", "plan_shift"]

TIMED = 8
"""Images that are classified to know the pace."""

RANGE = (0.5, 1.8)
"""Of the time at that pace: larger batches are faster, other jobs make it slower."""

START_SECONDS = (1.0, 5.0)
"""Imports, beside loading the model."""

EXPORT_SECONDS = (2.0, 40.0)

EXPORT_MEMORY = 300 * 2**20
"""Of the exporter's packages."""

GRAPH_BYTES = 400_000
"""Of an ONNX file beside its weights, about."""

CELL_BYTES = {"csv": 12, "json": 30}
"""Of a probability in a file of answers, about."""

REPORT_BYTES = 400_000

FEATURE_BYTES = 16_800
"""Of the features of an image, about."""


@dataclass(frozen=True)
class _Pace:
    """Seconds to load a run, and of an image in it."""

    load: float
    image: float
    basis: str = "measured now"


def plan_predict(
    run: str | Path,
    images: Any,
    *,
    out: Path | None = None,
    form: str = "csv",
    max_pixels: int = MAX_PIXELS,
    device: str = "auto",
    coverage: float | None = None,
) -> DryRun:
    """What `transferkit predict` would do.

    Args:
        run: A finished run's folder.
        images: As for `Result.predict`.
        out: File of the answers; None prints them.
        form: "csv" or "json".
        max_pixels, device, coverage: As for `Result.predict`.

    Raises:
        RunFolderError: There is no finished run.
        OptionError: The run cannot give sets with that coverage.
        DataError: No image is there.
    """
    result, seconds = _loaded(run)
    if coverage is not None:
        result.set_rule(coverage)
    things, reasons = list_predictable(images)
    if not things:
        raise nothing_read(reasons)
    pace = _timed(result, things, seconds, max_pixels=max_pixels, device=device)
    size = 0 if out is None else len(things) * (len(result.classes) + 3) * CELL_BYTES[form]
    steps = [_load_step(pace), _classify("predict", result, len(things), pace, disk=size)]
    warnings = [f"{len(reasons)} of the images cannot be read: {reasons[0]}"] if reasons else []
    files = () if out is None else (_file(out, size),)
    about = {**_about(result, device), "files": files, "warnings": tuple(warnings)}
    return DryRun.of_steps(steps, verb="predict", about=about)


def plan_shift(
    run: str | Path, images: Any, *, out: Path | None = None, max_pixels: int = MAX_PIXELS, device: str = "auto"
) -> DryRun:
    """What `transferkit shift` would do without a remedy; each costs about as much again.

    Args:
        run, images, max_pixels, device: As for `plan_predict`.
        out: Folder of the outcome; None prints it.

    Raises:
        RunFolderError: There is no finished run.
        DataError: No image is there, or the run names no training images.
    """
    result, seconds = _loaded(run)
    things, reasons = list_predictable(images)
    if not things:
        raise nothing_read(reasons)
    planned, _, _ = _own(result, "train")
    pace = _timed(result, things, seconds, max_pixels=max_pixels, device=device)
    steps = [_load_step(pace), _classify("compare", result, len(things), pace, disk=len(things) * FEATURE_BYTES)]
    warnings = [f"{len(reasons)} of the images cannot be read: {reasons[0]}"] if reasons else []
    files = () if out is None else tuple(_file(out / name, REPORT_BYTES) for name in ("shift.json", "shift.html"))
    about = {**_about(result, device), "data": planned, "files": files, "warnings": tuple(warnings)}
    return DryRun.of_steps(steps, verb="shift", about=about)


def plan_evaluate(
    run: str | Path,
    data: Any = None,
    *,
    split: str = "test",
    root: str | Path | None = None,
    device: str = "auto",
    cache: str | Path | None = None,
) -> DryRun:
    """What `transferkit evaluate` would do; the run's own images are those that its record counts.

    Args:
        run: A finished run's folder.
        data, split, root, device, cache: As for `Result.evaluate`.

    Raises:
        RunFolderError: There is no finished run.
        DataError: The images are not there, or are of other classes.
    """
    result, seconds = _loaded(run)
    if data is None and split in result.metrics:
        about = {**_about(result, device), "warnings": ("It has been scored already: nothing is computed.",)}
        return DryRun.of_steps([_load_step(_Pace(seconds, 0.0))], verb="evaluate", about=about)
    planned, images, sample = _own(result, split) if data is None else _others(result, data, split, root, cache)
    pace = _timed(result, sample, seconds, max_pixels=MAX_PIXELS, device=device)
    is_kept = split not in result.metrics
    size = REPORT_BYTES if is_kept else 0
    steps = [_load_step(pace), _classify("evaluate", result, images, pace, disk=size)]
    weights = os.stat(expand(run) / "model.safetensors").st_size
    named = {"model.safetensors": weights, "result.json": size // 4, "report.html": size - size // 4}
    files = tuple(_file(expand(run) / name, part) for name, part in named.items()) if is_kept else ()
    return DryRun.of_steps(steps, verb="evaluate", about={**_about(result, device), "data": planned, "files": files})


def plan_export(run: str | Path, out: Path) -> DryRun:
    """What `transferkit export` would do.

    Args:
        run: A finished run's folder.
        out: The file.

    Raises:
        RunFolderError: There is no finished run.
    """
    result, seconds = _loaded(run)
    weights = os.stat(expand(run) / "model.safetensors").st_size
    low, high = EXPORT_SECONDS
    step = PlannedStep(
        name="export",
        what="Trace the model and write it.",
        seconds_low=low,
        seconds_high=high,
        memory_bytes=peak_memory() + 4 * weights + EXPORT_MEMORY,
        disk_bytes_low=int(0.9 * weights),
        disk_bytes_high=int(1.1 * weights) + 2 * GRAPH_BYTES,
    )
    files = (_file(out, weights + GRAPH_BYTES),)
    steps = [_load_step(_Pace(seconds, 0.0)), step]
    return DryRun.of_steps(steps, verb="export", about={**_about(result, "cpu"), "files": files})


def _loaded(run: str | Path) -> tuple[Result, float]:
    began = time.perf_counter()
    result = load(run)
    return result, time.perf_counter() - began


def _own(result: Result, split: str) -> tuple[PlannedData, int, list[Any]]:
    """The run's own images: what is known of them, how many are scored, and none of them."""
    named = result.record.settings.get("data")
    if not isinstance(named, (str, Path)):
        raise DataError(
            "The run does not name its images by a path. Pass them: evaluate(DATA), or transferkit evaluate "
            "run=DIR data.root=DIR."
        )
    check_data_path(named)
    summary = result.evidence.data
    counts = {name: summary.size(name) for name in summary.counts}
    if not counts.get(split):
        raise DataError(f"{summary.origin} has no {split} split, but {' and '.join(counts)}. Name one: split=val.")
    return _planned(summary, counts, is_exact=True), counts[split], []


def _others(
    result: Result, data: Any, split: str, root: str | Path | None, cache: str | Path | None
) -> tuple[PlannedData, int, list[Any]]:
    """Other images: listed, and the first few of those that are scored."""
    with scratch_cache(cache) as scratch:
        glance = Glance(scratch, max_pixels=MAX_PIXELS)
        found = open_data(
            data,
            root=root,
            **target_opening(result.task, result.record.settings, data),
            val=0.0,
            test=0.0,
            progress=False,
            cache=scratch,
            inspect=glance,
            trains=False,
        )
    check_prepared(result.preprocessing, preprocessed=found.normalised)
    check_task(found, result.task)
    check_classes(found, result.classes)
    indices = choose_images(found, split)
    summary = found.summary
    counts = {name: summary.size(name) for name in summary.counts}
    planned = _planned(summary, counts, is_exact=not glance.listed)
    return planned, len(indices), [found.original(int(at)) for at in indices[:TIMED]]


def _planned(summary: DataSummary, counts: Mapping[str, int], *, is_exact: bool) -> PlannedData:
    return PlannedData(
        origin=summary.origin, classes=summary.num_classes, images=counts, is_exact=is_exact, task=summary.task
    )


def _timed(result: Result, things: Sequence[Any], load: float, *, max_pixels: int, device: str) -> _Pace:
    """The pace over some images; over blank ones where they cannot be classified."""
    choose_device(device)
    sample = [things[at] for at in range(0, len(things), max(1, len(things) // TIMED))][:TIMED]
    for images, basis in ((sample, "measured now"), (_blanks(result), "estimated")):
        if not images:
            continue
        try:
            result.predict(images[:1], max_pixels=max_pixels, device=device)  # copies, kernels
            began = time.perf_counter()
            result.predict(images, max_pixels=max_pixels, device=device)
        except (DataError, OptionError):
            continue
        return _Pace(load, (time.perf_counter() - began) / len(images), basis)
    return _Pace(load, 0.0, "estimated")


def _blanks(result: Result) -> list[Any]:
    from PIL import Image

    height, width = result.preprocessing.height_width
    return [] if result.preprocessing.prepared else [Image.new("RGB", (width, height))] * TIMED


def _load_step(pace: _Pace) -> PlannedStep:
    low, high = START_SECONDS
    return PlannedStep(
        name="load run",
        what="Start, and load the model and its record.",
        seconds_low=low + 0.5 * pace.load,
        seconds_high=high + 2 * pace.load,
        basis="measured now",
        memory_bytes=peak_memory(),
    )


def _classify(name: str, result: Result, images: int, pace: _Pace, *, disk: int) -> PlannedStep:
    low, high = (share * images * pace.image for share in RANGE)
    views = max(1, len(result.preprocessing.views))
    return PlannedStep(
        name=name,
        what=f"Classify the images{f', each in {views} views' if views > 1 else ''}.",
        images=images,
        passes=float(views),
        seconds_low=low,
        seconds_high=high + 1.0,
        basis=pace.basis,
        memory_bytes=int(1.2 * peak_memory()) + 4 * images * len(result.classes),
        disk_bytes_low=disk // 2,
        disk_bytes_high=2 * disk,
    )


def _about(result: Result, device: str) -> dict[str, Any]:
    return {
        "model": result.evidence.backbone.name,
        "strategy": result.decision.strategy,
        "device": str(choose_device(device)),
    }


def _file(path: Path, size: int) -> PlannedFile:
    return PlannedFile(path=str(path), action="replace" if path.exists() else "write", bytes=size)
