"""The nearest class mean: no parameter is fitted but the means."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.measure.few_shot.shots import Rows, Shots

__all__ = ["nearest_mean", "unit_rows"]


def unit_rows(rows: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """(N, D) rows of length 1; a row of zeros stays one.

    Example:
        >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6, 0.8], [0.0, 0.0]]
    """
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), np.finfo(rows.dtype).tiny))


def nearest_mean(shots: Shots, queries: npt.NDArray[Any]) -> Rows:
    """Minus the squared distance to each class mean, up to a constant per query; higher is nearer.

    Args:
        shots: Rows that are centred and of length 1 (`FeatureSpace.join`): then this is CL2N.
        queries: (Q, D), prepared like the shots.

    Returns:
        (Q, K): 2 q.m - m.m, in (-inf, |q|^2].

    Raises:
        DataError: The queries do not fit the shots.

    References:
        Wang et al., "SimpleShot", arXiv 1911.04623 (CL2N: centring, L2 normalisation, nearest centroid); Snell et
        al., NeurIPS 2017. Deviation: none; where the centre comes from is the caller's choice.

    Example:
        >>> shots = Shots(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0, 1]))
        >>> int(nearest_mean(shots, np.array([[0.8, 0.6]])).argmax())
        1
    """
    means = shots.means
    return np.asarray(2 * shots.check_queries(queries) @ means.T - (means**2).sum(axis=1))
