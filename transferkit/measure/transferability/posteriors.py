"""Information of source classes, or of a mixture fitted to the features, about the labels: LEEP, NCE, NLEEP."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError
from transferkit.measure.transferability._inputs import (
    Floats,
    Labels,
    centre,
    check_features,
    check_probabilities,
    class_means,
    principal_scores,
)

__all__ = ["leep", "nce", "nleep"]

ENERGY = 0.8
"""Share of the variance that NLEEP's principal components keep, as in the paper."""

COMPONENTS_PER_CLASS = 5
"""Mixture components per class, as in the paper."""

IMAGES_PER_COMPONENT = 5
"""With fewer, components memorise single images, and NLEEP approaches 0 regardless of the labels."""


def leep(source_probabilities: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]]) -> float:
    """Log-likelihood of the labels predicted from the source's classes; higher is better.

    A class with one image is predicted from that image alone, which is optimistic.

    Args:
        source_probabilities: (N, Z) float, the source head's softmax; rows sum to 1.
        labels: (N,) int in [0, K); at least 2 classes present.

    Returns:
        Mean log-probability in nats, in [-H(y), 0]: 0 if the source class determines the label, -H(y) if it is
        uninformative.

    Raises:
        DataError: Probabilities or labels cannot be used.

    Comparable:
        Between models on the same images and labels whose heads know the same source classes: more source classes
        increase it regardless of the labels.

    References:
        Nguyen et al., ICML 2020. No deviation.

    Example:
        >>> leep(np.array([[1.0, 0], [1, 0], [0, 1]]), np.array([0, 0, 1]))
        0.0
    """
    probabilities, labels = check_probabilities(source_probabilities, labels)
    return _log_translation(probabilities, labels)


def _log_translation(probabilities: Floats, labels: Labels) -> float:
    joint = class_means(probabilities, labels) * np.bincount(labels)[:, None]  # (K, Z), times N
    marginal = joint.sum(axis=0)
    conditional = joint / np.where(marginal > 0, marginal, 1)
    expected = np.minimum((conditional[labels] * probabilities).sum(axis=1), 1)
    return float(np.log(np.maximum(expected, np.finfo(np.float64).tiny)).mean()) + 0.0


def nce(source_probabilities: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]]) -> float:
    """Negative entropy of the label given the source's most probable class, -H(y|z); higher is better.

    A source class that occurs once determines its label, which is optimistic for rare classes.

    Args:
        source_probabilities: (N, Z) float, the source head's softmax; only the largest of each row matters.
        labels: (N,) int in [0, K); at least 2 classes present.

    Returns:
        A value in nats, in [-H(y), 0].

    Raises:
        DataError: Probabilities or labels cannot be used.

    Comparable:
        Between models on the same images and labels whose heads know the same source classes: more source classes
        increase it regardless of the labels.

    References:
        Tran et al., ICCV 2019. Deviation: the source's labels are its own predictions, as the images have none.

    Example:
        >>> nce(np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), np.array([0, 0, 1]))
        0.0
    """
    probabilities, labels = check_probabilities(source_probabilities, labels)
    hard = np.zeros_like(probabilities)
    hard[np.arange(len(labels)), probabilities.argmax(axis=1)] = 1
    return _log_translation(hard, labels)


def nleep(
    features: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.integer[Any]],
    *,
    components: int | None = None,
    seed: int = 0,
) -> float:
    """LEEP with the posteriors of a Gaussian mixture fitted to the features as source classes; higher is better.

    It needs no source head. Safe for N < D; constant features give -H(y). A class with one image shares a component
    with its neighbours.

    Args:
        features: (N, D) float, one pooled vector per image.
        labels: (N,) int in [0, K); at least 2 classes present.
        components: Of the mixture, in [1, N]; None: 5 per class, but no more than one per 5 images.
        seed: Of the mixture's initialisation; the order of the images does not matter.

    Returns:
        Mean log-probability in nats, in [-H(y), 0].

    Raises:
        DataError: Features or labels cannot be used.
        OptionError: `components` is outside [1, N].

    Comparable:
        Between models on the same images and labels, with the same number of components and seed; more components
        increase it regardless of the labels.

    References:
        Li et al., CVPR 2021. Deviations: diagonal covariances, as the components have too few images in D dimensions
        for full ones, and at least 5 images per component.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = np.repeat([0, 1], 20)
        >>> nleep(rng.normal(size=(40, 3)) + 20 * labels[:, None], labels) > -0.01
        True
    """
    wide, labels = check_features(features, labels)
    images, classes = len(labels), int(labels.max()) + 1
    if components is None:
        components = max(2, min(COMPONENTS_PER_CLASS * classes, images // IMAGES_PER_COMPONENT))
    if not 1 <= components <= images:
        raise OptionError(f"components must be in [1, {images}], the number of images, got {components!r}.")
    scores = principal_scores(centre(wide))
    variance = (scores**2).mean(axis=0)
    if variance[0] == 0:
        return _log_translation(np.ones((images, 1)), labels)
    share = np.cumsum(variance) / variance.sum()
    kept = scores[:, : int(np.searchsorted(share, ENERGY)) + 1] / np.sqrt(variance[0])
    return _log_translation(_posteriors(kept, components, seed), labels)


def _posteriors(points: Floats, components: int, seed: int) -> Floats:
    """(N, M) probabilities of the components, independent of the order of the points."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    # The mixture's initialisation draws points by position; sorting makes it independent of their order.
    order = np.lexsort(points.T[::-1])
    mixture = GaussianMixture(components, covariance_type="diag", random_state=seed)
    with warnings.catch_warnings():
        # Fewer distinct points than components, or a mixture that has not converged: the posteriors are still usable.
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(points[order])
    return np.asarray(mixture.predict_proba(points), dtype=np.float64)
