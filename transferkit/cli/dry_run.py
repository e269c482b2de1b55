"""`dry_run=true` of every verb: what would be done and its cost, as a table or as JSON. Nothing is done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transferkit.cli.tables import print_table
from transferkit.core.errors import OptionError
from transferkit.core.score_text import count_targets
from transferkit.options import option

if TYPE_CHECKING:
    from transferkit.records import DryRun, PlannedStep

__all__ = ["DryRunOptions", "print_plan", "share_passes", "take_dry_run"]

FORMS = {"true": "text", "json": "json", "false": ""}
"""Value -> how a plan is printed; "" does the work."""

SHARED = ("audit data", "frozen pass", "pace", "views")
"""Steps whose results a run leaves in the cache for those after it."""

MINUTE, HOUR = 120, 7200
"""Seconds from which on minutes, hours are shown."""


@dataclass(frozen=True, kw_only=True)
class DryRunOptions:
    """Whether anything is done; every verb takes it."""

    dry_run: Any = option(False, "true: what would be done and its cost, and nothing is done; json: as JSON.")


def take_dry_run(words: Sequence[str]) -> tuple[str, list[str]]:
    """How a plan is to be printed, "" where the work is to be done; and the other words.

    Raises:
        OptionError: `dry_run=` has another value.

    Example:
        >>> take_dry_run(["dry_run=json", "seed=1"]), take_dry_run(["seed=1"])
        (('json', ['seed=1']), ('', ['seed=1']))
    """
    form, others = "", []
    for word in words:
        key, equals, value = word.partition("=")
        if key.lstrip("+") != "dry_run":
            others.append(word)
            continue
        if not equals or value.strip().lower() not in FORMS:
            raise OptionError(f"dry_run must be true, json or false, got {value!r}.")
        form = FORMS[value.strip().lower()]
    return form, others


def print_plan(plan: DryRun, form: str) -> None:
    """Print a plan.

    Args:
        plan: Of one run, or of a sweep.
        form: "text" or "json".
    """
    from transferkit.core.serialization import to_json

    if form == "json":
        print(json.dumps(to_json(plan), indent=1, ensure_ascii=False))
        return
    for line in _headline(plan):
        print(line)
    if plan.runs:
        rows = [(one.command, _seconds(one), _bytes(one.memory_bytes), _disk(one)) for one in plan.runs]
        print_table(("run", "seconds", "memory", "disk"), rows)
    else:
        header = ("step", "images", "in bank", "seconds", "memory", "disk", "known by", "what")
        print_table(header, [_row(step) for step in plan.steps])
    print("\n".join(_totals(plan)))


def _headline(plan: DryRun) -> list[str]:
    lines = [f"Dry run of {plan.verb}: nothing is done."]
    if plan.data is not None:
        counts = ", ".join(f"{number:,} {split}" for split, number in plan.data.images.items())
        known = "" if plan.data.is_exact else " (listed, not read)"
        lines.append(f"{plan.data.origin}: {count_targets(plan.data.classes, plan.data.task)}, {counts}{known}")
    if plan.model:
        doing = f", strategy {plan.strategy}" if plan.strategy else ""
        lines.append(f"{plan.model} on {plan.device}{doing}")
    return [*lines, ""]


def _row(step: PlannedStep) -> tuple[str, ...]:
    return (
        step.name if step.is_certain else f"{step.name} (perhaps)",
        f"{step.images:,}" if step.images else "",
        f"{step.in_bank:,}" if step.in_bank else "",
        _seconds(step),
        _bytes(step.memory_bytes),
        _disk(step),
        step.basis,
        step.what,
    )


def _totals(plan: DryRun) -> list[str]:
    sum_of = "the runs one after the other" if plan.runs else "in all"
    lines = ["", f"{sum_of}: {_seconds(plan)}, memory {_bytes(plan.memory_bytes)}, disk {_disk(plan) or 'nothing'}"]
    verbs = {"write": "writes", "replace": "replaces", "delete": "deletes"}
    lines += [f"{verbs[one.action]} {one.path} ({_bytes(one.bytes)})" for one in plan.files]
    lines += [f"Note: {said}" for said in plan.warnings]
    return [*lines, *(["For real:", f"  {plan.command}"] if plan.command else [])]


def _seconds(one: PlannedStep | DryRun) -> str:
    low, high = one.seconds_low, one.seconds_high
    if high < MINUTE:
        return f"{low:.1f} to {high:.1f} s"
    unit, name = (60, "min") if high < HOUR else (3600, "h")
    return f"{low / unit:.1f} to {high / unit:.1f} {name}"


def _disk(one: PlannedStep | DryRun) -> str:
    low, high = _bytes(one.disk_bytes_low), _bytes(one.disk_bytes_high)
    if not one.disk_bytes_high:
        return ""
    return high if low == high else f"{low} to {high}"


def _bytes(number: int) -> str:
    for limit, unit in ((2**30, "GB"), (2**20, "MB"), (2**10, "kB")):
        if number >= limit:
            return f"{number / limit:.1f} {unit}" if number < 10 * limit else f"{number / limit:,.0f} {unit}"
    return f"{number} B"


def share_passes(runs: Sequence[DryRun], inputs: Sequence[str]) -> list[DryRun]:
    """The runs of a sweep, where what an earlier run of the same inputs has put into the cache costs nothing.

    Args:
        runs: In their order.
        inputs: What the passes of each depend on, as text.
    """
    found: list[DryRun] = []
    seen = set[str]()
    for run, same in zip(runs, inputs, strict=True):
        found.append(_from_bank(run) if same in seen else run)
        seen.add(same)
    return found


def _from_bank(run: DryRun) -> DryRun:
    """The run where its passes have been made: none of their seconds are certain to be needed, and no disk is."""
    steps = [
        replace(step, in_bank=step.images, seconds_low=0.0, seconds_high=min(step.seconds_high, 1.0), disk_bytes_low=0,
                disk_bytes_high=0)
        if step.name in SHARED else step
        for step in run.steps
    ]  # fmt: skip
    names = ("command", "model", "strategy", "data", "device", "files", "warnings")
    return type(run).of_steps(steps, verb=run.verb, about={name: getattr(run, name) for name in names})
