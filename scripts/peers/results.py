"""The file of results: one record per finished cell, kept at once and never measured twice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from transferkit.core.errors import DataError
from transferkit.core.provenance import environment

SCRIPT = "scripts/bench_peers.py"

PLACE = ("task", "level", "seed")
"""What contestants are compared at."""

COMMON = ("size", "threads", "budget")
"""What is the same for all records of a file."""

IDENTITY = ("task", "level", "content", "contestant", "seed", *COMMON, "versions")
"""What makes a cell: a record with equal values is not measured again."""

MACHINE = ("processor", "cores", "system")
"""What must be equal for seconds to be comparable."""


class Results:
    """Records on disk.

    Args:
        path: JSON; it need not exist.

    Raises:
        DataError: The file was measured on another machine.

    Attributes:
        records: One dict per finished cell, in the order of measuring.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        machine = environment(seed=0, device="cpu")
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"machine": machine, "cells": []}
        other = {key: known["machine"][key] for key in MACHINE if known["machine"][key] != machine[key]}
        if other:
            raise DataError(
                f"{path} was measured on another machine ({other}), whose seconds cannot be compared with this one's. "
                f"Give another --out, or move the file away."
            )
        self.machine = machine
        self.records: list[dict[str, Any]] = known["cells"]

    def check_common(self, common: Mapping[str, Any]) -> None:
        """Raise if what is to be run does not belong with what the file holds.

        Raises:
            DataError: Another image size, number of threads or budget.
        """
        for record in self.records:
            other = {key: record[key] for key in COMMON if record[key] != common[key]}
            if other:
                raise DataError(f"{self.path} holds runs with {other}, these have {dict(common)}. Give another --out.")

    def find(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """The finished record of a cell; None if it is still to be measured."""
        return next((one for one in self.records if all(one[key] == identity[key] for key in IDENTITY)), None)

    def keep(self, record: Mapping[str, Any]) -> None:
        """Add a record, in place of one of equal identity, and write the file atomically."""
        old = self.find(record)
        self.records = [one for one in self.records if one is not old] + [dict(record)]
        plain = {
            "script": SCRIPT,
            "date": date.today().isoformat(),
            "machine": self.machine,
            "cells": self.records,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        lines = ",\n  ".join(json.dumps(one, ensure_ascii=False, separators=(",", ":")) for one in plain.pop("cells"))
        head = json.dumps(plain, indent=1)[:-2]
        partial.write_text(f'{head},\n "cells": [\n  {lines}\n ]\n}}\n', encoding="utf-8")
        partial.replace(self.path)


def latest(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last record of each contestant at each place: of several versions only the one measured last.

    Example:
        >>> here = {"task": "a", "level": 0, "seed": 0, "contestant": "timm"}
        >>> [one["n"] for one in latest([{**here, "n": 1}, {**here, "n": 2}, {**here, "seed": 1, "n": 3}])]
        [2, 3]
    """
    found = {(*(one[key] for key in PLACE), one["contestant"]): one for one in records}
    return list(found.values())
