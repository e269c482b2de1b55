"""Mutual information between images and a pretrained classifier's predictions, from its probabilities.

Confidence alone does not measure similarity to the source: a classifier of photographs assigns all scanned digits to
one class with 95 % confidence. What decreases with distance from the source is how much its predictions depend on the
image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError
from transferkit.core.intervals import TWO_SIDED
from transferkit.measure.nearness import GROUPS, remove_bias

__all__ = ["HeadInformation", "HeadScale", "fit_head_scale", "measure_head_information"]

Array = npt.NDArray[np.floating]

TINY = 1e-12
"""Lower bound of probabilities in logarithms; a probability of 0 contributes 0 to an entropy."""


@dataclass(frozen=True, kw_only=True)
class HeadInformation:
    """Information in the predictions of a classifier of Z classes on N images.

    Args:
        share: Mutual information of image and prediction in units of log Z: about 0 if all predictions are equal or
            none is confident, 1 if all Z classes are predicted equally often and with certainty.
        error: Standard error of it.
        confidence: Mean probability of the likeliest class, in [0, 1].
        told_apart: Effective number of classes: equally frequent, certain predictions with the same information.
    """

    share: float
    error: float
    confidence: float
    told_apart: float


@dataclass(frozen=True)
class HeadScale:
    """Maps a share to a similarity, 1 / (1 + exp(-steepness (share - middle))), with its uncertainty.

    Args:
        middle: The share at which the similarity is 0.5.
        steepness: > 0.
        scatter: >= 0: standard deviation of the logit of the similarity about the scale, from task to task.

    Example:
        >>> scale = HeadScale(middle=0.5, steepness=4.0, scatter=0.0)
        >>> scale.similarity(0.5), scale.interval(0.5, 0.0)
        (0.5, (0.5, 0.5))
    """

    middle: float
    steepness: float
    scatter: float

    def __post_init__(self) -> None:
        if not (self.steepness > 0 and self.scatter >= 0):
            raise OptionError(
                f"A scale needs steepness > 0 and scatter >= 0, got {self.steepness!r} and {self.scatter!r}."
            )

    def similarity(self, share: float) -> float:
        """In (0, 1); rises with the share."""
        return _expit(self.steepness * (share - self.middle))

    def interval(self, share: float, error: float) -> tuple[float, float]:
        """95 % interval of the similarity over samples of images and over tasks.

        Args:
            share: As measured.
            error: Its standard error.
        """
        logit = self.steepness * (share - self.middle)
        margin = TWO_SIDED * math.hypot(self.steepness * error, self.scatter)
        return _expit(logit - margin), _expit(logit + margin)


def measure_head_information(probabilities: Array) -> HeadInformation:
    """Mutual information of image and prediction; higher for images like the classifier's training images.

    Args:
        probabilities: (N, Z) float, rows sum to 1; N >= 2, Z >= 2. The order of rows must be independent of the
            images' content.

    Returns:
        The share is unbiased up to terms of order 1 / N^2 while N exceeds the number of predicted classes; with fewer
        images it is too low, as N images distinguish at most N classes.

    Raises:
        OptionError: If the shape does not fit.

    References:
        Mutual information of image and label, after Bridle et al., NeurIPS 1991; its exponential is the inception score
        (Salimans et al., NeurIPS 2016). Deviation: bias-corrected by a jackknife over groups, and in units of log Z.

    Example:
        >>> sure = np.repeat(np.eye(4), 25, axis=0)  # each of 4 classes for a quarter of 100 images
        >>> found = measure_head_information(np.random.default_rng(0).permutation(sure))
        >>> round(found.share, 1), found.confidence
        (1.0, 1.0)
        >>> round(measure_head_information(np.full((100, 4), 0.25)).share, 6)
        0.0
    """
    if probabilities.ndim != 2 or min(probabilities.shape) < 2:
        raise OptionError(f"Expected (N, Z) with N, Z >= 2, got {probabilities.shape}.")
    rows = probabilities.astype(np.float64)
    count, classes = rows.shape
    starts = np.linspace(0, count, min(GROUPS, count) + 1).astype(int)
    sizes = np.diff(starts)
    answers = np.add.reduceat(rows, starts[:-1])
    doubts = np.add.reduceat(_entropy(rows), starts[:-1])
    full = _information(answers.sum(axis=0), doubts.sum(), count)
    without = [
        _information(answers.sum(axis=0) - answers[group], doubts.sum() - doubts[group], count - sizes[group])
        for group in range(len(sizes))
    ]
    value, variance = remove_bias(np.array(full), np.array(without), sizes / count)
    information = max(0.0, float(value))
    return HeadInformation(
        share=information / math.log(classes),
        error=math.sqrt(float(variance)) / math.log(classes),
        confidence=float(rows.max(axis=1).mean()),
        told_apart=math.exp(information),
    )


def _information(answers: Array, doubt: float, images: int) -> float:
    """Entropy of the mean prediction minus the mean entropy of predictions, in nats, from their sums over images."""
    return float(_entropy(answers / images) - doubt / images)


def _entropy(probabilities: Array) -> Array:
    kept = np.maximum(probabilities, TINY)
    return np.asarray(-(kept * np.log(kept)).sum(axis=-1))


def fit_head_scale(shares: Array, similarities: Array, families: Sequence[str]) -> HeadScale:
    """The scale that best predicts similarities from shares, by least squares of logits; its scatter is measured on
    families of tasks left out of the fit.

    Args:
        shares: (T,) float.
        similarities: (T,) float in (0, 1), measured with another method.
        families: (T,) family of related tasks; at least 3 different ones.

    Raises:
        OptionError: If there are too few families, or shares do not increase with similarities.

    Example:
        >>> shares = np.array([0.2, 0.4, 0.6, 0.8])
        >>> scale = fit_head_scale(shares, 1 / (1 + np.exp(-5 * (shares - 0.5))), ["a", "b", "c", "d"])
        >>> round(scale.middle, 3), round(scale.steepness, 3), round(scale.scatter, 6)
        (0.5, 5.0, 0.0)
    """
    names = np.array(families)
    if len(np.unique(names)) < 3:
        raise OptionError(f"A scale needs tasks of 3 families or more, got {len(np.unique(names))}.")
    logits = np.log(similarities) - np.log1p(-similarities)
    slope, offset = np.polyfit(shares, logits, 1)
    if not slope > 0:
        raise OptionError("Shares do not increase with similarities, so no scale can be fitted. Use other tasks.")
    left_out = np.empty_like(logits)
    for family in np.unique(names):
        others = names != family
        left_out[~others] = logits[~others] - np.polyval(np.polyfit(shares[others], logits[others], 1), shares[~others])
    return HeadScale(float(-offset / slope), float(slope), float(np.sqrt(np.mean(left_out**2))))


def _expit(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))
