"""Plans: which parameters are trained, in which phases, at what rates; and the registry of strategies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from transferkit.core.errors import OptionError, unknown_name
from transferkit.core.limits import LAYER_DECAY
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
"""Name of the classifier in rules; no stage of a backbone has this name."""

KINDS = ("any", "norm", "bias", "adapter")
"""Kinds of parameters that a rule can match: all of a stage, those of its normalisation layers, its biases (those of
normalisation layers are both), or adapters added for training."""

NORMS = ("keep", "frozen")
"""Treatment of batch normalisation in trained stages."""

STARTS = ("closed_form", "zero")
"""Initialisation of the head: fitted in closed form on frozen features, or zero (all classes equally likely)."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Learning rate for the parameters that a pattern matches; for each parameter the first matching rule applies.

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
    """A phase of training with one set of rules.

    Args:
        name: For display.
        rules: In order; together they must match every parameter.
        share: Share of the epochs, in (0, 1]; the shares of a plan sum to 1.
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
    """Low-rank updates that are trained instead of the weights they are added to (Hu et al., ICLR 2022).

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
    """Which parameters are fitted, and how.

    Args:
        strategy: Name of the strategy that made it.
        stages: Input stages of the classifier, stem -> head.
        closed_form: Whether the classifier is fitted in closed form from the feature bank, with the backbone unchanged.
        selected: Whether features are weighted and selected by the labels.
        phases: Of gradient training, in order; none for a closed form.
        start: Initialisation of the head: one of `STARTS`.
        norm: Batch normalisation in trained stages: "keep" updates its statistics, "frozen" keeps them fixed. In frozen
            stages they are always fixed.
        adapters: Low-rank updates to add to the trunk first.
        further_loss: Name of the loss of unlabelled images that is added; empty for none.
    """

    strategy: str
    stages: tuple[str, ...]
    closed_form: bool
    selected: bool = False
    phases: tuple[Phase, ...] = ()
    start: str = "closed_form"
    norm: str = "keep"
    adapters: Adapters | None = None
    further_loss: str = ""

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
    """The part of a request that concerns stages."""

    @property
    def strategy(self) -> str:
        """Name of the strategy."""

    @property
    def stage(self) -> str:
        """Input of the head: a stage, "joined" or "selected"."""

    @property
    def tuned(self) -> tuple[str, ...]:
        """Stages to train; empty: the strategy chooses."""


class PlanRequest(StageRequest, Protocol):
    """Input of a strategy; implemented by `Decision` and `PlanSettings`."""

    @property
    def lr(self) -> float:
        """Learning rate of the backbone's last stage; 0 for a closed form."""

    @property
    def layer_decay(self) -> float:
        """Rate of each stage relative to the one above it, in (0, 1]."""

    @property
    def norm(self) -> str:
        """Batch normalisation of stages that are trained: "keep" or "frozen"."""

    @property
    def alternatives(self) -> tuple[Alternative, ...]:
        """Measurements of other strategies and stages."""


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """A `PlanRequest` without a decision; the same fields."""

    strategy: str
    stage: str
    lr: float = 0.0
    layer_decay: float = LAYER_DECAY
    norm: str = "frozen"
    tuned: tuple[str, ...] = ()
    alternatives: tuple[Alternative, ...] = ()


Strategy = Callable[[PlanRequest, Sequence[str]], Plan]

STRATEGIES: Registry[Strategy] = Registry("strategy")
"""Name -> function from a request, such as a decision, and the backbone's stage names to a plan."""
