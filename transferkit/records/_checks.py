"""Value checks shared by the records."""

from __future__ import annotations

import math

from transferkit.core.errors import OptionError

__all__ = ["require", "require_positive", "require_score", "require_share"]


def require(condition: bool, message: str) -> None:
    if not condition:
        raise OptionError(message)


def require_positive(owner: str, name: str, value: float) -> None:
    require(math.isfinite(value) and value > 0, f"{owner}.{name} must be finite and > 0, got {value!r}.")


def require_share(owner: str, name: str, value: float) -> None:
    require(math.isfinite(value) and 0 <= value <= 1, f"{owner}.{name} must be in [0, 1], got {value!r}.")


def require_score(owner: str, name: str, value: float, measure: str) -> None:
    """A share, unless the measure may be below 0."""
    if measure == "accuracy":
        require_share(owner, name, value)
    else:
        require(math.isfinite(value) and value <= 1, f"{owner}.{name} must be at most 1, got {value!r}.")
