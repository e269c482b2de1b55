"""Weights of an ensemble's members, chosen on held-back images: greedy selection, with an honest estimate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from transferkit.core.errors import OptionError
from transferkit.measure import fit_temperature
from transferkit.records import Folds

__all__ = ["ROUNDS", "Weighed", "weigh_members"]

ROUNDS = 20
"""Rounds of greedy selection: weights are multiples of 1 / 20, so that most members get none."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """The weights of an ensemble, and what it would have scored.

    Args:
        weights: (P,) >= 0; the logits of the ensemble are the weighted sum, its temperature included.
        logits: (M, K) of the held-back images, each with weights that were chosen without its part of them: chosen on
            all of them, the weights would make their own score too good.
        accuracy, log_loss: Of these logits.
    """

    weights: Array
    logits: Array
    accuracy: float
    log_loss: float

    @property
    def kept(self) -> int:
        """Number of members with a weight."""
        return int(np.count_nonzero(self.weights))


def weigh_members(
    logits: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], *, folds: Folds | None = None, seed: int = 0
) -> Weighed:
    """Weights of the members whose average logits have the lowest log loss on held-back images.

    Args:
        logits: (P, M, K) of P members, on M images that were held back from their fits.
        labels: (M,) int in [0, K).
        folds: Which images belong together; None: each is independent of all others.
        seed: Of the parts for the honest estimate.

    Raises:
        OptionError: There is no member or no image, or the shapes do not fit.

    References:
        Caruana et al., ICML 2004: greedy selection with replacement. Deviation: log loss instead of the metric itself,
        which has few distinct values on few images; and a temperature afterwards.

    Example:
        >>> labels = np.arange(200) % 2
        >>> rng = np.random.default_rng(0)
        >>> good, bad = (share * np.eye(2)[labels] + rng.normal(size=(200, 2)) for share in (3.0, 0.0))
        >>> weighed = weigh_members(np.stack([good, bad]), labels)
        >>> bool(weighed.weights[0] > 5 * weighed.weights[1])
        True
    """
    known = np.asarray(logits, dtype=np.float64)
    if known.ndim != 3 or 0 in known.shape or known.shape[1] != len(labels):
        raise OptionError(f"Weights need (P, M, K) logits and M labels, got {known.shape} and {labels.shape}.")
    part = (Folds.alone(labels) if folds is None else folds).assign_splits(seed=seed)
    honest = np.empty_like(known[0])
    for number in np.unique(part):
        inside = part != number
        weights = _choose(known[:, inside], labels[inside]) if inside.any() else np.full(len(known), 1 / len(known))
        honest[~inside] = np.tensordot(weights, known[:, ~inside], axes=1)
    return Weighed(
        weights=_choose(known, labels),
        logits=honest,
        accuracy=float((honest.argmax(axis=1) == labels).mean()),
        log_loss=_loss(honest, labels),
    )


def _choose(logits: Array, labels: npt.NDArray[np.int64]) -> Array:
    """(P,) weights with the temperature folded in."""
    total, counts = np.zeros_like(logits[0]), np.zeros(len(logits))
    for chosen in range(1, ROUNDS + 1):
        losses = [_loss((total + one) / chosen, labels) for one in logits]
        best = int(np.argmin(losses))
        total += logits[best]
        counts[best] += 1
    return counts / ROUNDS / fit_temperature(total / ROUNDS, labels)


def _loss(logits: Array, labels: npt.NDArray[np.int64]) -> float:
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())
