"""TrainCheck 0.2.0 (OSDI 2025) on the planted bugs: invariants of healthy runs, checked on runs with a bug.

    pip install --target FOLDER --no-deps traincheck==0.2.0 astor numba llvmlite pandas polars polars-runtime-32 \
        orjson watchdog pytz python-dateutil six tzdata
    python scripts/bench_traincheck.py --installed FOLDER [--strategies plain head] [--out benchmarks/traincheck.json]

A run is a plain script of a few steps on drawn shapes, with the loop written out, as TrainCheck rewrites its source.
Invariants are inferred from healthy runs of some seeds. Runs of other seeds, healthy and with one bug each, are traced
and checked. A bug is detected if an invariant is violated that no held-out healthy run violates. With --out a file of
that name is continued.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import torch
from planted import networks
from planted.bugs import BUGS
from planted.pictures import draw_task
from planted.script import Script, write_script

from transferkit.core.provenance import environment

SHAPES = ("disc", "square", "triangle", "stripes", "ring")

HEALTHY, HELD_OUT, PLANTED = (0, 1), (10, 11, 12), 20
"""Seeds of the runs that invariants are inferred from, of the healthy runs that are checked, of the runs with bugs."""

ONLY_IN_USE = (
    "mean and std in use differ",
    "crop in use differs",
    "interpolation in use differs",
    "names in use in another order",
)
"""Bugs of the service alone: nothing of the traced script differs."""

TOGETHER, SHOWN = 6, 6
"""Traces that a checker reads in one go; sentences that are kept of a run."""

LONGEST = 900
"""Seconds that a command may take."""

CASE = """
import torch

names = {{id(one): name for name, one in script.model.named_parameters()}}
model = script.model
optimizer = rebind(model, script.optimizer, names)
plain = script.loss.__name__ == "cross_entropy"
criterion = torch.nn.functional.cross_entropy if plain else script.loss


def evaluate():
    if script.evaluates:
        model.eval()
    with torch.no_grad():
        for number, (images, labels) in enumerate(test_loader):
            outputs = model(images)
            if number:
                break
    model.train()
    if script.freeze is not None:
        script.freeze.set_modes()


torch.manual_seed(script.seed)
train_loader, test_loader = script.train, script.held_back
model.train()
if script.freeze is not None:
    script.freeze.set_modes()
