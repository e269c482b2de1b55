"""The registry of checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from transferkit.core.registry import Registry
from transferkit.doctor.subject import Subject
from transferkit.records import Symptom

__all__ = ["CHECKS", "Check", "Skipped", "listed"]

Check = Callable[[Subject], Iterable[Symptom]]

CHECKS: Registry[Check] = Registry("check")
"""Name -> function that yields the symptoms of a training set-up, none if all is well."""

SHOWN = 4


class Skipped(Exception):
    """A check cannot be made; its argument says why."""


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
