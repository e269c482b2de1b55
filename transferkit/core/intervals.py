"""Confidence intervals of proportions."""

from __future__ import annotations

import math
from statistics import NormalDist

from transferkit.core.errors import OptionError

__all__ = ["TWO_SIDED", "wilson_interval"]

TWO_SIDED = 1.96
"""Standard errors on each side of a 95 % interval of a normal distribution."""


def wilson_interval(successes: float, trials: float, *, level: float = 0.95) -> tuple[float, float]:
    """Interval that covers a binomial proportion with probability `level`, approximately.

    Args:
        successes: In [0, trials].
        trials: Number of independent trials, may be an effective (fractional) number; 0 gives [0, 1].
        level: In (0, 1).

    Returns:
        Low and high, in [0, 1].

    Raises:
        OptionError: If `successes` lies outside [0, trials].

    References:
        Wilson, JASA 1927, without continuity correction.

    Example:
        >>> low, high = wilson_interval(90, 100)
        >>> round(low, 3), round(high, 3)
        (0.826, 0.945)
    """
    if not 0 <= successes <= trials:
        raise OptionError(f"successes must be in [0, {trials}], got {successes!r}.")
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)
