"""Evidence of a Bayesian linear model from features to labels: LogME."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.measure.transferability._inputs import Floats, check_features, class_means, principal_scores

__all__ = ["logme"]

ITERATIONS = 200
TOLERANCE = 1e-8
"""Tolerance of the logarithm of the precisions' ratio; a step costs only R x K operations."""

RATIO_SPAN = 1e10
"""The ratio of precisions stays within this factor of the strongest direction's squared singular value: a perfect fit
would send the evidence to infinity."""


def logme(features: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]]) -> float:
    """Log evidence per image of one-against-rest linear models, weights integrated out; higher is better.

    Each class's 0/1 target is y = F w + noise with w ~ N(0, 1/alpha) and noise ~ N(0, 1/beta); alpha and beta maximise
    the evidence. Safe for N < D and constant features. A class with one image is a target like any other.

    Args:
        features: (N, D) float, one pooled vector per image; not centred; the scale does not matter.
        labels: (N,) int in [0, K); at least 2 classes present.

    Returns:
        Mean over classes of log evidence / N, in nats. It is a density, so it can have either sign and is not bounded
        above.

    Raises:
        DataError: Features or labels cannot be used.

    Comparable:
        Ranks models on one task; it has no threshold and is not comparable across tasks.

    References:
        You et al., ICML 2021 (fixed point of alpha and beta on the singular value decomposition; in this form You et
        al., JMLR 2022). Deviations: the noise is profiled out at the last ratio alpha / beta, which leaves the fixed
        point's value unchanged, and the ratio is kept within 1e10 of the largest squared singular value.

    Example:
        >>> two_apart = np.array([[1.0, 0], [1.1, 0], [0, 1], [0, 1.1]])
        >>> logme(two_apart, np.array([0, 0, 1, 1])) > logme(two_apart, np.array([0, 1, 0, 1]))
        True
    """
    wide, labels = check_features(features, labels)
    scores = principal_scores(wide)
    spectrum = (scores**2).sum(axis=0)
    scores, spectrum = scores[:, spectrum > 0], spectrum[spectrum > 0]
    left = scores / np.sqrt(spectrum)
    counts = np.bincount(labels)
    explained = (class_means(left, labels) * counts[:, None]).T ** 2  # (R, K): (u_r'y_k)^2
    unexplained = np.maximum(counts - explained.sum(axis=0), 0)
    return float(_log_evidence(spectrum, explained, unexplained, len(labels)).mean()) / len(labels)


def _log_evidence(spectrum: Floats, explained: Floats, unexplained: Floats, images: int) -> Floats:
    """(K,) log evidence at the fixed point of the ratio alpha / beta.

    With r = alpha / beta and k_j = r / (s_j + r), the covariance of y is (I + F F'/r) / beta, so that the best beta
    is N / q with q = sum_j k_j (u_j'y)^2 + |y outside F|^2, and log det (I + F F'/r) = -sum_j log k_j.
    """
    ratio = _fixed_point(spectrum, explained, unexplained, images)
    kept = ratio / (spectrum[:, None] + ratio)
    quadratic = (kept * explained).sum(axis=0) + unexplained
    return 0.5 * (images * np.log(images / (2 * np.pi * quadratic)) - images + np.log(kept).sum(axis=0))


def _fixed_point(spectrum: Floats, explained: Floats, unexplained: Floats, images: int) -> Floats:
    """(K,) alpha / beta where alpha = gamma / |m|^2 and beta = (N - gamma) / |F m - y|^2."""
    tiny = np.finfo(np.float64).tiny
    scale = spectrum.max(initial=0) or 1.0
    ratio = np.full(len(unexplained), spectrum.mean() if len(spectrum) else 1.0)
    for _ in range(ITERATIONS):
        kept = ratio / (spectrum[:, None] + ratio)
        gamma = (1 - kept).sum(axis=0)
        error = (kept**2 * explained).sum(axis=0) + unexplained
        weights = ((1 - kept) ** 2 * explained / spectrum[:, None]).sum(axis=0)
        # A quotient of logarithms: no signal sends |m|^2 to 0, a perfect fit the error.
        numerator = np.log(np.maximum(gamma, tiny)) + np.log(np.maximum(error, tiny))
        denominator = np.log(np.maximum(images - gamma, tiny)) + np.log(np.maximum(weights, tiny))
        span = np.log(RATIO_SPAN)
        step = np.exp(np.clip(numerator - denominator, np.log(scale) - span, np.log(scale) + span))
        settled = np.abs(np.log(step / ratio)).max() < TOLERANCE
        ratio = step
        if settled:
            break
    return ratio
