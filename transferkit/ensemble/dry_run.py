"""What combining finished runs would do and cost: nothing but reading and copying them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transferkit.core.memory import peak_memory
from transferkit.core.paths import expand
from transferkit.ensemble.combining import combine_runs
from transferkit.records import DryRun, PlannedFile, PlannedStep
from transferkit.result import check_free

__all__ = ["plan_combine"]


def plan_combine(
    runs: Sequence[str | Path],
    *,
    out: str | Path,
    method: str = "average",
    val: Any = None,
    overwrite: bool = False,
    seed: int = 0,
) -> DryRun:
    """What `transferkit combine` would do; weights of an average are chosen for that, as it takes no pass over images.

    Raises:
        TransferkitError: What `combine` would raise.
    """
    folder = expand(out)
    check_free(folder, overwrite=overwrite)
    if method == "average":
        said = combine_runs(runs, val=val, seed=seed)[1]
    else:
        said = (f"{method}: each run and each average of weights is scored on the images of val.",)
    size = sum(file.stat().st_size for run in runs for file in expand(run).iterdir() if file.is_file())
    step = PlannedStep(
        name="combine",
        what=" ".join(said),
        seconds_low=0.1,
        seconds_high=(5.0 if method == "average" else 600.0) * len(runs),
        memory_bytes=int(1.5 * peak_memory()),
        disk_bytes_low=0,
        disk_bytes_high=size,
    )
    file = PlannedFile(path=str(folder), action="replace" if folder.exists() else "write")
    return DryRun.of_steps([step], verb="combine", about={"files": (file,)})
