"""Whether training error or the gap to held-back error is the larger part, and what to do about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transferkit.core.errors import OptionError
from transferkit.core.intervals import wilson_interval

__all__ = ["ErrorBudget", "explain_errors"]


@dataclass(frozen=True, kw_only=True)
class ErrorBudget:
    """Where the held-back error comes from, in shares of the images.

    Args:
        unavoidable: Error that cannot be expected to fall: of people, or wrong labels.
        bias: Training error above that.
        variance: Held-back error above the training error, and above what is unavoidable.
        uncertainty: Half the width of the 95 % interval of the held-back error.
        training_error, held_back_error: As they were measured.
    """

    unavoidable: float
    bias: float
    variance: float
    uncertainty: float
    training_error: float
    held_back_error: float

    @property
    def verdict(self) -> str:
        """One of: bias, variance, both, neither; what is larger than the uncertainty, and not far below the
        other."""
        large = {name for name in ("bias", "variance") if getattr(self, name) > self.uncertainty}
        if not large:
            return "neither"
        if len(large) == 2 and 0.5 <= self.bias / self.variance <= 2:
            return "both"
        return "bias" if self.bias > self.variance else "variance"

    @property
    def sentence(self) -> str:
        """The verdict with its numbers and what to do.

        Example:
            >>> explain_errors(0.02, 0.15, held_back_images=400).sentence[:55]
            'Variance: 2.0 % of training images are wrong, 15.0 % of'
        """
        numbers = (
            f"{100 * self.training_error:.1f} % of training images are wrong, {100 * self.held_back_error:.1f} % "
            f"of held-back ones (+- {100 * self.uncertainty:.1f})"
        )
        odd = f" {REVERSED}" if self.training_error - self.held_back_error > self.uncertainty else ""
        return f"{self.verdict.capitalize()}: {numbers}. {REMEDIES[self.verdict]}{odd}"


REMEDIES = {
    "bias": "More capacity: train more stages, for longer, at a higher rate, with less regularisation, or a "
    "larger backbone.",
    "variance": "More images, augmentation, stronger regularisation or fewer trained parameters.",
    "both": "First more capacity until training images are learnt, then more images or regularisation.",
    "neither": "Both are within the uncertainty of the estimate: hold back more images before changing anything.",
}
"""Verdict -> what to do."""

REVERSED = (
    "The training error is above the held-back one, which no fit explains: look whether these are accuracies, whether "
    "training images were scored with augmentation or dropout, or whether the held-back images are easier."
)


def explain_errors(
    training_error: float, held_back_error: float, *, held_back_images: float, unavoidable: float = 0.0
) -> ErrorBudget:
    """Divide the held-back error into what training images show already and what only new ones show.

    Args:
        training_error: Share of training images that are classified wrongly, without augmentation, in [0, 1].
        held_back_error: The same of images held back from the fit.
        held_back_images: Number of independent images behind it, > 0.
        unavoidable: Error that no model can be expected to avoid.

    Raises:
        OptionError: A share is outside [0, 1], or there are no held-back images.
    """
    for name, value in (
        ("training_error", training_error),
        ("held_back_error", held_back_error),
        ("unavoidable", unavoidable),
    ):
        if not (_is_number(value) and 0 <= value <= 1):
            hint = " Divide percentages by 100." if _is_number(value) and 1 < value <= 100 else ""
            raise OptionError(f"{name} must be a share in [0, 1], got {value!r}.{hint}")
    if not (_is_number(held_back_images) and 0 < held_back_images < math.inf):
        raise OptionError(f"held_back_images must be > 0 and finite, got {held_back_images!r}.")
    low, high = wilson_interval(held_back_error * held_back_images, held_back_images)
    floor = min(unavoidable, training_error)
    return ErrorBudget(
        unavoidable=floor,
        bias=training_error - floor,
        variance=max(0.0, held_back_error - max(training_error, unavoidable)),
        uncertainty=(high - low) / 2,
        training_error=training_error,
        held_back_error=held_back_error,
    )


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str) and math.isfinite(value)
    except (TypeError, ValueError):
        return False
