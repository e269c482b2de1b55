"""Which strategy, why, and what is expected of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transferkit.core.limits import LAYER_DECAY
from transferkit.records._checks import require, require_score

__all__ = ["Alternative", "Choice", "Decision"]


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A strategy on a stage, with its expected accuracy and cost.

    Args:
        strategy: Registered strategy name.
        stage: The stage it would use, "joined" or "selected".
        expected_accuracy: In [0, 1].
        low, high: 95 % interval of the expectation.
        cost_seconds: Further seconds it would take on this machine.
        measure: What the expected "accuracy" is, as for `ProbeScore`.
    """

    strategy: str
    stage: str
    expected_accuracy: float
    low: float
    high: float
    cost_seconds: float
    measure: str = "accuracy"

    def __post_init__(self) -> None:
        for name in ("expected_accuracy", "low", "high"):
            require_score("Alternative", name, getattr(self, name), self.measure)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which strategy was chosen or asked for, and why; `transferkit.decision.complete` makes a `Decision` of it.

    Args:
        strategy: "linear_probe", "few_layers", "many_layers", ...
        stage: The stage whose features the head reads ("joined": all of them; "selected": all, weighted).
        mode: How it was chosen: "rule", "evidence", "search", or "given".
        reasons: Sentences with the numbers in them.
        expected: What to expect of it; None where that is not known.
        alternatives: What else could be done, best first.
        tuned: Stages to train, for the strategies that train some whole; empty: the strategy's own choice.
    """

    strategy: str
    stage: str
    mode: str
    reasons: tuple[str, ...]
    expected: Alternative | None = None
    alternatives: tuple[Alternative, ...] = ()
    tuned: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(bool(self.reasons), f"{type(self).__name__}.reasons must name at least one reason.")

    @property
    def options(self) -> tuple[Alternative, ...]:
        """All that was weighed: what is expected of this, and the alternatives."""
        return (*(() if self.expected is None else (self.expected,)), *self.alternatives)


@dataclass(frozen=True, kw_only=True)
class Decision(Choice):
    """The chosen strategy with its learning rate and normalisation.

    Args:
        strategy, stage, mode, reasons, alternatives, tuned: As for `Choice`.
        lr: Learning rate to start at; 0 for a closed-form strategy, which has none.
        lr_scale: `lr` as a share of the backbone's original learning rate.
        layer_decay: Rate of each stage relative to the one above it, where they differ, in (0, 1].
        norm: What becomes of normalisation layers: "keep", "frozen", "group", ...
        expected: What is promised of it: before anything is fitted from the frozen pass and earlier tasks, afterwards
            from the `held_back` images. None where that is not known.
        expected_before: What was expected before anything was fitted; None while `expected` still says it, or if that
            was not known.
        held_back: Images that the fitted model was judged on for `expected`; 0 before anything is fitted, or if none
            could be held back.
    """

    lr: float
    lr_scale: float
    norm: str
    layer_decay: float = LAYER_DECAY
    expected_before: Alternative | None = None
    held_back: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lr", "lr_scale"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, f"Decision.{name} must be finite and >= 0, got {value!r}.")
        require(0 < self.layer_decay <= 1, f"Decision.layer_decay must be in (0, 1], got {self.layer_decay!r}.")
        require(self.held_back >= 0, f"Decision.held_back must be >= 0, got {self.held_back!r}.")
