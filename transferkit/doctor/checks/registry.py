"""The registry of checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from transferkit.core.registry import Registry
from transferkit.doctor.subject import Subject
from transferkit.records import Symptom

__all__ = ["CHECKS", "Check", "Skipped", "listed", "take_step"]

Check = Callable[[Subject], Iterable[Symptom]]

CHECKS: Registry[Check] = Registry("check")
"""Name -> function that yields the symptoms of a training set-up, none if all is well."""

SHOWN = 4


class Skipped(Exception):
    """A check cannot be made; its argument says why."""


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """A step of the optimizer; the check is skipped if it needs a closure."""
    try:
        optimizer.step()
    except TypeError as error:
        raise Skipped(f"{type(optimizer).__name__} needs a closure for its step") from error


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