for step, (images, labels) in enumerate(repeat(train_loader, {steps})):
    if script.zero_gradients:
        optimizer.zero_grad()
    outputs = model(images)
    loss = criterion(outputs, labels)
    loss.backward()
    script.in_step()
    optimizer.step()
    if step in ({steps} // 2, {steps} - 1):
        evaluate()
"""
"""The script that is traced; torch is instrumented where it is imported, so that the network's pretraining is not."""

BUILD = """
from bench_traincheck import build, rebind
from planted.script import _repeat as repeat

script = build({weights!r}, {strategy!r}, {seed}, {bug!r})
"""


def build(weights: str, strategy: str, seed: int, bug: str | None) -> Script:
    """The script of a case, with its bug."""
    torch.set_num_threads(1)
    # TrainCheck asks every attribute of torch for its name, and this one asks a driver that is not there.
    torch.backends.cuda.cufft_plan_cache = None
    networks.KNOWN["tiny"] = torch.load(weights, weights_only=True)
    script = write_script(draw_task(SHAPES), "tiny", strategy, pretraining=draw_task(SHAPES, images=20), seed=seed)
    if bug is not None:
        BUGS[bug].plant(script)
    return script


def rebind(model: torch.nn.Module, optimizer: torch.optim.Optimizer, names: dict[int, str]) -> torch.optim.Optimizer:
    """The optimizer with the parameters that TrainCheck put in place of the model's own."""
    now = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [now[names[id(one)]] if id(one) in names else one for one in group["params"]]
    return optimizer


class TrainCheck:
    """Its commands, in a folder.

    Args:
        installed: Where it is installed.
        folder: For scripts, traces and results.
        style: Of tracking the model's parameters.
        steps: Of training in a run.
    """

    def __init__(self, installed: Path, folder: Path, style: str, steps: int) -> None:
        self.installed, self.folder, self.style, self.steps = installed, folder, style, steps
        paths = [Path(__file__).parent, Path(__file__).parents[1], installed]
        self.paths = os.pathsep.join(str(one.resolve()) for one in paths)
        self.weights = folder / "tiny.pt"
        if not self.weights.exists():
            torch.save(networks._pretrained("tiny", draw_task(SHAPES, images=320, seed=1)), self.weights)

    def command(self, module: str, *arguments: str | Path) -> float:
        """Run one; returns seconds."""
        began = time.perf_counter()
        call = [sys.executable, "-m", f"traincheck.{module}", *map(str, arguments)]
        found = subprocess.run(
            call,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": self.paths, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
        if found.returncode:
            raise RuntimeError((found.stdout + found.stderr)[-3000:])
        return time.perf_counter() - began

    def collect(self, name: str, strategy: str, seed: int, bug: str | None, *options: str | Path) -> dict[str, Any]:
        """Trace a run, if that was not done before: seconds and size of the trace, or the error."""
        out, known = self.folder / name, self.folder / f"{name}.json"
        if known.exists():
            return dict(json.loads(known.read_text(encoding="utf-8")))
        shutil.rmtree(out, ignore_errors=True)
        source, shell = self.folder / f"{name}.py", self.folder / f"{name}.sh"
        text = BUILD.format(weights=str(self.weights), strategy=strategy, seed=seed, bug=bug)
        source.write_text(text + CASE.format(steps=self.steps), encoding="utf-8")
        shell.write_text(f"export PYTHONPATH={self.paths}\nexec {sys.executable} -u {source.name}\n", encoding="utf-8")
        try:
            seconds = self.command(
                "collect_trace", "-p", source, "-s", shell, "--models-to-track", "model",
                "--model-tracker-style", self.style, "--output-dir", out, *options,
            )  # fmt: skip
            traces = [one for one in out.iterdir() if one.name.startswith(("trace_", "proxy_log.json"))]
            size = sum(one.stat().st_size for one in traces) / 2**20
            found: dict[str, Any] = {"collect_seconds": round(seconds, 1), "megabytes": round(size, 1)}
            for one in out.glob("instrumentation_*.log"):
                one.unlink()
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            found = {"error": str(error)[-500:]}
        known.write_text(json.dumps(found), encoding="utf-8")
        return found

    def infer(self, strategy: str, names: list[str]) -> tuple[Path, float]:
        """The file of invariants of some traces, and seconds."""
        out, known = self.folder / f"{strategy}-invariants.json", self.folder / f"{strategy}-infer.json"
        if not known.exists():
            seconds = self.command("infer_engine", "-f", *(self.folder / one for one in names), "-o", out)
            known.write_text(json.dumps(seconds), encoding="utf-8")
        return out, round(float(json.loads(known.read_text(encoding="utf-8"))), 1)

    def check(self, names: list[str], invariants: Path) -> None:
        """Check traces; what is violated lies in a folder of each. Starting the checker takes long: some at once."""
        names = [one for one in names if not (self.folder / "checked" / f"{one}.json").exists()]
        for start in range(0, len(names), TOGETHER):
            some = names[start : start + TOGETHER]
            if self._check(some, invariants):
                for one in some:
                    if error := self._check([one], invariants):
                        self._keep(one, {"error": error})

    def _check(self, names: list[str], invariants: Path) -> str | None:
        """Check some traces; returns the error, if any."""
        out = self.folder / "checked"
        folders = [self.folder / one for one in names]
        try:
            seconds = self.command("checker", "-f", *folders, "-i", invariants, "-o", out, "--no-html-report")
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return str(error)[-500:]
        for one in names:
            violated = sorted(set(violations(out / one / "failed.log")))
            self._keep(one, {"check_seconds": round(seconds / len(names), 1), "violated": violated})
        return None

    def _keep(self, name: str, found: dict[str, Any]) -> None:
        (self.folder / "checked").mkdir(exist_ok=True)
        (self.folder / "checked" / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")

    def checked(self, name: str) -> dict[str, Any]:
        """What `check` found."""
        known = self.folder / "checked" / f"{name}.json"
        return dict(json.loads(known.read_text(encoding="utf-8"))) if known.exists() else {}


def violations(log: Path) -> list[str]:
    """The invariants in a file of failed checks: description, a bar, relation and precondition."""
    text, found, place = log.read_text(encoding="utf-8"), [], 0
    reader = json.JSONDecoder()
    while text[place:].strip():
        while text[place].isspace():
            place += 1
        one, place = reader.raw_decode(text, place)
        invariant = one["invariant"]
        rest = json.dumps([invariant["params"], invariant["precondition"]], sort_keys=True)
        about = f"{invariant['relation']} {hashlib.sha256(rest.encode()).hexdigest()[:12]}"
        found.append(f"{invariant['text_description']} | {about}")
    return found


def slug(strategy: str, name: str) -> str:
    """Name of a folder."""
    return f"{strategy}-{name}".replace(" ", "-").replace("/", "by").replace("[", "").replace("]", "").replace(",", "")


def study(check: TrainCheck, strategy: str, jobs: int, until: float) -> dict[str, Any]:
    """All of a strategy: the bugs that fit it, until a time is over."""
    healthy = [slug(strategy, f"healthy {seed}") for seed in HEALTHY]
    with ThreadPoolExecutor(jobs) as pool:
        first = list(pool.map(check.collect, healthy, [strategy] * len(healthy), HEALTHY, [None] * len(healthy)))
    invariants, seconds = check.infer(strategy, healthy)
    bugs = [name for name, one in BUGS.items() if one.fits is None or one.fits("tiny", strategy)]
    cases = [(slug(strategy, f"healthy {seed}"), seed, None) for seed in HELD_OUT]
    cases += [(slug(strategy, name), PLANTED, name) for name in reversed(bugs) if name not in ONLY_IN_USE]

    def collect(case: tuple[str, int, str | None]) -> dict[str, Any]:
        if time.time() > until and not (check.folder / f"{case[0]}.json").exists():
            return {}
        return check.collect(case[0], strategy, *case[1:], "--invariants", invariants, "--sampling-interval", "1")

    with ThreadPoolExecutor(jobs) as pool:
        traced = dict(zip([one[0] for one in cases], pool.map(collect, cases), strict=True))
    done = [name for name, one in traced.items() if one and "error" not in one]
    parts = [done[start::jobs] for start in range(jobs)]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(check.check, parts, [invariants] * jobs))
    results = {name: {**traced[name], **check.checked(name)} for name in traced if traced[name]}
    count = len(invariants.read_text(encoding="utf-8").splitlines())
    about = {"healthy": first, "invariants": count, "infer_seconds": seconds}
    return {**about, **judge(strategy, bugs, results)}


def judge(strategy: str, bugs: list[str], results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Held-out healthy runs, each against the others, and the bugs against them all."""
    names = [slug(strategy, f"healthy {seed}") for seed in HELD_OUT]
    held_out = {one: set(results[one]["violated"]) for one in names if "violated" in results.get(one, {})}
    seen = set[str]().union(*held_out.values())
    found: dict[str, Any] = {"held_out": [], "bugs": {}}
    for one, violated in held_out.items():
        others = set[str]().union(*(those for name, those in held_out.items() if name != one))
        found["held_out"].append(describe(results[one], violated - others))
    for bug in bugs:
        one = results.get(slug(strategy, bug))
        if bug in ONLY_IN_USE:
            found["bugs"][bug] = {"not_traced": "only the service differs, which training does not run"}
        elif one is not None:
            found["bugs"][bug] = describe(one, set(one.get("violated", ())) - seen)
    told = [one for one in found["bugs"].values() if one.get("new")]
    ran = [one for one in found["bugs"].values() if "violated" in one]
    found["summary"] = {
        "bugs": len(bugs),
        "traced_and_checked": len(ran),
        "detected": len(told),
        "held_out": len(held_out),
        "healthy_with_a_violation": sum(bool(one["violated"]) for one in found["held_out"]),
        "healthy_with_one_no_other_has": sum(bool(one["new"]) for one in found["held_out"]),
        "violated_by_every_held_out": len(set.intersection(*held_out.values())) if held_out else None,
        **{
            f"median_{kind}": statistics.median(one[kind] for one in ran + found["held_out"]) if ran else None
            for kind in ("collect_seconds", "check_seconds", "megabytes")
        },
    }
    return found


def describe(one: dict[str, Any], new: set[str]) -> dict[str, Any]:
    """A run's result in short: counts, relations and some sentences of what only it violates."""
    if "violated" not in one:
        return one
    relations = Counter(text.rsplit(" | ", 1)[1].split()[0] for text in new)
    shown = sorted({text.rsplit(" | ", 1)[0][:120] for text in new})[:SHOWN]
    return {**one, "violated": len(one["violated"]), "new": len(new), "new_by_relation": relations, "shown": shown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--installed", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="for traces; one that is kept is continued")
    parser.add_argument("--strategies", nargs="+", default=["plain", "head"])
    parser.add_argument("--style", default="subclass", choices=("proxy", "subclass", "sampler"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=600, help="no run is traced after these")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    check = TrainCheck(arguments.installed, folder.resolve(), arguments.style, arguments.steps)
    until = time.time() + 60 * arguments.minutes
    about = {"script": "scripts/bench_traincheck.py", "date": date.today().isoformat()}
    found: dict[str, Any] = {**about, "machine": environment(seed=0, device="cpu"), "traincheck": "0.2.0"}
    found |= {"style": arguments.style, "steps": arguments.steps, "inferred_from": len(HEALTHY), "strategies": {}}
    if arguments.out is not None and arguments.out.exists():
        found["strategies"] = json.loads(arguments.out.read_text(encoding="utf-8"))["strategies"]
    for strategy in arguments.strategies:
        found["strategies"][strategy] = study(check, strategy, arguments.jobs, until)
        print(strategy, json.dumps(found["strategies"][strategy]["summary"], indent=1))
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
