"""Choice among probe, fine-tuned network and their averages on held-back images, never worse than the probe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from transferkit.measure import fit_temperature, log_loss
from transferkit.records import Candidate

__all__ = ["WEIGHTS", "Verdict", "verify"]

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Weights of the fine-tuned network's logits to try; 0 is the probe."""

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Verdict:
    """The chosen candidate, and all candidates.

    Args:
        candidates: The probe first, the fine-tuned network last.
        kept: One of them.
        temperatures: Of the logits of probe and fine-tuned network before averaging, > 0.
        thresholds: Probabilities from which on the kept candidate gives each label; empty for classes and numbers.
    """

    candidates: tuple[Candidate, ...]
    kept: Candidate
    temperatures: tuple[float, float]
    thresholds: tuple[float, ...] = ()


def verify(
    probe: Array,
    tuned: Array,
    labels: npt.NDArray[np.int64],
    weights: Array | None = None,
    shares: Array | None = None,
) -> Verdict:
    """Compare both, and averages of their calibrated logits, on held-back images.

    Chosen is the candidate with the lowest log loss among those within one standard error of the best accuracy and at
    least as accurate as the probe.

    Args:
        probe, tuned: (N, K) logits.
        labels: (N,) int in [0, K).
        weights: (N,) > 0, image weights for accuracies and losses; None for equal weights.
        shares: (N,) > 0, image weights for a plain accuracy without class weights; None: not computed.

    References:
        Wortsman et al., CVPR 2022, average the weights of a zero-shot and a fine-tuned network. Deviation: logits are
        averaged, which needs no common initialisation. The one-standard-error rule is Breiman et al.'s, 1984.

    Example:
        >>> right, wrong = np.array([[4.0, 0.0], [0.0, 4.0]]), np.array([[0.0, 1.0], [1.0, 0.0]])
        >>> verify(right, wrong, np.array([0, 1])).kept.name
        'probe'
    """
    temperatures = (fit_temperature(probe, labels), fit_temperature(tuned, labels))
    calibrated = (probe / temperatures[0], tuned / temperatures[1])
    counting = np.ones(len(labels)) if weights is None else weights / weights.mean()
    candidates = tuple(_judge(weight, *calibrated, labels, counting, shares) for weight in WEIGHTS)
    best = max(candidate.accuracy for candidate in candidates)
    error = np.sqrt(best * (1 - best) / len(labels))
    least = max(candidates[0].accuracy, best - error)
    # On a tie prefer one network to two.
    kept = min((c for c in candidates if c.accuracy >= least), key=lambda c: (c.log_loss, 0 < c.weight < 1))
    return Verdict(candidates, kept, temperatures)


def _judge(
    weight: float,
    probe: Array,
    tuned: Array,
    labels: npt.NDArray[np.int64],
    counting: Array,
    shares: Array | None,
) -> Candidate:
    logits = weight * tuned + (1 - weight) * probe
    right = logits.argmax(axis=1) == labels
    # One extra difference: agreement on all images does not make the gain certain.
    differences = np.sum(counting**2, where=right != (probe.argmax(axis=1) == labels)) + 1
    return Candidate(
        name={0.0: "probe", 1.0: "fine-tuned"}.get(weight, "average"),
        weight=weight,
        accuracy=float(np.average(right, weights=counting)),
        log_loss=max(0.0, log_loss(softmax(logits, axis=1), labels, counting)),
        gain_error=float(np.sqrt(differences) / len(labels)) if weight else 0.0,
        plain_accuracy=None if shares is None else float(np.average(right, weights=shares)),
    )
