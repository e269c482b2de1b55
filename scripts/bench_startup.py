"""Start-up time: imports and the whole command relative to `import torch`, and how much of it is work.

    python scripts/bench_startup.py [--images 150] [--size 96] [--rounds 5] [--out benchmarks/startup.json]

Estimate: no network runs before torch is imported, so that is the unit. On top come this package (about 100 small
modules and SciPy's linear algebra), timm for a network of its zoo (it imports all its models, torchvision and with it
torch's compiler) and scikit-learn for a logistic head.

Every row is a new process. The rows alternate, and the minimum CPU time (user and system) of all rounds counts: it
depends less on other processes than wall-clock time. "Work" is the time of the same call with everything imported.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from bench_features import MODEL, write_photos

from transferkit.core.provenance import environment

IMPORTS = {
    "import torch": "import torch",
    "import transferkit.api": "import transferkit.api",
    "import torch, timm": "import torch, timm",
    "import torch, sklearn.linear_model": "import torch, sklearn.linear_model",
    "import torch, pytorch_lightning": "import torch, pytorch_lightning",
}

WORK = """
import json, sys, time
import transferkit as tk
model, photos, size, place = sys.argv[1:]

def seconds(run, bank):
    start = time.process_time()
    tk.adapt(model, photos, strategy="linear_probe", image_size=int(size), progress=False,
             out=f"{place}/work-{run}", cache=f"{place}/work-bank-{bank}")
    return time.process_time() - start

seconds("first", 1)
print(json.dumps({"cold": seconds("cold", 2), "warm": seconds("warm", 2)}))
"""


class Cost(NamedTuple):
    """Seconds of one process."""

    cpu: float
    wall: float


def cost(arguments: Sequence[str]) -> Cost:
    """CPU seconds of a Python process with these arguments, including its child processes."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments} ended with {process.returncode}.")
    return Cost(used.ru_utime + used.ru_stime, wall)


def command(photos: Path, size: int, place: Path, bank: str) -> list[str]:
    """The arguments of one whole run."""
    words = {
        "data.root": photos,
        "image_size": size,
        "model": MODEL,
        "cache": place / bank,
        "out": place / f"run-{bank}",
    }
    told = [f"{key}={value}" for key, value in words.items()]
    return ["-m", "transferkit.cli", "adapt", "strategy=linear_probe", "data=folder", "progress=false", *told]


def one_round(photos: Path, size: int) -> tuple[dict[str, Cost], dict[str, float]]:
    """A new process for each row, and the work of a run with an empty bank and with a full one."""
    costs = {name: cost(["-c", script]) for name, script in IMPORTS.items()}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        costs["adapt, cold"] = cost(command(photos, size, place, "bank"))
        costs["adapt, warm"] = cost(command(photos, size, place, "bank"))
        arguments = [sys.executable, "-c", WORK, MODEL, str(photos), str(size), str(place)]
        done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
    return costs, json.loads(done.stdout)


def summarise(rounds: Sequence[tuple[Mapping[str, Cost], Mapping[str, float]]]) -> dict[str, object]:
    """The minimum of all rounds, and its ratio to `import torch`."""
    cpu = {name: min(costs[name].cpu for costs, _ in rounds) for name in rounds[0][0]}
    wall = {name: min(costs[name].wall for costs, _ in rounds) for name in rounds[0][0]}
    work = {bank: min(worked[bank] for _, worked in rounds) for bank in rounds[0][1]}
    torch = cpu["import torch"]
    return {
        "cpu seconds": cpu,
        "wall seconds": wall,
        "work, cpu seconds": work,
        "times import torch": {name: seconds / torch for name, seconds in cpu.items()},
        "without its work, times import torch": {
            bank: (cpu[f"adapt, {bank}"] - seconds) / torch for bank, seconds in work.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder)
        write_photos(photos, options.images)
        for _ in range(options.rounds):
            rounds.append(one_round(photos, options.size))
            print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    text = json.dumps(
        {
            "script": "scripts/bench_startup.py",
            "date": date.today().isoformat(),
            "machine": environment(seed=0, device="cpu"),
            "images": options.images,
            "size": options.size,
            **summarise(rounds),
            "rounds": [{"cpu, wall": costs, "work": work} for costs, work in rounds],
        },
        indent=1,
    )
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
