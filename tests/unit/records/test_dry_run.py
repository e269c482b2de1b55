"""The record of a plan: its JSON is a contract with schedulers and agents."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from transferkit.core.errors import OptionError
from transferkit.core.serialization import from_json, to_json
from transferkit.records import DryRun, PlannedData, PlannedFile, PlannedStep

STEP = PlannedStep(name="frozen pass", what="x", images=10, in_bank=4, seconds_low=1, seconds_high=3, memory_bytes=7)
OTHER = PlannedStep(name="views", what="y", seconds_high=2, disk_bytes_low=1, disk_bytes_high=5, memory_bytes=9)


def test_names_of_schema_1():
    """Whoever changes these breaks programs that read them: raise SCHEMA, and say so in docs/dry_run.md."""
    assert DryRun.of_steps([], verb="zoo").schema == 1
    assert [one.name for one in fields(DryRun)] == [
        "schema", "verb", "command", "model", "strategy", "data", "device", "steps", "files", "warnings", "runs",
        "seconds_low", "seconds_high", "memory_bytes", "disk_bytes_low", "disk_bytes_high",
    ]  # fmt: skip
    assert [one.name for one in fields(PlannedStep)] == [
        "name", "what", "images", "passes", "in_bank", "seconds_low", "seconds_high", "basis", "memory_bytes",
        "disk_bytes_low", "disk_bytes_high", "is_certain",
    ]  # fmt: skip
    assert [one.name for one in fields(PlannedData)] == ["origin", "classes", "images", "is_exact", "task"]
    assert [one.name for one in fields(PlannedFile)] == ["path", "action", "bytes"]


def test_time_and_disk_add_up_and_memory_is_the_highest():
    plan = DryRun.of_steps([STEP, OTHER], verb="adapt")
    assert (plan.seconds_low, plan.seconds_high) == (1, 5)
    assert (plan.disk_bytes_low, plan.disk_bytes_high, plan.memory_bytes) == (1, 5, 9)
    both = DryRun.of_runs([plan, plan], verb="adapt")
    assert (both.seconds_high, both.disk_bytes_high, both.memory_bytes) == (10, 10, 9)


def test_it_survives_json():
    data = PlannedData(origin="folder x", classes=2, images={"train": 8}, is_exact=True)
    files = (PlannedFile(path="x/y", action="write", bytes=3),)
    about = {"data": data, "files": files, "warnings": ("a", "b"), "model": "m"}
    plan = DryRun.of_steps([STEP, OTHER], verb="adapt", about=about)
    sweep = DryRun.of_runs([plan], verb="adapt")
    for one in (plan, sweep):
        assert from_json(DryRun, json.loads(json.dumps(to_json(one)))) == one


@pytest.mark.parametrize(
    ("kind", "wrong", "said"),
    [
        (PlannedStep, {"seconds_low": 2.0, "seconds_high": 1.0}, "0 <= low <= high, got 2.0 to 1.0"),
        (PlannedStep, {"seconds_high": float("nan")}, "must be finite"),
        (PlannedStep, {"basis": "guessed"}, "basis must be one of measured now, remembered, estimated, got 'guessed'"),
        (PlannedStep, {"images": 1, "in_bank": 2}, "in_bank must be <= images, got 2 > 1"),
        (PlannedStep, {"memory_bytes": -1}, "must be >= 0"),
        (PlannedStep, {"disk_bytes_low": 2, "disk_bytes_high": 1}, "disk_bytes_low must be <= disk_bytes_high"),
        (PlannedFile, {"path": "x", "action": "move"}, "action must be one of write, replace, delete, got 'move'"),
        (DryRun, {"verb": "x", "steps": (STEP,)}, "seconds_low must be that of its steps together"),
        (DryRun, {"verb": "x", "schema": 2}, "schema must be 1, got 2"),
    ],
)
def test_what_cannot_be_is_refused(kind, wrong, said):
    named = {"name": "s", "what": ""} if kind is PlannedStep else {}
    with pytest.raises(OptionError, match=said):
        kind(**named, **wrong)
