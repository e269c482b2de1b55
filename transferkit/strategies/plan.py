"""What a strategy hands to training, and the list of strategies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from transferkit.core.errors import OptionError, unknown_name
from transferkit.core.registry import Registry
from transferkit.records import Alternative

__all__ = [
    "HEAD",
    "KINDS",
    "NORMS",
    "STARTS",
    "STRATEGIES",
    "Adapters",
    "Phase",
    "Plan",
    "PlanRequest",
    "PlanSettings",
    "Rule",
    "StageRequest",
    "Strategy",
]

HEAD = "head"
"""What rules call the classifier; no stage of a backbone has this name."""

KINDS = ("any", "norm", "bias", "adapter")
"""Parameters that a rule can be about: all of a stage, those of its normalisation layers, its biases (those of
normalisation layers are both), or what was added to it for training."""

NORMS = ("keep", "frozen")
"""What becomes of batch normalisation in stages that learn."""

STARTS = ("closed_form", "zero")
"""Where the head starts: solved for on frozen features, or at zero (all classes equally likely)."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Who may learn, and how fast. Of several rules for a parameter the first one counts.

    Args:
        stage: Pattern of stage names, with `*` and `?` as in file names; "head" is the classifier.
        kind: One of `KINDS`.
        lr: Learning rate, >= 0; 0 freezes.
    """

    stage: str
    kind: str = "any"
    lr: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OptionError(unknown_name("kind of parameter", self.kind, KINDS))
        if not (math.isfinite(self.lr) and self.lr >= 0):
            raise OptionError(f"Rule.lr must be finite and >= 0, got {self.lr!r}.")

    def __str__(self) -> str:
        return self.stage if self.kind == "any" else f"{self.stage} ({self.kind})"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training under one set of rules.

    Args:
        name: For people.
        rules: In order; together they must claim every parameter.
        share: Of all epochs, in (0, 1]; those of a plan sum to 1.
    """

    name: str
    rules: tuple[Rule, ...]
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise OptionError(f"Phase.share must be in (0, 1], got {self.share!r}.")
        if not any(rule.lr > 0 for rule in self.rules):
            raise OptionError(f"Phase {self.name!r} trains nothing: every rule has learning rate 0.")


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """Low-rank updates that are trained in place of the weights they add to (Hu et al., ICLR 2022).

    Args:
        rank: r of the update B A, >= 1.
        alpha: The update is scaled by alpha / rank.
    """

    rank: int
    alpha: float

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise OptionError(f"Adapters need rank >= 1 and alpha > 0, got {self.rank!r} and {self.alpha!r}.")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be fitted.

    Args:
        strategy: Name of the strategy that made it.
        stages: Stages that the classifier reads, stem -> head.
        closed_form: Whether the classifier is solved for from the feature bank, the backbone untouched.
        selected: Whether the features of these stages are weighted, and the useless ones left out, by the labels.
        phases: Of gradient training, in order; none for a closed form.
        start: Where the head starts training: one of `STARTS`.
        norm: What becomes of batch normalisation in stages that learn: "keep" goes on measuring its statistics,
            "frozen" leaves them as they are. In frozen stages they always stay.
        adapters: Low-rank updates to add to the trunk first.
    """

    strategy: str
    stages: tuple[str, ...]
    closed_form: bool
    selected: bool = False
    phases: tuple[Phase, ...] = ()
    start: str = "closed_form"
    norm: str = "keep"
    adapters: Adapters | None = None

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("Plan.stages must name at least one stage.")
        if self.start not in STARTS:
            raise OptionError(unknown_name("start of the head", self.start, STARTS))
        if self.norm not in NORMS:
            raise OptionError(unknown_name("treatment of normalisation", self.norm, NORMS))
        if self.closed_form == bool(self.phases):
            raise ValueError("A plan is either a closed form or has phases.")
        if self.phases and not math.isclose(sum(phase.share for phase in self.phases), 1):
            raise ValueError("The shares of a plan's phases must sum to 1.")


class StageRequest(Protocol):
    """Which stages a strategy is about."""

    @property
    def strategy(self) -> str:
        """Name of the strategy."""

    @property
    def stage(self) -> str:
        """What the head reads: a stage, "joined" or "selected"."""

    @property
    def tuned(self) -> tuple[str, ...]:
        """Stages to train; empty: the strategy's own choice."""


class PlanRequest(StageRequest, Protocol):
    """All that a strategy needs to make a plan; a `Decision` has it, and so has `PlanSettings`."""

    @property
    def lr(self) -> float:
        """Learning rate of the backbone's last stage; 0 for a closed form."""

    @property
    def norm(self) -> str:
        """Batch normalisation of stages that are trained: "keep" or "frozen"."""

    @property
    def alternatives(self) -> tuple[Alternative, ...]:
        """What was measured of other strategies and stages."""


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """A `PlanRequest` where nothing was decided; fields as there."""

    strategy: str
    stage: str
    lr: float = 0.0
    norm: str = "frozen"
    tuned: tuple[str, ...] = ()
    alternatives: tuple[Alternative, ...] = ()


Strategy = Callable[[PlanRequest, Sequence[str]], Plan]

STRATEGIES: Registry[Strategy] = Registry("strategy")
"""Name -> function from a request, such as a decision, and the backbone's stage names to a plan."""
