"""A Gaussian per class with a shared covariance, which is shrunk to what is known without the shots."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.measure.few_shot.shots import Rows, Shots

__all__ = ["shrunk_discriminant"]

PRIOR_SHOTS = 20.0
"""How many degrees of freedom the covariance known before counts for: those of 5 classes of 5
shots. Not tuned."""


def shrunk_discriminant(shots: Shots, queries: npt.NDArray[Any], *, prior_shots: float = PRIOR_SHOTS) -> Rows:
    """Log posteriors of Gaussians with a shared covariance, up to a constant; higher is likelier.

    The covariance known before, from earlier tasks or unlabelled images, is the identity here: `FeatureSpace` has
    whitened by it. The shots' own within-class scatter S with n - K degrees of freedom is added to it:
    C = (m v I + (n - K) S) / (m + n - K), where v is the mean variance of S along the directions that the shots span.
    At one shot there is no S, and this is the nearest mean.

    Args:
        shots: Whitened rows.
        queries: (Q, D), prepared like the shots.
        prior_shots: m > 0.

    Returns:
        (Q, K) 2 q.C^-1 m_k - m_k.C^-1 m_k, times v.

    Raises:
        DataError: The queries do not fit the shots.

    References:
        Friedman, JASA 1989 (regularised discriminant analysis). Deviations: the shrinkage counts degrees of freedom
        instead of being cross-validated, and its target is a covariance of other tasks.

    Example:
        >>> shots = Shots(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0, 1]))
        >>> int(shrunk_discriminant(shots, np.array([[0.8, 0.6]])).argmax())
        1
    """
    wide, means = shots.check_queries(queries), shots.means
    residuals = shots.rows - means[shots.labels]
    freedom = len(residuals) - len(means)
    spread = float((residuals**2).sum())
    precise = means
    if freedom > 0 and spread > 0:
        # C v^-1 = (m I + R'R / v) / (m + f); Woodbury, as n is far below D.
        variance = spread / freedom / freedom
        inner = prior_shots * variance * np.eye(len(residuals)) + residuals @ residuals.T
        precise = means - (means @ residuals.T) @ np.linalg.solve(inner, residuals)
        precise = precise * (prior_shots + freedom) / prior_shots
    return np.asarray(2 * wide @ precise.T - (means * precise).sum(axis=1))
