"""What became of each run of a sweep, in a file each: runs may be in other processes, and on other machines."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["OUTCOMES", "RunOutcome", "collect_outcomes", "write_outcome"]

OUTCOMES = ".outcomes"
"""Folder inside a sweep's, while it goes on."""


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """What became of a run.

    Args:
        number: In its sweep, from 0.
        words: Its settings that differ from the others'.
        folder: Where it wrote, as shown.
        score: Held-back accuracy; None if it has none, or failed.
        failure: Why it failed; empty if it did not.
    """

    number: int
    words: str
    folder: str
    score: float | None = None
    failure: str = ""


def write_outcome(sweep: Path, outcome: RunOutcome) -> None:
    """Note it in the sweep's folder, at once or not at all."""
    folder = sweep / OUTCOMES
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f"{outcome.number}.json"
    part = whole.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(asdict(outcome)), encoding="utf-8", errors="surrogateescape")
    part.replace(whole)


def collect_outcomes(sweep: Path) -> list[RunOutcome]:
    """All that were noted, by number; the notes are removed."""
    files = (sweep / OUTCOMES).glob("*.json")
    found = [RunOutcome(**json.loads(file.read_text(encoding="utf-8", errors="surrogateescape"))) for file in files]
    shutil.rmtree(sweep / OUTCOMES, ignore_errors=True)
    return sorted(found, key=lambda one: one.number)
