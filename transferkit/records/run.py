"""What came of a run, everything but the weights: metrics, predictions on held-out splits, pictures for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.records._checks import require, require_share
from transferkit.records.decision import Decision
from transferkit.records.evidence import Evidence
from transferkit.records.training import TrainingRecord

__all__ = ["HeldOut", "Metrics", "Mistake", "Picture", "RunRecord"]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """How well a model does on one split.

    Args:
        images: N.
        accuracy: In [0, 1].
        low, high: 95 % Wilson interval of the accuracy; images of one group and copies count as far as they are
            independent.
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


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A model's answers on a split that it was not fitted on.

    Args:
        split: "test" or "val".
        labels: (N,) int in [0, K).
        probabilities: (N, K) float, rows sum to 1.
        items: N file names or row names.
    """

    split: str
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    items: tuple[str, ...]

    def __post_init__(self) -> None:
        require(
            self.probabilities.ndim == 2 and len(self.probabilities) == len(self.labels) == len(self.items),
            f"HeldOut needs N labels, (N, K) probabilities and N items, got {self.labels.shape}, "
            f"{self.probabilities.shape} and {len(self.items)}.",
        )


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A small picture for people.

    Args:
        jpeg: The encoded picture.
        item: The file or row it shows.
    """

    jpeg: bytes
    item: str


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A held-out image that the model got wrong.

    Args:
        picture: What it looks like.
        true, predicted: Class names.
        confidence: Probability the model gave its answer, in [0, 1].
    """

    picture: Picture
    true: str
    predicted: str
    confidence: float


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that is known about a run, but for its weights: what `result.json` holds and the report shows.

    Args:
        evidence: What was measured.
        decision: What was decided.
        metrics: Split name -> how the returned model does there.
        seconds: Phase -> wall-clock seconds; "total" is the sum a person waited.
        environment: Versions, machine, seed: what it takes to run it again.
        command: The command line or call that reproduces the run.
        training: How the network was fine-tuned; None where nothing but a head was fitted.
        held_out: The answers behind the pictures below; the test split if there is one, else validation.
        samples: Class name -> a few training pictures.
        mistakes: Worst first.
        settings: Argument of `adapt` -> value: what to open the same images with, and to tell whether another run is
            the same; empty where it was not recorded.
        held_back_accuracy: Of the returned model on images held back from its fit, the test images not among them, in
            [0, 1]: what runs of a sweep are compared by.
        trained_on: The least content digests of the training images, as many as tell reliably whether other images
            are among them.
    """

    evidence: Evidence
    decision: Decision
    metrics: Mapping[str, Metrics]
    seconds: Mapping[str, float]
    environment: Mapping[str, Any]
    command: str
    training: TrainingRecord | None = None
    held_out: HeldOut | None = None
    samples: Mapping[str, tuple[Picture, ...]] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    held_back_accuracy: float | None = None
    trained_on: tuple[str, ...] = ()

    @property
    def untested_images(self) -> int:
        """Images of the test split, if it was not scored yet; else 0."""
        return 0 if "test" in self.metrics else self.evidence.data.size("test")

    def is_disappointing(self, split: str) -> bool:
        """Whether a split's accuracy lies below what was expected, interval below interval."""
        scores, expected = self.metrics.get(split), self.decision.expected
        return scores is not None and expected is not None and scores.high < expected.low
