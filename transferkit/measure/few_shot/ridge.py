"""Ridge regression on the shots."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.measure.few_shot.shots import Rows, Shots

__all__ = ["few_shot_ridge"]

PENALTY = 1.0
"""For rows of length 1: a class mean of one shot moves half way to its target. Not tuned."""


def few_shot_ridge(shots: Shots, queries: npt.NDArray[Any], *, penalty: float = PENALTY) -> Rows:
    """Scores of ridge regression on one-hot targets, its intercept unpenalised; higher is likelier.

    Args:
        shots: Rows of length about 1.
        queries: (Q, D), prepared like the shots.
        penalty: > 0, on the squared weights.

    Returns:
        (Q, K), about in [0, 1].

    Raises:
        DataError: The queries do not fit the shots.

    References:
        Bertinetto et al., "Meta-learning with differentiable closed-form solvers", ICLR 2019 (R2-D2). Deviations: the
        penalty is a constant instead of meta-learnt, classes weigh the same, and centring replaces the bias column.

    Example:
        >>> shots = Shots(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0, 1]))
        >>> few_shot_ridge(shots, np.array([[0.5, 0.5]])).round(3).tolist()
        [[0.5, 0.5]]
    """
    wide = shots.check_queries(queries)
    weight = 1 / shots.counts[shots.labels]
    weight *= len(weight) / weight.sum()
    share = weight / weight.sum()
    centre, target = share @ shots.rows, share @ shots.one_hot
    scale = np.sqrt(weight)[:, None]
    rows = (shots.rows - centre) * scale
    # The dual form: n x n instead of D x D.
    solved = np.linalg.solve(rows @ rows.T + penalty * np.eye(len(rows)), (shots.one_hot - target) * scale)
    return np.asarray((wide - centre) @ rows.T @ solved + target)
