"""Class proportions of unlabelled images, from predictions: pure, arrays in, numbers out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["estimate_proportions", "match_proportions", "proportion_weights"]

Floats = npt.NDArray[np.float64]

ROUNDS = 1000
TOLERANCE = 1e-6

PSEUDO_IMAGES = 1.0
"""Added per class of the training proportions: a class that is never predicted is rare, not impossible."""

FEWEST, CLOSE = 12, 0.1
"""Matching keeps the largest subset whose proportions are within `CLOSE` of the wanted ones in total variation; never
less than `FEWEST` images, fewer of which tell nothing apart."""


def estimate_proportions(probabilities: npt.NDArray[np.floating], training: npt.NDArray[np.floating]) -> Floats:
    """(K,) class proportions of unlabelled images by expectation maximisation, sum 1.

    Args:
        probabilities: (N, K) calibrated probabilities of the images, rows sum to 1.
        training: (K,) > 0 class proportions that the probabilities were calibrated for, sum 1.

    References:
        Saerens et al., Neural Computation 2002. Deviation: `PSEUDO_IMAGES` (a Dirichlet prior at the training
        proportions), without which few images move the estimate to the edge.

    Example:
        >>> certain = np.array([[0.99, 0.01]] * 90 + [[0.01, 0.99]] * 10)
        >>> estimate_proportions(certain, np.array([0.5, 0.5])).round(1).tolist()
        [0.9, 0.1]
    """
    given = np.asarray(probabilities, dtype=np.float64)
    source = np.asarray(training, dtype=np.float64)
    classes = len(source)
    current = source.copy()
    prior = PSEUDO_IMAGES * classes * source
    for _ in range(ROUNDS):
        weighted = given * (current / source)
        weighted /= weighted.sum(axis=1, keepdims=True)
        renewed = (weighted.sum(axis=0) + prior) / (len(given) + prior.sum())
        moved = float(np.abs(renewed - current).max())
        current = renewed
        if moved < TOLERANCE:
            break
    return np.asarray(current / current.sum())


def proportion_weights(estimated: npt.NDArray[np.floating], training: npt.NDArray[np.floating]) -> Floats:
    """(K,) weight of a training image of each class so that their proportions become the estimated ones; mean 1."""
    weights = np.asarray(estimated, dtype=np.float64) / np.maximum(training, 1e-12)
    return weights / float(weights @ training)


def match_proportions(
    labels: npt.NDArray[np.int64], estimated: npt.NDArray[np.floating], *, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Positions of a random subset of labelled images with about the estimated class proportions, sorted.

    No image is repeated: copies would not be exchangeable with new images. So extreme proportions are matched only in
    part (`FEWEST`, `CLOSE`).

    Args:
        labels: (N,) int in [0, K).
        estimated: (K,) proportions, sum 1.
        seed: Of the draw.
    """
    counts = np.bincount(labels, minlength=len(estimated))
    shares = np.asarray(estimated, dtype=np.float64)
    wanted = counts
    # From all images down to what the scarcest class allows; wanted shrinks, and its proportions come closer.
    for size in np.unique(counts[counts > 0] / np.maximum(shares[counts > 0], 1e-9))[::-1]:
        smaller = np.minimum(np.round(size * shares), counts).astype(np.int64)
        if smaller.sum() < min(FEWEST, len(labels)):
            break
        wanted = smaller
        if np.abs(wanted / wanted.sum() - shares).sum() / 2 <= CLOSE:
            break
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(labels == label))[: wanted[label]] for label in range(len(shares))]
    return np.sort(np.concatenate(chosen))
