"""A linear probe that learns from unlabelled images too: pseudo-labels and label spreading, in closed form.

All give each unlabelled image a class and a weight; then a ridge classifier is fitted to all images.

    pseudo_labels     the probe's own answers: in each of a few rounds a larger share of the unlabelled images, the most
                      confident ones of each class in the proportion of the labelled ones, weighing as much as the
                      calibrated confidence says
    teacher           the answers of another model, as confident as it is (distillation)
    label_spreading   labels flow along the nearest neighbours of all images: F = (1 - a) (I - a S)^-1 Y with the
                      normalised graph S, then classes are balanced to the labelled proportions

The ridge is solved in its dual form from one matrix of inner products between all images, so that a fit costs one
Cholesky factorisation of the images in it.

References:
    Lee, ICML workshop 2013 (pseudo-labels); Hinton et al., 2015 (distillation; here into a ridge classifier, by the
    teacher's most probable class); Zou et al., ECCV 2018 (balanced by class); Zhou et al., NIPS 2003 (label
    spreading); Zhu et al., ICML 2003 (class mass). Deviation: what is spread is distilled into a linear classifier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import coo_array, csr_array
from scipy.special import softmax

from transferkit.core.errors import OptionError, unknown_name
from transferkit.measure.quality import fit_temperature
from transferkit.measure.ridge import PENALTIES

__all__ = ["UNLABELLED_METHODS", "DualProbe", "fit_dual_probe", "learn_from_unlabelled"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

UNLABELLED_METHODS = ("pseudo_labels", "label_spreading")

SHARES = (0.2, 0.5, 0.8)
"""Of the unlabelled images that are pseudo-labelled in each round: all of them never are, as some are of no class."""

NEIGHBOURS, SPREADING, STEPS = 10, 0.9, 40
"""Of the graph; share of a label that flows on (0.99 in the paper, which has no classifier behind); steps of the
iteration, after which 0.9^40 = 1.5 % is left to flow."""

CHUNK, LEAST_WEIGHT = 1024, 1e-3


@dataclass(frozen=True)
class DualProbe:
    """A ridge classifier as weights of images: scores are inner products with these images, times coefficients.

    Args:
        rows: (n,) indices of the images that it was fitted to.
        coefficients: (n, K).
        base: (K,) added to all scores.
    """

    rows: Ints
    coefficients: Floats
    base: Floats

    def scores(self, products: npt.NDArray[np.floating]) -> Floats:
        """(m, K) of images whose inner products with all images are (m, N)."""
        return products[:, self.rows] @ self.coefficients + self.base


def fit_dual_probe(
    products: npt.NDArray[np.floating], rows: Ints, labels: Ints, weights: Floats, *, classes: int, penalty: float
) -> DualProbe:
    """Weighted ridge regression onto one-hot targets.

    Args:
        products: (N, N) inner products of all images' centred features.
        rows: (n,) those to fit to.
        labels: (n,) int in [0, K).
        weights: (n,) > 0.
        classes: K.
        penalty: > 0.

    Example:
        >>> x = np.array([[-1.0], [-0.8], [0.9], [0.9]])
        >>> probe = fit_dual_probe(x @ x.T, np.arange(4), np.array([0, 0, 1, 1]), np.ones(4), classes=2, penalty=0.1)
        >>> probe.scores(x @ x.T).argmax(axis=1).tolist()
        [0, 0, 1, 1]
    """
    base = np.bincount(labels, weights=weights, minlength=classes) / weights.sum()
    wanted = np.eye(classes)[labels] - base
    system = products[np.ix_(rows, rows)].astype(np.float64)
    system[np.diag_indices(len(rows))] += penalty / weights
    return DualProbe(rows, cho_solve(cho_factor(system, check_finite=False), wanted, check_finite=False), base)


def best_penalty(products: npt.NDArray[np.floating], rows: Ints, labels: Ints, *, classes: int) -> tuple[float, float]:
    """The penalty with the least squared error when images are left out one by one, and the temperature of its scores.

    Args:
        products, rows, labels, classes: As for `fit_dual_probe`.
    """
    base = np.bincount(labels, minlength=classes) / len(labels)
    wanted = np.eye(classes)[labels] - base
    values, vectors = np.linalg.eigh(products[np.ix_(rows, rows)].astype(np.float64))
    inside = vectors.T @ wanted
    found = []
    for penalty in PENALTIES:
        inverse = 1 / (np.maximum(values, 0) + penalty)
        alpha = vectors @ (inverse[:, None] * inside)
        residual = alpha / ((vectors**2) @ inverse)[:, None]  # of each image while it is left out
        found.append((float((residual**2).sum()), float(penalty), base + wanted - residual))
    _, penalty, left_out = min(found, key=lambda one: one[0])
    return penalty, fit_temperature(left_out, labels)


def learn_from_unlabelled(
    products: npt.NDArray[np.floating],
    labelled: Ints,
    labels: Ints,
    unlabelled: Ints,
    *,
    classes: int,
    method: str | None,
    answers: npt.NDArray[np.floating] | None = None,
) -> DualProbe:
    """A ridge classifier from labelled images, and unlabelled ones where a method is named.

    Args:
        products: (N, N) inner products of all images' centred features.
        labelled: (n,) indices of the labelled images.
        labels: (n,) int in [0, K), of these.
        unlabelled: (m,) indices of the unlabelled images.
        classes: K.
        method: One of `UNLABELLED_METHODS`, or "teacher"; None fits to the labelled images alone.
        answers: (m, K) what a teacher says about the unlabelled images, rows sum to 1; for "teacher" only.

    Raises:
        OptionError: There is no such method.
    """
    penalty, temperature = best_penalty(products, labelled, labels, classes=classes)
    plain = fit_dual_probe(products, labelled, labels, np.ones(len(labels)), classes=classes, penalty=penalty)
    if method is None or not len(unlabelled):
        return plain
    if method == "teacher" and answers is not None:
        guessed, weights = answers.argmax(axis=1), np.maximum(answers.max(axis=1).astype(np.float64), LEAST_WEIGHT)
        return _refit(products, labelled, labels, unlabelled, guessed, weights, classes, penalty)
    if method not in UNLABELLED_METHODS:
        raise OptionError(unknown_name("way to use unlabelled images", method, UNLABELLED_METHODS))
    shares = np.bincount(labels, minlength=classes) / len(labels)
    if method == "label_spreading":
        guessed, weights = _spread(products, labelled, labels, unlabelled, shares)
        kept = weights > 0
        return _refit(products, labelled, labels, unlabelled[kept], guessed[kept], weights[kept], classes, penalty)
    probe = plain
    for share in SHARES:
        confidence = softmax(probe.scores(products[unlabelled]) / temperature, axis=1)
        chosen, guessed = _most_confident(confidence, shares, share)
        weights = np.maximum(confidence[chosen, guessed], LEAST_WEIGHT)
        probe = _refit(products, labelled, labels, unlabelled[chosen], guessed, weights, classes, penalty)
    return probe


def _refit(
    products: npt.NDArray[np.floating],
    labelled: Ints,
    labels: Ints,
    added: Ints,
    guessed: Ints,
    weights: Floats,
    classes: int,
    penalty: float,
) -> DualProbe:
    return fit_dual_probe(
        products,
        np.concatenate([labelled, added]),
        np.concatenate([labels, guessed]),
        np.concatenate([np.ones(len(labels)), weights]),
        classes=classes,
        penalty=penalty,
    )


def _most_confident(confidence: Floats, shares: Floats, share: float) -> tuple[Ints, Ints]:
    """Positions of the images to pseudo-label and their classes: of each class its part of the share, most confident.

    A class with fewer answers than its part gives all of them: images that answer another class are not forced into it.
    """
    answers, height = confidence.argmax(axis=1), confidence.max(axis=1)
    chosen = []
    for label, part in enumerate(shares):
        own = np.flatnonzero(answers == label)
        quota = round(share * part * len(confidence))
        chosen.append(own[np.argsort(-height[own], kind="stable")][:quota])
    rows = np.concatenate(chosen)
    return rows, answers[rows]


def _spread(
    products: npt.NDArray[np.floating], labelled: Ints, labels: Ints, unlabelled: Ints, shares: Floats
) -> tuple[Ints, Floats]:
    """(m,) classes of the unlabelled images and (m,) weights in [0, 1]."""
    among = np.concatenate([labelled, unlabelled])
    graph = _neighbour_graph(products, among)
    start = np.zeros((len(among), len(shares)))
    start[np.arange(len(labels)), labels] = 1 / np.bincount(labels, minlength=len(shares))[labels]
    flowing = start.copy()
    for _ in range(STEPS):
        flowing = SPREADING * (graph @ flowing) + (1 - SPREADING) * start
    found = flowing[len(labels) :]
    mass = found.sum(axis=0)
    found = found * np.where(mass > 0, shares / np.where(mass > 0, mass, 1), 0)
    total = found.sum(axis=1, keepdims=True)
    found = found / np.where(total > 0, total, 1)
    return found.argmax(axis=1), found.max(axis=1) * (total[:, 0] > 0)


def _neighbour_graph(products: npt.NDArray[np.floating], among: Ints) -> csr_array:
    """(n, n) symmetric, D^-1/2 A D^-1/2, of the nearest images by cosine; squared cosines are the weights."""
    lengths = np.sqrt(np.maximum(np.diag(products)[among], 1e-12))
    count = min(NEIGHBOURS, len(among) - 1)
    rows, columns, values = [], [], []
    for start in range(0, len(among), CHUNK):
        span = np.arange(start, min(start + CHUNK, len(among)))
        cosine = products[np.ix_(among[span], among)] / (lengths[span][:, None] * lengths)
        cosine[np.arange(len(span)), span] = -np.inf
        nearest = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        rows.append(np.repeat(span, count))
        columns.append(nearest.reshape(-1))
        values.append(np.maximum(np.take_along_axis(cosine, nearest, axis=1), 0).reshape(-1) ** 2)
    shape = (len(among), len(among))
    one_way = coo_array(
        (np.concatenate(values).astype(np.float64), (np.concatenate(rows), np.concatenate(columns))), shape=shape
    ).tocsr()
    both = one_way.maximum(one_way.T)
    inverse = 1 / np.sqrt(np.maximum(np.asarray(both.sum(axis=0)).reshape(-1), 1e-12))
    return csr_array(both.multiply(inverse[:, None]).multiply(inverse[None, :]))
