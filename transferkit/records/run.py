"""Outcome of a run, everything but the weights: metrics, predictions on held-out splits, pictures for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.records._checks import require, require_share
from transferkit.records.decision import Decision
from transferkit.records.evidence import Evidence
from transferkit.records.few_shot import AddedClass
from transferkit.records.label_review import ReviewedLabel
from transferkit.records.picture import Picture
from transferkit.records.set_summary import SetSummary
from transferkit.records.target_metrics import LabelMetrics, NumberMetrics
from transferkit.records.targets import MEASURES_OF, Targets
from transferkit.records.training import TrainingRecord
from transferkit.records.zero_shot import ZeroShotRecord

__all__ = ["AnyMetrics", "HeldOut", "Metrics", "Mistake", "RunRecord"]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Metrics of a model on one split.

    Args:
        images: N.
        accuracy: In [0, 1].
        low, high: 95 % Wilson interval of the accuracy, from the effective number of independent images (groups and
            copies count for less).
        balanced_accuracy: Mean recall over the classes present, in [0, 1].
        log_loss: Mean negative log-likelihood in nats, >= 0.
        calibration_error: Expected calibration error over 15 equal-mass bins, in [0, 1].
    """

    images: int
    accuracy: float
    low: float
    high: float
    balanced_accuracy: float
    log_loss: float
    calibration_error: float

    def __post_init__(self) -> None:
        for name in ("accuracy", "low", "high", "balanced_accuracy", "calibration_error"):
            require_share("Metrics", name, getattr(self, name))

    @property
    def score(self) -> float:
        """The accuracy."""
        return self.accuracy

    @property
    def measure(self) -> str:
        """What `score` is."""
        return MEASURES_OF["single_label"]


AnyMetrics = Metrics | LabelMetrics | NumberMetrics
"""Of any task; all have `images`, `score`, `low`, `high` and `measure`."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A model's predictions on a split that it was not fitted on.

    Args:
        split: "test" or "val".
        labels: (N,) int in [0, K); strata beside `targets`.
        probabilities: (N, K) float, rows sum to 1; beside `targets` (N, T) probabilities of labels, or numbers.
        items: N file names or row names.
        targets: Labels or numbers of the images; None where each has one class.
        thresholds: T probabilities from which on a label is given; empty for 0.5.
    """

    split: str
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    items: tuple[str, ...]
    targets: Targets | None = None
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require(
            self.probabilities.ndim == 2 and len(self.probabilities) == len(self.labels) == len(self.items),
            f"HeldOut needs N labels, (N, K) probabilities and N items, got {self.labels.shape}, "
            f"{self.probabilities.shape} and {len(self.items)}.",
        )


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A held-out image that the model got wrong.

    Args:
        picture: Its thumbnail.
        true, predicted: Class names; labels or numbers as text.
        confidence: Predicted probability of the predicted class, in [0, 1]; of labels, that of the surest wrong
            decision; 0 for numbers.
        error: What is wrong, where it is not the class: the wrong label, or how far off a number is.
    """

    picture: Picture
    true: str
    predicted: str
    confidence: float
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything recorded about a run except its weights: the content of `result.json` and of the report.

    Args:
        evidence: The measurements.
        decision: The decision.
        metrics: Split name -> metrics of the returned model.
        seconds: Phase -> wall-clock seconds; "total" is the whole run.
        environment: Versions, machine, seed: what is needed to reproduce the run.
        command: The command line or call that reproduces the run.
        training: How the network was fine-tuned; None if only a head was fitted.
        held_out: The predictions behind the mistakes below; on the test split if there is one, else validation.
        samples: Class name -> a few training pictures.
        mistakes: Worst first.
        label_errors: Training and validation images that look like another class, likely label errors, worst first.
        settings: Argument of `adapt` -> value, to open the same images again and to detect whether another run is the
            same; empty if not recorded.
        held_back_accuracy: Of the returned model on images held back from its fit, test images excluded, in [0, 1];
            the runs of a sweep are compared by it.
        prediction_sets: How large sets with a stated coverage are; empty if nothing is known about held-back images.
        trained_on: The smallest content digests of the training images, enough of them to detect reliably whether
            other images are among them.
        added: Classes that were added after the run, in that order.
        zero_shot: Classes without images, and how good the model is on such; None if all classes have images.
    """

    evidence: Evidence
    decision: Decision
    metrics: Mapping[str, AnyMetrics]
    seconds: Mapping[str, float]
    environment: Mapping[str, Any]
    command: str
    training: TrainingRecord | None = None
    held_out: HeldOut | None = None
    samples: Mapping[str, tuple[Picture, ...]] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()
    label_errors: tuple[ReviewedLabel, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    held_back_accuracy: float | None = None
    trained_on: tuple[str, ...] = ()
    added: tuple[AddedClass, ...] = ()
    zero_shot: ZeroShotRecord | None = None
    prediction_sets: tuple[SetSummary, ...] = ()

    @property
    def untested_images(self) -> int:
        """Images of the test split if it has not been scored yet; else 0."""
        return 0 if "test" in self.metrics else self.evidence.data.size("test")

    def is_disappointing(self, split: str) -> bool:
        """Whether the interval of a split's accuracy is entirely below the expected one."""
        scores, expected = self.metrics.get(split), self.decision.expected
        return scores is not None and expected is not None and scores.high < expected.low
