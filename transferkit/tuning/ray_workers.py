"""Workers of a search as tasks of a Ray cluster: the one that RAY_ADDRESS names, one that runs here, or a new one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transferkit.core.errors import OptionError, TransferkitError
from transferkit.core.progress import announce
from transferkit.tuning.storage import is_file

__all__ = ["divide", "run_on_ray"]

RESTARTS = 3
"""How often Ray starts a worker again whose process was lost."""

MOST_PER_GPU = 8


def divide(nodes: Sequence[tuple[int, int]], workers: int) -> tuple[int, float]:
    """CPUs and GPUs of each worker, as many as there are for all of them at once.

    Where there is room for fewer workers than that, one CPU and an eighth of a GPU: the others wait.

    Args:
        nodes: CPUs and GPUs of each.
        workers: >= 1.

    Returns:
        CPUs >= 1, and GPUs: 1, a part of one, or 0 if no node has any.

    Example:
        >>> divide([(8, 0), (4, 0)], 3)
        (4, 0.0)
        >>> divide([(32, 4)], 4), divide([(32, 4)], 8)
        ((8, 1.0), (4, 0.5))
    """
    sharing = range(1, MOST_PER_GPU + 1) if any(gpus for _, gpus in nodes) else (0,)
    for per_gpu in sharing:  # a GPU of its own is worth more than many cores
        for cpus in range(max(cpus for cpus, _ in nodes), 0, -1):
            places = (min(own // cpus, gpus * per_gpu) if per_gpu else own // cpus for own, gpus in nodes)
            if sum(places) >= workers:
                return cpus, 1 / per_gpu if per_gpu else 0.0
    return 1, 1 / MOST_PER_GPU if sharing != (0,) else 0.0


def run_on_ray(
    work: Callable[[int], None], *, workers: int, storage: str, takes_gpus: bool, progress: bool = False
) -> None:
    """Run the workers until all have ended; those whose process is lost are started again, or left out.

    Args:
        work: Works on the study with a number of threads.
        workers: How many.
        storage: URL of the study.
        takes_gpus: Whether a worker is given a GPU where there are any.
        progress: Whether lost workers are announced.

    Raises:
        OptionError: The study is a file, and the cluster has several machines.
        TransferkitError: A worker's own.
    """
    import ray

    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(logging_level=logging.WARNING)
    tasks: list[ray.ObjectRef[None]] = []
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        machines = {node["NodeManagerAddress"] for node in nodes}
        if len(machines) > 1 and is_file(storage):
            raise OptionError(
                f"The Ray cluster has {len(machines)} machines, and {storage} is a file on one of them. Give them a "
                "database: storage=postgresql://user:password@host/database."
            )
        sizes = [(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0))) for node in nodes]
        cpus, gpus = divide([(own, gpus if takes_gpus else 0) for own, gpus in sizes], workers)
        start = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RESTARTS)(_work_there)
        tasks = [start.remote(work, Path.cwd(), cpus) for _ in range(workers)]
        lost = [said for said in map(_wait_for, tasks) if said]
        for said in lost:
            announce(f"a worker was lost: {said}", enabled=progress)
    finally:
        if tasks:  # those that have ended are left alone: Ray crashes when one that was restarted is cancelled
            for task in ray.wait(tasks, num_returns=len(tasks), timeout=0)[1]:
                ray.cancel(task)
        if is_ours:
            ray.shutdown()


def _wait_for(task: Any) -> str:
    """Why the worker was lost; empty if it ended."""
    import ray

    try:
        ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TransferkitError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        return str(error).splitlines()[0]
    return ""


def _work_there(work: Callable[[int], None], folder: Path, threads: int) -> None:
    """Inside a task; where the machines share their files, paths are relative to where the search was started."""
    if folder.is_dir():
        os.chdir(folder)
    work(threads)
