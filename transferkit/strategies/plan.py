"""What a strategy hands to training, and the list of strategies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transferkit.registry import Registry
from transferkit.types import Decision

__all__ = ["STRATEGIES", "Plan", "Strategy"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be fitted.

    Args:
        strategy: Name of the strategy that made it.
        stages: Stages that the classifier reads, stem -> head.
        closed_form: Whether the classifier is solved for from the feature bank, the backbone untouched.
        selected: Whether the features of these stages are weighted, and the useless ones left out, by the labels.
    """

    strategy: str
    stages: tuple[str, ...]
    closed_form: bool
    selected: bool = False

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("Plan.stages must name at least one stage.")


Strategy = Callable[[Decision, Sequence[str]], Plan]

STRATEGIES: Registry[Strategy] = Registry("strategy")
"""Name -> function from a decision and the backbone's stage names to a plan."""
