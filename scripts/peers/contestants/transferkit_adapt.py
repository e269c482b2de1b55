"""transferkit: `adapt` with an empty cache; every `--option` is an argument of it."""

from __future__ import annotations

import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import transferkit as tk
from peers.contestants.protocol import Job, Stopwatch, contest, seed_everything

LIBRARIES = ("torchvision", "timm", "sklearn.linear_model")
"""What `adapt` imports when it needs it; imported before the clock starts, like the libraries of all contestants."""

TRAINING_LIBRARY = "pytorch_lightning"
"""The same, where a network may be trained."""


def parsed(value: str) -> Any:
    """A number, true, false or null where it is one; else the text."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def run(job: Job, watch: Stopwatch) -> dict[str, Any]:
    """Loading the backbone, auditing all images and writing model and report all count; scoring the test does not."""
    seed_everything(job.seed, job.threads)
    options = {name: parsed(value) for name, value in job.options.items()}
    if job.budget is not None:
        options["budget"] = job.budget
    model = options.pop("model")
    trains = options.get("strategy") != "linear_probe"
    for library in (*LIBRARIES, TRAINING_LIBRARY) if trains else LIBRARIES:
        importlib.import_module(library)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        watch.ready()
        result = tk.adapt(
            model,
            job.task,
            image_size=job.size,
            seed=job.seed,
            evaluate=False,
            progress=False,
            out=Path(folder, "run"),
            cache=cache,
            **options,
        )
        with watch.evaluation():
            accuracy = result.evaluate(progress=False, cache=cache).accuracy
        watch.record(accuracy, "done")
    decision = result.decision
    return {"strategy": decision.strategy, "stage": decision.stage, "reasons": list(decision.reasons)}


if __name__ == "__main__":
    contest(run)
