"""Choice among probe, fine-tuned network and their averages where images have several labels, or numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from transferkit.finetune.verify import WEIGHTS, Verdict
from transferkit.measure import (
    ResampledScore,
    calibrate_labels,
    choose_thresholds,
    label_loss,
    resample_score,
    target_units,
)
from transferkit.records import Candidate, Folds, Targets

__all__ = ["verify_targets"]

Array = npt.NDArray[np.floating]


def verify_targets(probe: Array, tuned: Array, folds: Folds) -> Verdict:
    """Compare both, and averages of their outputs, on held-back images.

    Chosen is the candidate with the lowest loss (binary cross-entropy of labels, squared error of numbers) among those
    within one standard error of the best score and at least as good as the probe, in score and in loss.

    Args:
        probe, tuned: (M, T) logits of labels, or numbers in their own units.
        folds: Targets of the M held-back images, and which of them belong together.

    Example:
        >>> from transferkit.records import TargetFolds
        >>> truth = np.arange(12.0)[:, None]
        >>> folds = TargetFolds.of(Targets(task="regression", names=("age",), values=truth))
        >>> verify_targets(truth + 0.1, truth[::-1], folds).kept.name
        'probe'
    """
    targets = folds.targets
    assert targets is not None
    shares = folds.shares
    temperatures = (1.0, 1.0)
    if targets.is_labels:
        temperatures = (
            calibrate_labels(probe, targets.values, shares),
            calibrate_labels(tuned, targets.values, shares),
        )
    ends = probe / temperatures[0], tuned / temperatures[1]
    outputs = [weight * ends[1] + (1 - weight) * ends[0] for weight in WEIGHTS]
    scores = [resample_score(targets, one, folds) for one in outputs]
    candidates = tuple(
        _candidate(weight, one, score, scores[0], targets, shares)
        for weight, one, score in zip(WEIGHTS, outputs, scores, strict=True)
    )
    best = max(range(len(candidates)), key=lambda at: candidates[at].accuracy)
    least = max(candidates[0].accuracy, candidates[best].accuracy - scores[best].error)
    allowed = [one for one in candidates if one.accuracy >= least and one.log_loss <= candidates[0].log_loss]
    # On a tie prefer one network to two.
    kept = min(allowed or [candidates[0]], key=lambda one: (one.log_loss, 0 < one.weight < 1))
    thresholds: tuple[float, ...] = ()
    if targets.is_labels:
        chosen = outputs[WEIGHTS.index(kept.weight)]
        thresholds = tuple(choose_thresholds(expit(chosen), targets.values, shares).tolist())
    return Verdict(candidates, kept, temperatures, thresholds)


def _candidate(
    weight: float,
    outputs: Array,
    score: ResampledScore,
    probe: ResampledScore,
    targets: Targets,
    shares: npt.NDArray[np.float64],
) -> Candidate:
    low, high = score.interval if score.known else (None, None)
    return Candidate(
        name={0.0: "probe", 1.0: "fine-tuned"}.get(weight, "average"),
        weight=weight,
        accuracy=score.score if score.known else 0.0,
        log_loss=_loss(outputs, targets, shares),
        gain_error=score.gain_error(probe) if weight and score.known else 0.0,
        measure=targets.measure,
        low=low,
        high=high,
    )


def _loss(outputs: Array, targets: Targets, shares: npt.NDArray[np.float64]) -> float:
    if targets.is_labels:
        return label_loss(outputs, targets.values, shares)
    unit = target_units(targets, shares)
    return float(np.average((((outputs - targets.values) / unit) ** 2).mean(axis=1), weights=shares))
