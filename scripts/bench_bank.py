"""Overhead of the feature bank: identifying the network, timing it, and listing a large shelf.

    python scripts/bench_bank.py [--rounds 5] [--rows 1000000] [--out benchmarks/bank.json]

Estimate: the fingerprint is one forward pass of two images, the digest of the weights one read of all of them, the
speed two to six rounds of a batch per worker. Listing N rows sorts N names of 32 bytes: 32 N bytes read, about four
times that in memory at the peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch

from transferkit import load_backbone
from transferkit.core.provenance import environment
from transferkit.features import FeatureBank, image_seconds
from transferkit.features.engines.torch import layers_digest, origin_of, stage_extractor
from transferkit.features.extraction import open_shelves
from transferkit.nn import Backbone
from transferkit.nn.backbone import weights_digest

MODEL = "packaged/tf_efficientnet_lite0"
SIZE = 96
AT_ONCE = 8192


def name_network(backbone: Backbone) -> dict[str, object]:
    """The names in a shelf's identity."""
    layers, weights = layers_digest(backbone.trunk), weights_digest(backbone.trunk)
    return origin_of(backbone, layers, weights, torch.device("cpu"))


def timed(work: Callable[[], object], rounds: int) -> dict[str, float]:
    """Medians of wall-clock and CPU seconds, after one warm-up round."""
    work()
    walls, processors = [], []
    for _ in range(rounds):
        wall, processor = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return {"seconds": round(statistics.median(walls), 4), "processor": round(statistics.median(processors), 4)}


def measure_network(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Fixed costs of every pass; `opening` a shelf includes its name and the fingerprint."""
    backbone, bank, cpu = load_backbone(MODEL, image_size=SIZE), FeatureBank(folder), torch.device("cpu")
    extractor = stage_extractor(backbone, pooling="avg+max", device=cpu)
    return {
        "naming": timed(
            lambda: origin_of(backbone, layers_digest(backbone.trunk), weights_digest(backbone.trunk), cpu), rounds
        ),
        "opening": timed(lambda: open_shelves(bank, extractor.identity()), rounds),
        "pace": timed(lambda: image_seconds(backbone, device="cpu"), rounds),
    }


def peak_memory(work: Callable[[], object]) -> int:
    """Peak memory of the work in MB, including arrays."""
    tracemalloc.start()
    work()
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return round(held / 2**20)


def measure_listing(folder: Path, rows: int) -> dict[str, object]:
    """Time to list a shelf of that many rows, and to look up all of them in another order."""
    letters = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    drawn = np.random.default_rng(0).integers(0, 16, (rows, 32), dtype=np.uint8)
    ids = np.frombuffer(letters[drawn].tobytes(), dtype="S32")
    bank = FeatureBank(folder)
    shelf = bank.shelf({"rows": rows}, {"top": 1})
    with shelf.writer() as writer:
        for start in range(0, rows, AT_ONCE):
            part = ids[start : start + AT_ONCE]
            writer.append(part, np.zeros((len(part), 1), dtype=np.float32))
    found: dict[str, object] = {}
    for name, work in {"missing": lambda: shelf.missing(ids), "table": lambda: shelf.table(ids[::-1])}.items():
        wall, processor = time.perf_counter(), time.process_time()
        work()
        found[name] = {
            "seconds": round(time.perf_counter() - wall, 3),
            "processor": round(time.process_time() - processor, 3),
        }
    again = bank.shelf({"rows": rows}, {"top": 1})
    return {**found, "peak_mb": peak_memory(lambda: again.table(ids))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "script": "scripts/bench_bank.py",
            "date": date.today().isoformat(),
            "machine": environment(seed=0, device="cpu"),
            "network": measure_network(Path(folder) / "network", arguments.rounds),
            "rows": arguments.rows,
            "listing": measure_listing(Path(folder) / "rows", arguments.rows),
        }
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
