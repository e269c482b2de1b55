"""What all contestants share: their arguments, the clock that stops during evaluation, and the JSON that they print."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

DISTRIBUTIONS = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "scikit-learn",
    "fastai",
    "lightning",
    "pytorch-lightning",
    "autogluon.multimodal",
)
"""Distributions whose versions are recorded."""


@dataclass(frozen=True)
class Job:
    """What a contestant is given.

    Args:
        task: Folder with train/<class>/* and test/<class>/*.
        size: Side of the input in pixels.
        weights: The backbone's state dict under timm's names (safetensors); its metadata describes it.
        seed: Of everything random.
        threads: Cores to use.
        started: When the process was started, in seconds of `time.time()`.
        epochs: Passes over the training images, if the contestant counts in epochs.
        budget: Training stops after the epoch in which it exceeds this many seconds; None: no limit.
        options: The contestant's own settings.
    """

    task: Path
    size: int
    weights: Path
    seed: int
    threads: int
    started: float
    epochs: int
    budget: float | None
    options: dict[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """Class names, sorted; a label is a position in this list."""
        return sorted(path.name for path in (self.task / "train").iterdir() if path.is_dir())

    def files(self, split: str) -> tuple[list[Path], list[int]]:
        """Images of a split and their labels, sorted by class and name."""
        labelled = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((self.task / split / name).glob("*"))
        ]
        return [path for path, _ in labelled], [label for _, label in labelled]

    @property
    def batch(self) -> int:
        """Images per training step: 16, or 64 from 1,000 images on."""
        return 16 if len(self.files("train")[0]) < 1000 else 64


class Stopwatch:
    """Measures wall-clock seconds, without those spent on evaluation.

    Attributes:
        points: What was measured so far.
        ready_after: Seconds from the start of the process to `ready`; None before.
    """

    def __init__(self, started: float, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._started = started
        self._evaluated = 0.0
        self.ready_after: float | None = None
        self.points: list[dict[str, Any]] = []

    @property
    def since_start(self) -> float:
        """Seconds since the process was started, without evaluation."""
        return self._clock() - self._started - self._evaluated

    @property
    def since_ready(self) -> float:
        """Seconds since `ready`, without evaluation."""
        if self.ready_after is None:
            raise RuntimeError("Stopwatch.ready() must be called before points are recorded.")
        return self.since_start - self.ready_after

    def ready(self) -> None:
        """Libraries are imported, the files listed, the pretrained network loaded; no image has been decoded."""
        self.ready_after = self.since_start

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """The clock stands still inside."""
        start = self._clock()
        try:
            yield
        finally:
            self._evaluated += self._clock() - start

    def record(self, accuracy: float, done: str) -> None:
        """Add a point: test accuracy of the model at this moment, and what was done by now."""
        self.points.append(
            {
                "seconds": round(self.since_ready, 2),
                "since_start": round(self.since_start, 2),
                "accuracy": round(float(accuracy), 5),
                "done": done,
            }
        )

    def exceeds(self, budget: float | None) -> bool:
        """Whether the budget is spent."""
        return budget is not None and self.since_ready >= budget


def installed() -> dict[str, str]:
    """Version of each of `DISTRIBUTIONS` that this Python has, and its own."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def parse(arguments: list[str] | None = None) -> Job:
    """The job from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--started", type=float, default=None)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--budget", type=float, default=None)
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    given = vars(parser.parse_args(arguments))
    options = dict(pair.split("=", 1) for pair in given.pop("option"))
    given["started"] = time.time() if given["started"] is None else given["started"]
    return Job(**given, options=options)


def seed_everything(seed: int, threads: int) -> None:
    """Seed Python, NumPy and torch, and set torch's threads."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - fastai and Lightning read the global generator
    torch.manual_seed(seed)
    torch.set_num_threads(threads)


def accuracy_of(answers: Any, labels: list[int]) -> float:
    """Share of answers that equal their label."""
    pairs = list(zip([int(one) for one in answers], labels, strict=True))
    return sum(given == wanted for given, wanted in pairs) / len(pairs)


def contest(run: Callable[[Job, Stopwatch], dict[str, Any]]) -> None:
    """Run a contestant and print its result, one JSON object and nothing else, on standard output.

    Args:
        run: Trains and records points; returns notes: settings that are worth keeping.
    """
    job = parse()
    answer = os.dup(1)
    os.dup2(2, 1)  # what libraries print goes to standard error
    watch, notes, error = Stopwatch(job.started), {}, None
    try:
        notes = run(job, watch)
    except Exception as problem:
        traceback.print_exc()
        error = f"{type(problem).__name__}: {problem}"
    result = {
        "points": watch.points,
        "ready": None if watch.ready_after is None else round(watch.ready_after, 2),
        "notes": notes,
        "error": error,
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "versions": installed(),
    }
    with os.fdopen(answer, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    print(json.dumps(installed()))
