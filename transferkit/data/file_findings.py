"""Findings of the audit about files: those that cannot be used, and those that are converted when they are read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from transferkit.data.headers import heic_hint
from transferkit.data.image_errors import FAULTS
from transferkit.data.inventory import Inventory
from transferkit.data.phrases import counted, first_names
from transferkit.records import Finding

__all__ = ["conversion_findings", "fault_findings"]

Ints = npt.NDArray[np.int64]

_REMEDIES = {
    "zero_byte": "fetch them again or remove them",
    "unreadable": "convert them to JPEG or PNG, or remove them",
    "truncated": "fetch them again or remove them",
}
"""Fault of a file -> remedy."""

_MISSING = {
    "folder": "they are links that lead nowhere: bring the files back, or remove the links",
    "manifest": "correct the paths in the manifest, or remove its rows",
    "shards": "bring the shards back that were removed meanwhile",
}
"""Kind of source -> remedy for files that do not exist."""


def fault_findings(inventory: Inventory) -> list[Finding]:
    """One finding for each kind of fault: the images that are set aside, with the remedy."""
    by_kind: dict[str, list[int]] = defaultdict(list)
    for row, inspection in enumerate(inventory.inspections):
        if inspection.fault:
            by_kind[inspection.fault].append(row)
    findings = []
    for kind, rows in sorted(by_kind.items()):
        names = tuple(inventory.names[row] for row in rows)
        places = tuple(inventory.place(row) for row in rows)
        message = f"{counted(len(names), 'image')} cannot be used ({FAULTS[kind]}{_detail(inventory, rows)}): "
        message += f"{first_names(places)}. Remedy: {_remedy(inventory, kind, rows)}."
        findings.append(Finding(kind=kind, severity="set_aside", message=message, items=names))
    return findings


def conversion_findings(inventory: Inventory, rows: Ints) -> list[Finding]:
    """What has to be converted in the usable images, as one finding; none if nothing has."""
    found = Counter(trait for row in rows for trait in inventory.inspections[row].traits)
    if not found:
        return []
    counts = ", ".join(f"{number} {trait}" for trait, number in sorted(found.items()))
    message = f"Images turned into upright 8-bit RGB when read: {counts}."
    return [Finding(kind="converted", severity="info", message=message)]


def _detail(inventory: Inventory, rows: Sequence[int]) -> str:
    """The detail of the first image that has one beyond its fault; HEIC has a remedy instead."""
    known = (inventory.inspections[row].detail for row in rows if not heic_hint(inventory.names[row]))
    return next((f"; the first is {detail}" for detail in known if detail), "")


def _remedy(inventory: Inventory, fault: str, rows: Sequence[int]) -> str:
    if fault == "oversized":
        needed = max(inventory.inspections[row].width * inventory.inspections[row].height for row in rows)
        more = f", or pass max_pixels={needed} (command line: data.max_pixels={needed})" if needed else ""
        return f"shrink them{more}"
    if inventory.kind == "dataset":
        return "mend the files that the dataset reads, or leave them out of it"
    if fault == "missing":
        return _MISSING[inventory.kind]
    hints = sorted({hint for row in rows if fault == "unreadable" and (hint := heic_hint(inventory.names[row]))})
    where = ["pack the shards again then"] if inventory.kind == "shards" else []
    return "; ".join([_REMEDIES[fault], *hints, *where])
