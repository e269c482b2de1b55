"""Accuracy on unlabelled images, estimated from predictions alone: pure, arrays in, numbers out.

Each score is a number that falls as a model gets worse and needs no labels. What counts is how far it is below its
value on held-back training images, of as many images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.core.intervals import wilson_interval
from transferkit.records import AccuracyEstimate
from transferkit.shift.proportions import estimate_proportions, proportion_weights

__all__ = ["Answers", "estimate_accuracy", "score_changes"]

Floats = npt.NDArray[np.float64]

WEIGHTS: Mapping[str, float] = {
    "transport": 0.905,
    "agreement": 0.233,
    "less confident": 0.576,
    "more confident": 0.219,
}
"""Score -> change of the logit of accuracy per change of its own logit. Fitted to shifted copies of six tasks that the
benchmark does not report, by `scripts/bench_shift.py learn` and `weigh`."""

SPREAD = 0.5
"""Standard deviation of the logit of accuracy around that prediction, per unit of change: twice that on the tasks it
was fitted to (0.25), as images may be altered in ways that none of these were."""

RESAMPLED = 8
"""Draws of held-back images that a score's value without shift is averaged over."""

OPINION = "opinion "

TRANSPORTED = 500
"""Images that transport is computed on at most: an assignment costs the cube of their number."""

Z90 = 1.645


@dataclass(frozen=True)
class Answers:
    """What a model, and others beside it, say of some images.

    Args:
        probabilities: (N, K) of the model, calibrated.
        opinions: (E, N) int classes by E other heads; E may be 0.
    """

    probabilities: Floats
    opinions: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.probabilities)

    def take(self, rows: npt.NDArray[np.int64]) -> Answers:
        """Those for some of the images."""
        return Answers(self.probabilities[rows], self.opinions[:, rows])


def estimate_accuracy(
    held_back: Answers, labels: npt.NDArray[np.int64], new: Answers, *, kind: str, effective: float, seed: int = 0
) -> AccuracyEstimate:
    """Accuracy on new images, with a 90 % interval.

    Without a shift it is that on held-back images; where only class proportions differ, that of the classes in their
    new proportions; else it follows the scores.

    Args:
        held_back: For M held-back training images, each while it was held back.
        labels: (M,) of these.
        new: For N new images.
        kind: "none", "classes" or "images", as the tests found.
        effective: Number of independent images behind the M, in (0, M].
        seed: Of the draws.
    """
    right = held_back.probabilities.argmax(axis=1) == labels
    source = float(right.mean())
    classes = held_back.probabilities.shape[1]
    training = (np.bincount(labels, minlength=classes) + 0.5) / (len(labels) + 0.5 * classes)
    estimated = estimate_proportions(new.probabilities, training)
    weights = proportion_weights(estimated, training)[labels]
    changes = score_changes(held_back, labels, new, seed=seed)
    shifted = _logit(source, len(labels)) + sum(WEIGHTS.get(name, 0.0) * change for name, change in changes.items())
    scored = _expit(shifted)
    reweighted = float(np.average(right, weights=weights))
    methods = {
        "held back": source,
        "class proportions": reweighted,
        **_single_methods(held_back, labels, new),
        "scores": scored,
    }
    accuracy = {"none": source, "classes": reweighted}.get(kind, scored)
    how = {"none": "as on held-back images", "classes": "held-back accuracy of each class, in the new proportions"}
    count = effective * (
        float(weights.sum()) ** 2 / float((weights**2).sum()) / len(labels) if kind == "classes" else 1
    )
    low, high = _interval(accuracy, count, len(new))
    if kind == "images":
        half = Z90 * SPREAD * _distance(changes)
        low = min(low, _expit(_logit(accuracy, len(new)) - half))
        high = max(high, _expit(_logit(accuracy, len(new)) + half))
    return AccuracyEstimate(
        held_back=source,
        accuracy=accuracy,
        low=min(low, accuracy),
        high=max(high, accuracy),
        how=how.get(kind, "from confidence, agreement of heads, and how predictions spread over classes"),
        methods=methods,
    )


def score_changes(
    held_back: Answers, labels: npt.NDArray[np.int64], new: Answers, *, seed: int = 0
) -> dict[str, float]:
    """Score -> its logit on the new images, minus that on as many held-back ones; below 0 where accuracy falls.

    Args:
        held_back, labels, new, seed: As for `estimate_accuracy`.
    """
    rng = np.random.default_rng(seed)
    classes = held_back.probabilities.shape[1]
    proportions = np.bincount(labels, minlength=classes) / len(labels)
    drawn = new.take(rng.permutation(len(new))[:TRANSPORTED]) if len(new) > TRANSPORTED else new
    found = _scores(drawn, proportions)
    without = [
        _scores(held_back.take(rng.integers(len(held_back), size=len(drawn))), proportions) for _ in range(RESAMPLED)
    ]
    change = {
        name: _logit(value, len(drawn)) - float(np.mean([_logit(one[name], len(drawn)) for one in without]))
        for name, value in found.items()
    }
    confidence = change.pop("confidence")
    opinions = [change.pop(name) for name in found if name.startswith(OPINION)]
    return {
        **change,
        "agreement": min([0.0, *opinions]),
        "less confident": min(0.0, confidence),
        # Corrupted images may have larger features, and so larger logits: that a model is surer is no good sign.
        "more confident": -max(0.0, confidence),
    }


def _scores(answers: Answers, proportions: Floats) -> dict[str, float]:
    from scipy.optimize import linear_sum_assignment

    given = answers.probabilities
    count, classes = given.shape
    confidence = given.max(axis=1)
    expected = proportions * count
    places = np.floor(expected).astype(np.int64)
    places[np.argsort(places - expected, kind="stable")[: count - int(places.sum())]] += 1
    cost = 1 - given[:, np.repeat(np.arange(classes), places)]
    rows, columns = linear_sum_assignment(cost)
    found = {
        "confidence": float(confidence.mean()),
        "transport": 1 - float(cost[rows, columns].mean()),
        "nuclear": float(np.linalg.norm(given, "nuc")) / float(np.sqrt(count * min(count, classes))),
    }
    for number, opinion in enumerate(answers.opinions):
        found[f"{OPINION}{number}"] = float((opinion == given.argmax(axis=1)).mean())
    return found


def _single_methods(held_back: Answers, labels: npt.NDArray[np.int64], new: Answers) -> dict[str, float]:
    """Published methods, for comparison: difference of confidences, and average thresholded confidence."""
    confidence = held_back.probabilities.max(axis=1)
    source = float((held_back.probabilities.argmax(axis=1) == labels).mean())
    new_confidence = new.probabilities.max(axis=1)
    threshold = float(np.quantile(confidence, 1 - source))
    difference = source + float(new_confidence.mean()) - float(confidence.mean())
    return {
        "difference of confidences": min(1.0, max(0.0, difference)),
        "thresholded confidence": float((new_confidence >= threshold).mean()),
    }


def _distance(changes: Mapping[str, float]) -> float:
    return float(np.sqrt(np.mean([change**2 for change in changes.values()])))


def _interval(accuracy: float, held_back: float, new: int) -> tuple[float, float]:
    """Sampling of the held-back images and of the new ones together."""
    together = 1 / (1 / max(held_back, 1.0) + 1 / new)
    return wilson_interval(accuracy * together, together, level=0.9)


def _logit(share: float, count: int) -> float:
    edge = 0.5 / count
    kept = min(max(share, edge), 1 - edge)
    return float(np.log(kept / (1 - kept)))


def _expit(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))
