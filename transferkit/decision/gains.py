"""What to expect of a strategy, before and after looking: knowledge from earlier tasks.

The gain of a probe is its accuracy less that of the probe on all stages joined, in units of the spread of a single
answer, sqrt(a (1 - a)) with a the joined probe's held-back accuracy. Earlier tasks say what gain to expect from the
amount of data and where the probe reads, and how far off that is (`prior`); what was measured on these images says
the same with its own error (`measured`). Both are normal, so they combine by their precisions (`update`).

Fine-tuning is told by the share of the best probe's errors that it takes away: what is left to gain is bounded, and on
earlier tasks that share depended on how near the data is to the source (`tuned_gain`).

The earlier tasks speak for probes within reach of the joined probe only: a stem that reads next to nothing says
nothing of late stages, and what is far behind is not chosen whatever is believed of it.

What a gain is added to must be honest as well: `base` and `calibrated` correct held-back accuracies by what earlier
tasks showed (`calibration.py`).
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
"""What is calibrated before anything is fitted: the accuracy expected of the best probe."""

NETWORK = "network"
"""What is calibrated after fine-tuning: the held-back accuracy of the network, blend or probe that was kept. After a
closed form the accuracy of its head is, by what it reads: "stage", "joined" or "selected"."""

REACH = 0.1
"""Spreads that a strategy may lie behind the joined probe, besides its error, to count as within its reach."""

IGNORANCE = 10.0
"""Spreads: wide enough for any measurement to overrule it."""

UNKNOWN_SIMILARITY = 0.5
"""In the middle: near enough not to count on what fine-tuning gains far from the source."""

LEAST_LEFT = 0.0025
"""Floor of the errors that a probe makes, that of `LEAST_SPREAD`."""

LEAST_SPREAD = 0.05
"""Floor of sqrt(a (1 - a)), reached at 99.75 %: a probe that makes no mistake on few images may make some on others."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What is known before anything but the joined probe was looked at.

    Args:
        images: N training images, >= 1.
        classes: K, >= 2.
        accuracy: Held-back accuracy of the joined probe, in [0, 1].
        similarity: How near the data is to the source, in [0, 1]; None if it is not known.
    """

    images: int
    classes: int
    accuracy: float
    similarity: float | None = None

    @property
    def spread(self) -> float:
        """Standard deviation of whether one answer is right, at least `LEAST_SPREAD`."""
        return max(math.sqrt(self.accuracy * (1 - self.accuracy)), LEAST_SPREAD)

    @property
    def thinness(self) -> float:
        """One over the root of the images per class, in (0, 1]."""
        return 1 / math.sqrt(max(self.images / self.classes, 1))

    def covariates(self, depth: float) -> tuple[float, ...]:
        """What gains of probes are explained by.

        Args:
            depth: Where the probe reads, 0 at the stem and 1 at the top.
        """
        return (1.0, self.thinness, depth, self.thinness * depth)

    @property
    def tuning_covariates(self) -> tuple[float, ...]:
        """What the share of errors that fine-tuning takes away is explained by."""
        return (1.0, self.thinness, UNKNOWN_SIMILARITY if self.similarity is None else self.similarity)

    def within_reach(self, gain: Belief) -> bool:
        """Whether a strategy with this measured gain may be as good as the joined probe."""
        return gain.mean >= -TWO_SIDED * gain.error - REACH * self.spread


@dataclass(frozen=True, kw_only=True)
class GainModel:
    """What earlier tasks taught; `scripts/bench_regret.py` writes it.

    Args:
        coefficients: Kind of probe ("stage", "selected") or way of fine-tuning -> a weight for each of its covariates
            (see `Situation`).
        spread: The same -> standard deviation of a task's gain around that, in the same units.
        doubt: What the errors of measured gains are multiplied by, >= 1. The best of many measured gains looks better
            than it is, and their errors go together; with this factor the choices on earlier tasks lost least.
        calibration: `PROBE`, `NETWORK`, "stage", "joined" or "selected" -> how far such held-back accuracies were from
            those on new images. A kind that is missing counts as honest, with a binomial error.
        origin: Script, date and tasks, for people.
    """

    coefficients: Mapping[str, tuple[float, ...]]
    spread: Mapping[str, float]
    doubt: float = 1.0
    calibration: Mapping[str, Calibration] = field(default_factory=dict)
    origin: str = ""

    def base(self, situation: Situation, *, worth: float | None = None) -> Belief:
        """Accuracy on new images to expect of the joined probe.

        Args:
            situation: What is known.
            worth: Independent images that its accuracy is worth, > 0: fewer than there are where groups of them are
                alike; None: all of them.
        """
        images = situation.images if worth is None else worth
        if PROBE not in self.calibration:
            return Belief(mean=situation.accuracy, error=situation.spread / math.sqrt(images))
        per_class = images / situation.classes
        return self.calibrated(PROBE, accuracy=situation.accuracy, images=images, per_class=per_class)

    def calibrated(self, kind: str, *, accuracy: float, images: float, per_class: float) -> Belief:
        """Accuracy on new images to expect where so much was measured; arguments as for `Calibration.expect`."""
        known = self.calibration.get(kind, Calibration())
        return known.expect(accuracy=accuracy, images=images, per_class=per_class)

    def prior(self, kind: str, situation: Situation, *, depth: float = 1.0) -> Belief:
        """Gain in accuracy to expect before it is measured; next to nothing is known of a kind that no task had."""
        if kind not in self.coefficients:
            return Belief(mean=0.0, error=IGNORANCE * situation.spread)
        terms = zip(self.coefficients[kind], situation.covariates(depth), strict=True)
        mean = sum(weight * value for weight, value in terms)
        return Belief(mean=mean * situation.spread, error=self.spread[kind] * situation.spread)

    def tuned_gain(self, strategy: str, situation: Situation, probe: float) -> Belief:
        """Accuracy that fine-tuning is expected to gain over the best probe.

        Args:
            strategy: One that the model has coefficients for.
            situation: What is known.
            probe: Accuracy that is expected of the best probe, in [0, 1].
        """
        left = max(1 - probe, LEAST_LEFT)
        share = sum(w * x for w, x in zip(self.coefficients[strategy], situation.tuning_covariates, strict=True))
        return Belief(mean=share * left, error=self.spread[strategy] * left)

    def expect(self, kind: str, situation: Situation, measured: Belief, *, depth: float = 1.0) -> Belief:
        """Gain in accuracy to expect once it is measured."""
        honest = Belief(mean=measured.mean, error=self.doubt * measured.error)
        if not situation.within_reach(measured):
            return honest
        return update(self.prior(kind, situation, depth=depth), honest)


@functools.cache
def load_gain_model() -> GainModel:
    """The one that ships with the package."""
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
