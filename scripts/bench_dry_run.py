"""How well `dry_run=json` forecasts seconds, memory and disk of real runs with a fresh cache.

    python scripts/bench_dry_run.py --tasks TASKS/stamps TASKS/photo_tiles [--out benchmarks/dry_run.json]

Every row is two new processes: the dry run, then the command. Seconds are wall-clock from outside, memory
is the peak of the process, disk what lies in the run's folder and in the cache afterwards. On a machine that others use
both the paces and the runs are noisy: a row says how busy it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from transferkit.core.provenance import environment
from transferkit.core.serialization import from_json
from transferkit.records import DryRun

MODEL = "packaged/tf_efficientnet_lite0"
STRATEGIES = ("auto", "linear_probe", "lp_ft")


def run(words: Sequence[str]) -> tuple[str, float, int]:
    """Standard output, wall-clock seconds and peak bytes of a command."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "transferkit.cli", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} failed with {process.returncode}.")
    return text, time.perf_counter() - began, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def written(*folders: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def compare(task: Path, strategy: str, size: int) -> dict[str, Any]:
    """A forecast beside what came."""
    with tempfile.TemporaryDirectory() as made:
        out, cache = Path(made) / "run", Path(made) / "cache"
        words = ["adapt", f"model={MODEL}", f"data.root={task}", f"image_size={size}", f"strategy={strategy}"]
        words += [f"out={out}", f"cache={cache}", "progress=false"]
        load = os.getloadavg()[0]
        text, own_seconds, _ = run([*words, "dry_run=json"])
        plan = from_json(DryRun, json.loads(text))
        assert not out.exists(), "the dry run wrote something"
        assert not cache.exists(), "the dry run wrote something"
        _, seconds, memory = run(words)
        disk = written(out, cache)
        kept = json.loads((out / "result.json").read_text(encoding="utf-8"))
    low, high = plan.seconds_low, plan.seconds_high
    return {
        "task": task.name,
        "strategy": strategy,
        "decided": kept["decision"]["strategy"],
        "images": plan.data.images if plan.data else {},
        "load before": round(load, 1),
        "dry run seconds": round(own_seconds, 1),
        "seconds": {"low": round(low, 1), "high": round(high, 1), "real": round(seconds, 1)},
        "seconds hold": low / 2 <= seconds <= 2 * high,
        "seconds within": low <= seconds <= high,
        "memory": {"forecast": plan.memory_bytes, "real": memory},
        "memory holds": 0.5 <= plan.memory_bytes / memory <= 2,
        "disk": {"low": plan.disk_bytes_low, "high": plan.disk_bytes_high, "real": disk},
        "disk holds": 0.8 * plan.disk_bytes_low <= disk <= 1.2 * plan.disk_bytes_high,
        "phases": {name: round(value, 2) for name, value in kept["seconds"].items()},
        "steps": [[step.name, round(step.seconds_low, 2), round(step.seconds_high, 2)] for step in plan.steps],
    }


def main() -> None:
    """Compare on every task and strategy, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=Path, nargs="+", required=True)
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--shared", action="store_true", help="others use the machine")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/dry_run.json"))
    options = parser.parse_args()
    rows = []
    for task in options.tasks:
        for strategy in options.strategies:
            row = compare(task, strategy, options.size)
            print(
                json.dumps({name: row[name] for name in row if name not in ("phases", "steps", "images")}), flush=True
            )
            rows.append(row)
    record = {
        "script": "scripts/bench_dry_run.py",
        "date": date.today().isoformat(),
        "machine": {**environment(seed=0, device="cpu"), "shared with others": options.shared},
        "model": MODEL,
        "image_size": options.size,
        "rows": rows,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
