"""How large prediction sets are, and how often they contain the true class."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.records._checks import require, require_share

__all__ = ["SetSummary"]


@dataclass(frozen=True, kw_only=True)
class SetSummary:
    """Prediction sets of a stated coverage, checked on two sets of images.

    Args:
        coverage: Stated, in (0, 1).
        images: Number of held-back images that they are calibrated on.
        held_back_coverage: Share of these whose set contains the true class, in [0, 1]: the stated one by construction,
            or more where the most probable class alone is right more often.
        held_back_size: Mean number of classes in a set, of these.
        tested_coverage, tested_size: The same on the split that the report shows, which they are not calibrated on;
            None if there is none.
    """

    coverage: float
    images: int
    held_back_coverage: float
    held_back_size: float
    tested_coverage: float | None = None
    tested_size: float | None = None

    def __post_init__(self) -> None:
        for name in ("coverage", "held_back_coverage"):
            require_share("SetSummary", name, getattr(self, name))
        require(self.images > 0, f"SetSummary.images must be > 0, got {self.images!r}.")
