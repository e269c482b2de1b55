"""Whether stored hyperparameters are still the best: each measured again, and compared on the same held-back images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transferkit.records._checks import require
from transferkit.records.data import DataSummary

__all__ = ["Retest", "RetestedSettings"]


@dataclass(frozen=True, kw_only=True)
class RetestedSettings:
    """Settings that were measured again.

    Args:
        name: "stored best", "stored 2", "advised".
        strategy: Trained with them.
        values: Setting, as on the command line -> value; what is missing is as advised.
        accuracy_then: Held-back accuracy when they were stored, in [0, 1]; None for what is advised now.
        accuracy: Now, of the network alone; None if it failed.
        log_loss: Now, nats; None if it failed.
        gain: Accuracy over that of the stored best, on the same held-back images; None for itself, and where one of the
            two failed.
        low, high: Interval of the gain, that covers those of all settings together with 95 %.
        epochs: Number of epochs trained for.
        seconds: Wall-clock.
        error: Why they cannot be used any more; "" if they can.
    """

    name: str
    strategy: str
    values: Mapping[str, Any]
    accuracy_then: float | None = None
    accuracy: float | None = None
    log_loss: float | None = None
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    epochs: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def rank(self) -> tuple[float, float]:
        """Sorts the better first; those that failed last."""
        accuracy = -1.0 if self.accuracy is None else self.accuracy
        return -accuracy, 0.0 if self.log_loss is None else self.log_loss

    @property
    def is_better(self) -> bool:
        """Whether they are better than the stored best beyond chance."""
        return self.low is not None and self.low > 0


@dataclass(frozen=True, kw_only=True)
class Retest:
    """Stored settings and those that are advised now, measured again on images and backbone as they are now.

    Args:
        data: The images now; the test images were not looked at.
        backbone: Name of the network now.
        shape: Height and width of its input, in pixels.
        changes: What is different from when the settings were stored, a sentence each; empty if nothing is.
        tested: The stored best first.
        images: Held-back images that all were compared on.
        base: Settings that all share and that differ from the defaults, within `train`.
        command: What makes the retest again; "" if not recorded.
        seconds: Wall-clock, in all.
    """

    data: DataSummary
    backbone: str
    shape: tuple[int, int] | None = None
    changes: tuple[str, ...]
    tested: tuple[RetestedSettings, ...]
    images: int = 0
    base: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        require(bool(self.tested), "Retest.tested must hold the stored best, got nothing.")

    @property
    def chosen(self) -> RetestedSettings:
        """The stored best; others only where they are better beyond chance, or the stored best cannot be used."""
        stored = self.tested[0]
        better = [one for one in self.tested[1:] if stored.accuracy is None or one.is_better]
        return min(better, key=lambda one: one.rank, default=stored)

    @property
    def is_stale(self) -> bool:
        """Whether the stored best should not be used any more."""
        return self.chosen is not self.tested[0] or self.tested[0].accuracy is None

    @property
    def sentences(self) -> tuple[str, ...]:
        """What changed, and what came of it."""
        changed = " ".join(self.changes) or "Nothing has changed since the search: images and backbone are the same."
        again = " Search again, with another tune.study or out."
        stored, chosen = self.tested[0], self.chosen
        if stored.accuracy is None and chosen.accuracy is None:
            return changed, f"None of the stored settings can be used any more ({stored.error}).{again}"
        if stored.accuracy is None:
            said = f"The stored best cannot be used any more ({stored.error}); best is {chosen.name}, "
            return changed, f"Intuition has gone stale. {said}{_percent(chosen.accuracy)} held back.{again}"
        then = f"{_percent(stored.accuracy)} held back ({self.images:,} images), {_percent(stored.accuracy_then)} then"
        if self.is_stale:
            return (
                changed,
                f"Intuition has gone stale: {chosen.name} is now {_points(chosen.gain)} points better than the stored "
                f"best ({_points(chosen.low)} to {_points(chosen.high)}; {then}).{again}",
            )
        rest = [one for one in self.tested[1:] if one.gain is not None]
        best = max(rest, key=lambda one: one.gain or 0.0, default=None)
        beside = "" if best is None else (
            f"; the best of the others, {best.name}, is {_points(best.gain)} points beside it ({_points(best.low)} to "
            f"{_points(best.high)})"
        )  # fmt: skip
        return changed, f"The stored settings still hold ({then}{beside})."


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"


def _points(share: float | None) -> str:
    return f"{100 * (share or 0.0):+.1f}"
