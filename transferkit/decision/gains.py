"""Expected gains of strategies, from earlier tasks (prior) and from measurements on these images.

The gain of a probe is its accuracy minus that of the probe on all stages joined, in units of the standard deviation of
a single prediction, sqrt(a (1 - a)) with a the joined probe's held-back accuracy. Earlier tasks give a prior for the
gain from the amount of data and the probe's depth (`prior`); the measurement on these images has its own error
(`measured`). Both are normal, so they are combined by precision (`update`).

The gain of fine-tuning is the share of the best probe's errors that it removes, because the possible gain is bounded;
on earlier tasks that share depended on the similarity to the source (`tuned_gain`).

The prior applies only to probes close to the joined probe: a nearly useless stem says nothing about late stages, and a
probe that is far behind is not chosen anyway.

The accuracy that a gain is added to must be unbiased too: `base` and `calibrated` correct held-back accuracies by the
calibration from earlier tasks (`calibration.py`).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from transferkit.core.intervals import TWO_SIDED
from transferkit.decision.belief import Belief, update
from transferkit.decision.calibration import Calibration

__all__ = ["NETWORK", "PROBE", "GainModel", "Situation", "load_gain_model", "read_gain_model"]

PROBE = "probe"
"""Calibration key before fitting: the expected accuracy of the best probe."""

NETWORK = "network"
"""Calibration key after fine-tuning: the held-back accuracy of the returned network, blend or probe. After a
closed-form fit the key is the head's input: "stage", "joined" or "selected"."""

REACH = 0.1
"""How far a strategy may be behind the joined probe, in spreads, beyond its error, for the prior to apply."""

IGNORANCE = 10.0
"""Prior error in spreads for an unknown kind: any measurement overrules it."""

UNKNOWN_SIMILARITY = 0.5
"""The middle value: it does not assume the gains that fine-tuning has far from the source."""

LEAST_LEFT = 0.0025
"""Minimum error rate of a probe, corresponding to `LEAST_SPREAD`."""

LEAST_SPREAD = 0.05
"""Minimum of sqrt(a (1 - a)), reached at 99.75 %: no error on few images does not mean none on others."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Covariates for the prior of gains: amount of data, joined probe, similarity.

    Args:
        images: N training images, >= 1.
        classes: K, >= 2.
        accuracy: Held-back accuracy of the joined probe, in [0, 1].
        similarity: To the source, in [0, 1]; None if not known.
    """

    images: int
    classes: int
    accuracy: float
    similarity: float | None = None

    @property
    def spread(self) -> float:
        """Standard deviation of one prediction's correctness, at least `LEAST_SPREAD`."""
        return max(math.sqrt(self.accuracy * (1 - self.accuracy)), LEAST_SPREAD)

    @property
    def thinness(self) -> float:
        """One over the root of the images per class, in (0, 1]."""
        return 1 / math.sqrt(max(self.images / self.classes, 1))

    def covariates(self, depth: float) -> tuple[float, ...]:
        """Covariates for gains of probes.

        Args:
            depth: Of the probe's stage, 0 at the stem and 1 at the top.
        """
        return (1.0, self.thinness, depth, self.thinness * depth)

    @property
    def tuning_covariates(self) -> tuple[float, ...]:
        """Covariates for the share of errors that fine-tuning removes."""
        return (1.0, self.thinness, UNKNOWN_SIMILARITY if self.similarity is None else self.similarity)

    def within_reach(self, gain: Belief) -> bool:
        """Whether a strategy with this measured gain may be as good as the joined probe."""
        return gain.mean >= -TWO_SIDED * gain.error - REACH * self.spread


@dataclass(frozen=True, kw_only=True)
class GainModel:
    """Model of gains fitted to earlier tasks; written by `scripts/bench_regret.py`.

    Args:
        coefficients: Kind of probe ("stage", "selected") or fine-tuning strategy -> a weight for each of its covariates
            (see `Situation`).
        spread: The same -> standard deviation of a task's gain around that, in the same units.
        doubt: Factor on the errors of measured gains, >= 1. The best of many measured gains is overestimated, and their
            errors are correlated; this factor minimised regret on earlier tasks.
        calibration: `PROBE`, `NETWORK`, "stage", "joined" or "selected" -> calibration of such held-back accuracies. A
            missing kind counts as unbiased with a binomial error.
        origin: Script, date and tasks, for display.
    """

    coefficients: Mapping[str, tuple[float, ...]]
    spread: Mapping[str, float]
    doubt: float = 1.0
    calibration: Mapping[str, Calibration] = field(default_factory=dict)
    origin: str = ""

    def base(self, situation: Situation, *, worth: float | None = None) -> Belief:
        """Expected accuracy of the joined probe on new images.

        Args:
            situation: The covariates.
            worth: Effective number of independent images behind its accuracy, > 0; None: all images.
        """
        images = situation.images if worth is None else worth
        if PROBE not in self.calibration:
            return Belief(mean=situation.accuracy, error=situation.spread / math.sqrt(images))
        per_class = images / situation.classes
        return self.calibrated(PROBE, accuracy=situation.accuracy, images=images, per_class=per_class)

    def calibrated(self, kind: str, *, accuracy: float, images: float, per_class: float) -> Belief:
        """Expected accuracy on new images for a measured one; arguments as for `Calibration.expect`."""
        known = self.calibration.get(kind, Calibration())
        return known.expect(accuracy=accuracy, images=images, per_class=per_class)

    def prior(self, kind: str, situation: Situation, *, depth: float = 1.0) -> Belief:
        """Prior of the gain in accuracy; very wide for a kind without earlier tasks."""
        if kind not in self.coefficients:
            return Belief(mean=0.0, error=IGNORANCE * situation.spread)
        terms = zip(self.coefficients[kind], situation.covariates(depth), strict=True)
        mean = sum(weight * value for weight, value in terms)
        return Belief(mean=mean * situation.spread, error=self.spread[kind] * situation.spread)

    def tuned_gain(self, strategy: str, situation: Situation, probe: float) -> Belief:
        """Expected gain in accuracy of fine-tuning over the best probe.

        Args:
            strategy: One with coefficients in the model.
            situation: The covariates.
            probe: Expected accuracy of the best probe, in [0, 1].
        """
        left = max(1 - probe, LEAST_LEFT)
        share = sum(w * x for w, x in zip(self.coefficients[strategy], situation.tuning_covariates, strict=True))
        return Belief(mean=share * left, error=self.spread[strategy] * left)

    def expect(self, kind: str, situation: Situation, measured: Belief, *, depth: float = 1.0) -> Belief:
        """Posterior of the gain in accuracy, given its measurement."""
        honest = Belief(mean=measured.mean, error=self.doubt * measured.error)
        if not situation.within_reach(measured):
            return honest
        return update(self.prior(kind, situation, depth=depth), honest)


@functools.cache
def load_gain_model() -> GainModel:
    """The gain model that ships with the package."""
    return read_gain_model(json.loads((files("transferkit") / "knowledge" / "gain_model.json").read_text("utf-8")))


def read_gain_model(plain: Mapping[str, Any]) -> GainModel:
    """A gain model from its JSON; version 1 has no calibration."""
    return GainModel(
        coefficients={kind: tuple(weights) for kind, weights in plain["coefficients"].items()},
        spread=plain["spread"],
        doubt=plain["doubt"],
        calibration={kind: Calibration(**numbers) for kind, numbers in plain.get("calibration", {}).items()},
        origin=f"{plain['script']}, {plain['date']}, {len(plain['tasks'])} tasks",
    )
