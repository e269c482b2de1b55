"""The closed-form probe over many images: seconds and memory, without the frozen pass.

    python scripts/bench_probe_scale.py [--images 1000 4000 16000 64000 1000000] [--out benchmarks/probe_scale.json]

Estimate for N images, D features, K classes, P = 11 penalties: the moments cost 2 N D^2 operations, the projection on
their eigenvectors 2 N D^2 in each of two passes, held-back scores 2 N D K P, the eigendecomposition 9 D^3 once. At
N = 1,000,000, D = 1280 and K = 100 that is 13 x 10^12 operations, about two minutes on two cores. Memory: a chunk, D^2
numbers a few times, P N bits of right or wrong; of the logistic head 32,768 x D numbers, the most that it is fitted to.

Features are drawn chunk by chunk from a seed, so that they take no memory and no disk. Every part draws them anew in
each of its passes; how long one such pass takes is recorded. Every number of images runs in a process of its own, whose
peak of resident memory is recorded.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from transferkit.core.provenance import environment
from transferkit.measure import fit_logistic, fit_ridge, fitting_threads, ridge_paths
from transferkit.measure.scaled_rows import Chunks

FEATURES, CLASSES, CHUNK = 1280, 100, 4096
NOISE = 6.0
"""Standard deviation of a feature within its class, in units of that of the classes' means."""

LINEAR = (1000, 4000, 16000)
"""Numbers of images between which the growth of time is stated."""


def draw(images: int) -> tuple[Chunks, np.ndarray]:
    """A pass over (N, D) float32 features, and labels."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(CLASSES, FEATURES)).astype(np.float32)
    labels = np.arange(images) % CLASSES

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, images, CHUNK):
            known = labels[start : start + CHUNK]
            noise = np.random.default_rng(start).standard_normal((len(known), FEATURES), dtype=np.float32)
            yield means[known] + np.float32(NOISE) * noise

    return chunks, labels


def measure(images: int) -> dict[str, Any]:
    """Seconds of each part, and the peak of memory, in this process."""
    chunks, labels = draw(images)
    blocks, seconds = {"top": slice(0, FEATURES)}, dict[str, float]()
    before = peak()
    start = time.perf_counter()
    for _ in chunks():
        pass
    seconds["drawing features, one pass"] = time.perf_counter() - start
    accuracy = 0.0
    with fitting_threads(images):
        for name in ("probe of stages", "ridge head", "logistic head"):
            start = time.perf_counter()
            if name == "probe of stages":
                path = ridge_paths(chunks, labels, blocks, classes=CLASSES)["top"]
                accuracy = float(path.accuracy[path.best])
            elif name == "ridge head":
                fit_ridge(chunks, labels, blocks, classes=CLASSES)
            else:
                fit_logistic(chunks, labels, blocks)
            seconds[name] = time.perf_counter() - start
    return {
        "images": images,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "accuracy": round(accuracy, 4),
        "gib_before": round(before, 3),
        "gib_peak": round(peak(), 3),
    }


def peak() -> float:
    """Peak of resident memory so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def growth(rows: list[Mapping[str, Any]], part: str) -> float | None:
    """Exponent of time in N between the smallest and the largest of `LINEAR`; None if they were not run."""
    known = {row["images"]: row["seconds"][part] for row in rows}
    if not {LINEAR[0], LINEAR[-1]} <= known.keys():
        return None
    return math.log(known[LINEAR[-1]] / known[LINEAR[0]]) / math.log(LINEAR[-1] / LINEAR[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[*LINEAR, 64_000, 1_000_000])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--one", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one)))
        return
    rows = list[dict[str, Any]]()
    for images in options.images:
        command = [sys.executable, __file__, "--one", str(images)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(rows[-1], flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps(record(rows), indent=1) + "\n", encoding="utf-8")
    print(record(rows)["exponent"])


def record(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is written: after every number of images, so that an interrupted run leaves the rows it finished."""
    return {
        "script": "scripts/bench_probe_scale.py",
        "date": date.today().isoformat(),
        "machine": {**environment(seed=0, device="cpu"), "threads": os.cpu_count()},
        "features": FEATURES,
        "classes": CLASSES,
        "rows": rows,
        "exponent": {part: growth(rows, part) for part in ("probe of stages", "ridge head", "logistic head")},
    }


if __name__ == "__main__":
    main()
