"""Whether a remedy is used: only where evidence without labels of the new images says that it helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, softmax

from transferkit.features import choose_device
from transferkit.nn import Classifier, logits_of
from transferkit.records import RemedyTrial
from transferkit.shift.accuracy import Answers, estimate_accuracy
from transferkit.shift.proportions import estimate_proportions
from transferkit.shift.rehearsal import Rehearsal, prepare_rehearsal
from transferkit.shift.remedies import REMEDIES, ShiftCase, Unfit
from transferkit.shift.remedies.class_proportions import log_ratios

__all__ = ["Guarded", "choose_remedy", "proportions_gain"]

GAIN = 0.01
"""Accuracy that a remedy has to gain on altered training images at least, beyond its own uncertainty."""

BETTER = 0.01
"""Accuracy that it has to gain on the new images, estimated without labels."""

Z95 = 1.645

DRAWS = 40
"""Pretended sets of new images on which class proportions are estimated, to see whether that helps."""


@dataclass(frozen=True)
class Guarded:
    """What came of the remedies.

    Args:
        trials: One per remedy tried.
        model: Of the one that is used; None if none is.
        rehearsal: Altered training images; None if they were not needed or cannot be made.
    """

    trials: tuple[RemedyTrial, ...]
    model: Classifier | None = None
    rehearsal: Rehearsal | None = None


def choose_remedy(situation: ShiftCase, names: Sequence[str], *, device: str = "auto") -> Guarded:
    """Try remedies and keep the one that gains most in rehearsal, if any passes all tests.

    Args:
        situation: The run, the new images, and how they differ.
        names: Of the remedies.
        device: Where networks are run.
    """
    if situation.found.kind == "none":
        reason = "not tried: no shift was found."
        return Guarded(tuple(RemedyTrial(name=name, used=False, reason=reason) for name in names))
    judge = _Judge(situation, device)
    trials: list[RemedyTrial] = []
    models: dict[str, Classifier] = {}
    for name in names:
        trial, model = _try(name, situation, judge)
        trials.append(trial)
        if model is not None:
            models[name] = model
    passed = [trial for trial in trials if trial.used]
    best = max(passed, key=lambda trial: trial.rehearsed or 0.0, default=None)
    if best is None:
        return Guarded(tuple(trials), None, judge.rehearsal)
    kept = tuple(
        trial
        if trial is best or not trial.used
        else replace(trial, used=False, reason=f"not used: {best.name} gains more in rehearsal.")
        for trial in trials
    )
    return Guarded(kept, models[best.name], judge.rehearsal)


def _try(name: str, situation: ShiftCase, judge: _Judge) -> tuple[RemedyTrial, Classifier | None]:
    try:
        model = REMEDIES[name](situation)
        return judge.judge(name, model), model
    except Unfit as why:
        return RemedyTrial(name=name, used=False, reason=f"not used: {why}"), None


class _Judge:
    """The tests that a remedy has to pass; what they share is computed once."""

    def __init__(self, situation: ShiftCase, device: str) -> None:
        self._situation = situation
        self._device = choose_device(device)
        self._known = Answers(situation.found.held_back.probabilities, np.empty((0, len(situation.found.labels)), int))
        self.rehearsal: Rehearsal | None = None
        self._plain: npt.NDArray[np.bool_] | None = None

    def judge(self, name: str, model: Classifier) -> RemedyTrial:
        """Whether to use a remedy's model.

        Raises:
            Unfit: It cannot be told whether the model is any better.
        """
        found = self._situation.found
        if found.kind == "classes":
            return self._judge_proportions(name, model)
        before = self._estimate(self._situation.result.model)
        after = self._estimate(model)
        agreement = float((after[0] == before[0]).mean())
        gain, error = self._rehearse(model)
        trial = RemedyTrial(name=name, used=False, reason="", accuracy=after[1], rehearsed=gain, agreement=agreement)
        assert self.rehearsal is not None
        figures = (
            f"{_points(gain)} on training images altered like the new ones ({self.rehearsal.name}), "
            f"{_points(after[1] - before[1])} estimated on the new ones, {100 * agreement:.0f} % of the predictions "
            "stay"
        )
        if gain - Z95 * error < GAIN:
            return replace(trial, reason=f"not used: no clear gain in rehearsal ({figures}).")
        if after[1] - before[1] < BETTER:
            return replace(trial, reason=f"not used: no gain in estimated accuracy ({figures}).")
        return replace(trial, used=True, reason=f"used: {figures}.")

    def _answers(self, model: Classifier) -> npt.NDArray[np.float64]:
        logits = logits_of(model, self._situation.new.pixels, device=self._device).numpy()
        return np.asarray(softmax(logits.astype(np.float64), axis=1))

    def _estimate(self, model: Classifier) -> tuple[npt.NDArray[np.int64], float]:
        """Predictions on the sample of new images, and their accuracy by the scores that need no other head."""
        found = self._situation.found
        given = self._answers(model)
        if not np.isfinite(given).all():
            raise Unfit("its model gives no finite probabilities.")
        new = Answers(given, np.empty((0, len(given)), int))
        estimate = estimate_accuracy(self._known, found.labels, new, kind="images", effective=len(found.labels))
        return given.argmax(axis=1), estimate.accuracy

    def _rehearse(self, model: Classifier) -> tuple[float, float]:
        """Gain on labelled, altered training images, and its standard error."""
        if self.rehearsal is None:
            situation = self._situation
            self.rehearsal = prepare_rehearsal(situation.reference, situation.new, seed=situation.seed)
        rehearsal = self.rehearsal
        if rehearsal is None:
            raise Unfit("it cannot be rehearsed without the backbone before fine-tuning.")
        if not rehearsal.is_close:
            raise Unfit(
                f"it cannot be rehearsed: no alteration of training images looks like the new ones (the closest, "
                f"{rehearsal.name}, is at {100 * rehearsal.closeness:.0f} % of the distance)."
            )
        if self._plain is None:
            self._plain = self._right(self._situation.result.model, rehearsal)
        differences = self._right(model, rehearsal).astype(float) - self._plain
        # One difference more than observed: equal answers on these images need not be equal on others.
        error = float(np.sqrt((differences.var() * len(differences) + 1) / len(differences) ** 2))
        return float(differences.mean()), error

    def _right(self, model: Classifier, rehearsal: Rehearsal) -> npt.NDArray[np.bool_]:
        logits = logits_of(model, rehearsal.pixels, device=self._device).numpy()
        return np.asarray(logits.argmax(axis=1) == rehearsal.labels)

    def _judge_proportions(self, name: str, model: Classifier) -> RemedyTrial:
        situation = self._situation
        found = situation.found
        gain, error = proportions_gain(
            found.held_back.probabilities, found.labels, found.proportions, images=len(situation.new),
            seed=situation.seed,
        )  # fmt: skip
        before = found.new.probabilities.argmax(axis=1)
        ratios = log_ratios(found.proportions, situation.reference.proportions)
        after = (log_softmax(situation.new.logits, axis=1) + ratios).argmax(axis=1)
        agreement = float((before == after).mean())
        accuracy = min(1.0, max(0.0, found.estimate.accuracy + gain))
        used = gain - Z95 * error > 0
        return RemedyTrial(
            name=name,
            used=used,
            reason=f"{'used' if used else 'not used'}: {_points(gain)} on held-back training images drawn in the "
            f"estimated proportions, {100 * agreement:.0f} % of the predictions stay.",
            accuracy=accuracy,
            rehearsed=gain,
            agreement=agreement,
        )


def proportions_gain(
    probabilities: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    proportions: npt.NDArray[np.float64],
    *,
    images: int,
    seed: int = 0,
) -> tuple[float, float]:
    """Accuracy that correcting class proportions gains, and its uncertainty, from labelled images alone.

    Sets as large as the new one are drawn from held-back images in the estimated proportions; in each the proportions
    are estimated anew, so that errors of the estimate cost what they will cost.

    Args:
        probabilities: (M, K) of held-back training images.
        labels: (M,) of these.
        proportions: (K,) estimated for the new images.
        images: Number of new images.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    classes = probabilities.shape[1]
    training = (np.bincount(labels, minlength=classes) + 0.5) / (len(labels) + 0.5 * classes)
    weights = (proportions / training)[labels]
    chance = weights / weights.sum()
    gains = []
    for _ in range(DRAWS):
        rows = rng.choice(len(labels), size=images, p=chance)
        given = probabilities[rows]
        ratios = log_ratios(estimate_proportions(given, training), training)
        corrected = (np.log(np.maximum(given, 1e-12)) + ratios).argmax(axis=1)
        gains.append(float((corrected == labels[rows]).mean() - (given.argmax(axis=1) == labels[rows]).mean()))
    return float(np.mean(gains)), float(np.std(gains))


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"
