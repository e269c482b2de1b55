"""Planted bugs: how many the training doctor finds within 50 steps, whether it names the right cause, and how often
it alarms over healthy runs; `torch-audit` on the same scripts beside it.

    pip install torch-audit==0.3.0
    python scripts/make_tasks.py --out tasks
    python scripts/bench_doctor.py --root tasks [--out benchmarks/doctor.json] [--jobs 2]

A script is a network (EfficientNet-Lite0 and MobileNetV2 with ImageNet weights; a ResNet-18 and a small ViT trained
on drawn characters first), a strategy, a task, its loaders, optimizer and loop. Each bug of `planted/bugs.py` is
planted in one script per network, with strategies and tasks in turn; 72 scripts stay healthy. The doctor is given what
the script holds, runs its checks, and watches the first 50 steps; it is judged by the first cause that it names.
Thresholds were set on the tasks stamps and digits, which are not among those here. Rows are kept as they come: a run
that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import torch
from planted.auditor import audit
from planted.bugs import BUGS
from planted.doctors import consult
from planted.networks import NETWORKS
from planted.pictures import Task, read_task
from planted.script import STRATEGIES, Script, write_script

from transferkit.core.provenance import environment

TASKS = ("textures", "photo_tiles", "fashion", "glyphs", "orientation", "hand_signs", "scripts")

PRETRAINING = "characters"

Case = tuple[str, str, str, str]
"""Bug ("" for none), network, strategy, task."""


def list_cases() -> Iterator[Case]:
    """All scripts: healthy ones, then those with a bug."""
    for number, network in enumerate(NETWORKS):
        for turn, strategy in enumerate(STRATEGIES):
            for more in range(2):
                yield "", network, strategy, TASKS[(number + turn + 3 * more) % len(TASKS)]
    for number in range(len(NETWORKS)):  # every bug once, then once more: a run that is cut short has seen all
        for place, bug in enumerate(BUGS.values()):
            network = NETWORKS[(place + number) % len(NETWORKS)]
            fitting = [one for one in STRATEGIES if bug.fits is None or bug.fits(network, one)]
            if fitting:
                strategy = fitting[(place + 2 * number) % len(fitting)]
                yield bug.name, network, strategy, TASKS[(place + 3 * number) % len(TASKS)]


@cache
def _task(folder: Path, images: int = 400) -> Task:
    return read_task(folder, images=images)


def _write(case: Case, root: Path) -> Script:
    bug, network, strategy, task = case
    script = write_script(_task(root / task), network, strategy, pretraining=_task(root / PRETRAINING, 2000))
    if bug:
        BUGS[bug].plant(script)
    return script


def run_case(case: Case, root: Path) -> dict[str, Any]:
    """What the doctors say of one script."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    ours = consult(_write(case, root))
    seconds = time.perf_counter() - start
    bug, network, strategy, task = case
    return {
        "bug": bug,
        "network": network,
        "strategy": strategy,
        "task": task,
        "alarms": ours["alarms"],
        "notes": ours["notes"],
        "seconds": round(seconds, 1),
        "torch_audit": audit(_write(case, root)),
    }


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Recall, right causes and alarms over healthy runs."""
    sick = [one for one in rows if one["bug"]]
    healthy = [one for one in rows if not one["bug"]]
    table = {}
    for name, bug in BUGS.items():
        own = [one for one in sick if one["bug"] == name]
        if own:
            table[name] = {
                "scripts": len(own),
                "found": sum(bool(one["alarms"] or one["notes"]) for one in own),
                "right": sum(_first(one) in bug.causes for one in own),
                "named": sum(bool(bug.causes & {*one["alarms"], *one["notes"]}) for one in own),
                "torch_audit_right": sum(bool(bug.rules & set(one["torch_audit"])) for one in own),
            }
    total = max(len(sick), 1)
    return {
        "scripts_with_a_bug": len(sick),
        "found": sum(one["found"] for one in table.values()) / total,
        "right": sum(one["right"] for one in table.values()) / total,
        "named": sum(one["named"] for one in table.values()) / total,
        "healthy": len(healthy),
        "healthy_with_alarm": sum(bool(one["alarms"]) for one in healthy),
        "healthy_with_note": sum(bool(one["notes"]) for one in healthy),
        "torch_audit_right": sum(one["torch_audit_right"] for one in table.values()) / total,
        "healthy_with_torch_audit_finding": sum(bool(one["torch_audit"]) for one in healthy),
        "bugs": table,
    }


def _first(row: dict[str, Any]) -> str | None:
    return next(iter([*row["alarms"], *row["notes"]]), None)


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of make_tasks.py")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/doctor.json"))
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--only", default="", help="bugs whose names contain this, or 'healthy'")
    given = parser.parse_args()
    known = json.loads(given.out.read_text())["rows"] if given.out.is_file() else []
    finished = {(one["bug"], one["network"], one["strategy"], one["task"]) for one in known}
    cases = [one for one in list_cases() if one not in finished and given.only in (one[0] or "healthy")]
    # Not a pool of multiprocessing: its processes may not have loaders with workers.
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run_case, case, given.root) for case in cases]):
            known.append(row := done.result())
            print(f"{len(known)} {row['bug'] or 'healthy'}, {row['network']}, {row['strategy']}, {row['task']}: "
                  f"{row['alarms']} {row['notes']} ({row['seconds']} s)", flush=True)  # fmt: skip
            _save(given.out, known)
    _save(given.out, known)


def _save(path: Path, rows: list[dict[str, Any]]) -> None:
    ordered = sorted(rows, key=lambda one: (one["bug"], one["network"], one["strategy"], one["task"]))
    plain = {
        "script": "scripts/bench_doctor.py",
        "date": date.today().isoformat(),
        "machine": environment(seed=0, device="cpu"),
        "summary": summarise(rows),
        "rows": ordered,
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    main()
