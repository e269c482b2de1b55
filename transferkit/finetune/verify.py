"""Never worse than the probe: which of probe, fine-tuned network and their averages does best on held-back images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from transferkit.measure import fit_temperature, log_loss
from transferkit.records import Candidate

__all__ = ["WEIGHTS", "Verdict", "verify"]

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the fine-tuned network's logits that are tried; 0 is the probe."""

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Verdict:
    """What is kept, and what it was compared with.

    Args:
        candidates: The probe first, the fine-tuned network last.
        kept: One of them.
        temperatures: That the logits of probe and fine-tuned network are divided by before they are averaged, > 0.
    """

    candidates: tuple[Candidate, ...]
    kept: Candidate
    temperatures: tuple[float, float]


def verify(
    probe: Array,
    tuned: Array,
    labels: npt.NDArray[np.int64],
    weights: Array | None = None,
    shares: Array | None = None,
) -> Verdict:
    """Compare both, and averages of their calibrated logits, on images that neither was fitted to.

    Kept is what has the lowest log loss among all that are as accurate as the best, within one standard error of an
    accuracy, and no less accurate than the probe.

    Args:
        probe, tuned: (N, K) logits.
        labels: (N,) int in [0, K).
        weights: (N,) > 0, what each image counts in accuracies and losses; None counts all alike.
        shares: (N,) > 0, what each image counts in a plain accuracy, whatever the class; None: that is not asked for.

    References:
        Wortsman et al., CVPR 2022, average the weights of a zero-shot and a fine-tuned network. Deviation: logits are
        averaged, which needs no common start of the two. The rule of one standard error is Breiman et al.'s, 1984.

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
    # Among equals one network rather than two.
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
    # One difference more than counted: agreement on all images does not make the gain certain.
    differences = np.sum(counting**2, where=right != (probe.argmax(axis=1) == labels)) + 1
    return Candidate(
        name={0.0: "probe", 1.0: "fine-tuned"}.get(weight, "average"),
        weight=weight,
        accuracy=float(np.average(right, weights=counting)),
        log_loss=max(0.0, log_loss(softmax(logits, axis=1), labels, counting)),
        gain_error=float(np.sqrt(differences) / len(labels)) if weight else 0.0,
        plain_accuracy=None if shares is None else float(np.average(right, weights=shares)),
    )
