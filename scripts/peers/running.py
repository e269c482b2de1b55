"""Running contestants, one after the other: `bench_peers.py run`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from peers.environments import SCRIPTS, child_environment, python_of, versions, warm_up
from peers.results import Results
from peers.roster import Contestant
from peers.tasks import Stage

TAIL = 1500
"""Characters of standard error that are kept of a contestant that failed."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all runs have in common.

    Args:
        size: Side of the input in pixels.
        weights: The backbone's weights file.
        venvs: Folder of the environments.
        threads: Cores that each contestant may use.
        limit: Seconds after which a contestant is stopped; a stopped one counts as failed.
        budget: Seconds after which contestants end by themselves; None: no limit.
    """

    size: int
    weights: Path
    venvs: Path
    threads: int
    limit: float
    budget: float | None = None

    @property
    def common(self) -> dict[str, Any]:
        """What a file of results has once: see `COMMON`."""
        return {"size": self.size, "threads": self.threads, "budget": self.budget}


def ordered(contestants: Sequence[Contestant], turn: int) -> list[Contestant]:
    """The order of a turn: every other one is reversed, so that none is always first on a cool machine.

    Example:
        >>> ordered(["a", "b", "c"], 0), ordered(["a", "b", "c"], 1)
        (['a', 'b', 'c'], ['c', 'b', 'a'])
    """
    return list(contestants) if turn % 2 == 0 else list(reversed(contestants))


def command(contestant: Contestant, stage: Stage, seed: int, setting: Setting) -> list[str]:
    """The contestant's process."""
    words: dict[str, Any] = {
        "--task": stage.folder.resolve(),
        "--size": setting.size,
        "--weights": setting.weights.resolve(),
        "--seed": seed,
        "--threads": setting.threads,
        "--started": time.time(),
    }
    if setting.budget is not None:
        words["--budget"] = setting.budget
    told = [str(word) for pair in words.items() for word in pair]
    # An absolute path that does not follow links: a venv's python is a link to the one that it was made from.
    python = os.path.abspath(python_of(contestant.venv, setting.venvs))
    return [python, "-m", f"peers.contestants.{contestant.module}", *told, *contestant.arguments()]


def read_answer(output: str, errors: str, code: int) -> dict[str, Any]:
    """The contestant's JSON; if it printed none, a result without points whose error says why.

    Example:
        >>> read_answer("", "Traceback ...\\nKilled\\n", -9)["error"]
        'exit code -9: Killed'
    """
    try:
        found = json.loads(output.strip().rpartition("\n")[2])
    except json.JSONDecodeError:
        found = {}
    if "points" in found:
        return dict(found)
    last = errors.strip().rpartition("\n")[2]
    return {**no_answer(f"exit code {code}: {last}"), "stderr": errors[-TAIL:]}


def no_answer(error: str) -> dict[str, Any]:
    """The result of a contestant that printed none."""
    return {"points": [], "ready": None, "notes": {}, "error": error}


def keep_to_cores(threads: int) -> None:
    """Bind this process to as many cores as it may use: some contestants ask for cores, not for threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def run_once(contestant: Contestant, stage: Stage, seed: int, setting: Setting) -> dict[str, Any]:
    """One contestant on one task."""
    start = time.perf_counter()
    with subprocess.Popen(
        command(contestant, stage, seed, setting),
        cwd=SCRIPTS,
        env=child_environment(setting.threads),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(keep_to_cores, setting.threads),
        start_new_session=True,  # a group of its own, so that its workers end with it
    ) as process:
        try:
            output, errors = process.communicate(timeout=setting.limit)
            answer = read_answer(output, errors, process.returncode)
        except subprocess.TimeoutExpired:
            answer = no_answer(f"stopped after {setting.limit:.0f} s, the --limit")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return {**answer, "wall": round(time.perf_counter() - start, 2)}


def cells(
    contestants: Sequence[Contestant], stages: Sequence[Stage], seeds: Sequence[int]
) -> Iterator[tuple[Stage, int, Contestant]]:
    """Every run, in order: all contestants on one task before the next one."""
    turns = [(stage, seed) for stage in stages for seed in seeds]
    for turn, (stage, seed) in enumerate(turns):
        for contestant in ordered(contestants, turn):
            yield stage, seed, contestant


def run_all(
    results: Results,
    contestants: Sequence[Contestant],
    stages: Sequence[Stage],
    seeds: Sequence[int],
    setting: Setting,
    *,
    retry: bool,
) -> None:
    """Run what is missing; with `retry`, also what failed.

    Raises:
        FileNotFoundError: The environment of a contestant does not exist.
        DataError: The file holds runs of another image size, number of threads or budget.
    """
    results.check_common(setting.common)
    known = {one.name: versions(one, setting.venvs) for one in contestants}
    warm: set[str] = set()
    for stage, seed, contestant in cells(contestants, stages, seeds):
        identity = {
            "task": stage.name,
            "level": stage.level,
            "content": stage.content,
            "contestant": contestant.name,
            "seed": seed,
            **setting.common,
            "versions": known[contestant.name],
        }
        found = results.find(identity)
        if found is not None and not (retry and found["error"]):
            continue
        if contestant.module not in warm:
            warm_up(contestant, setting.venvs)
            warm.add(contestant.module)
        answer = run_once(contestant, stage, seed, setting)
        answer.pop("versions", None)
        about = {"family": stage.family, "train": stage.train, "test": stage.test, "classes": stage.classes}
        when = datetime.now(UTC).isoformat(timespec="seconds")
        results.keep({**identity, **about, "when": when, **answer})
        print(f"{stage.label}, seed {seed}, {contestant.name}: {in_words(answer)}", flush=True)


def in_words(answer: Mapping[str, Any]) -> str:
    """A result as one line.

    Example:
        >>> in_words({"points": [{"accuracy": 0.5, "seconds": 3.14}], "error": None})
        '50.0 % in 3.1 s'
    """
    if answer["error"]:
        return f"failed: {answer['error']}"
    last = answer["points"][-1]
    return f"{100 * last['accuracy']:.1f} % in {last['seconds']:.1f} s"
