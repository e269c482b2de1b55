"""Record of a fine-tuning run: parameters trained, epochs, candidates."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.records._checks import require_score, require_share
from transferkit.records.diagnosis import Symptom
from transferkit.records.monitoring import MonitorRecord

__all__ = ["Candidate", "Claim", "Epoch", "TrainingRecord"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The parameters that one rule of a freeze plan matches, in one stage and phase.

    Args:
        phase: Name of the phase.
        rule: The rule as displayed.
        stage: A stage name, or "head".
        tensors: Number of parameter tensors.
        parameters: Number of scalars in them.
        lr: Their learning rate; 0 if frozen.
        decayed: How many of the scalars weight decay applies to (not norms and biases).
        statistics: The stage's running statistics: "fixed", "updated", or "none" if it has none.
    """

    phase: str
    rule: str
    stage: str
    tensors: int
    parameters: int
    lr: float
    decayed: int
    statistics: str


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Loss, accuracy, learning rate and time of one epoch of training.

    Args:
        number: From 0.
        phase: Name of the phase.
        train_loss: Mean over the epoch's steps, with augmentation and all terms of the loss.
        lr: Highest learning rate at its end.
        seconds: Wall-clock, validation included.
        val_loss, val_accuracy: On the held-back images; None if there are none.
    """

    number: int
    phase: str
    train_loss: float
    lr: float
    seconds: float
    val_loss: float | None = None
    val_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that could be returned after training, scored on held-back images.

    Args:
        name: "probe", "fine-tuned" or "average".
        weight: Of the fine-tuned network's logits, in [0, 1].
        accuracy: On the held-back images, in [0, 1].
        log_loss: On the held-back images, nats.
        gain_error: Standard error of the paired difference between `accuracy` and the probe's, >= 0.
        plain_accuracy: Accuracy without class weights, as in a test; None if `accuracy` has none.
        measure: What `accuracy` is, as for `ProbeScore`; of numbers `log_loss` is the squared error in units of their
            variance.
        low, high: 95 % interval of the score of labels or numbers, groups of images resampled; None for an accuracy.
    """

    name: str
    weight: float
    accuracy: float
    log_loss: float
    gain_error: float = 0.0
    plain_accuracy: float | None = None
    measure: str = "accuracy"
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        require_share("Candidate", "weight", self.weight)
        require_score("Candidate", "accuracy", self.accuracy, self.measure)


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """How a network was fine-tuned, and which candidate was returned.

    Args:
        claims: The parameters that the freeze plan's rules matched, phase by phase, stem -> head.
        epochs: Validation curves, mean over the folds.
        best_epoch: Number of the epoch whose weights scored best on the held-back images.
        held_back: Images excluded from training while the number of epochs and the blend were chosen.
        how: A sentence: which images those are, and whether the network was fitted to them afterwards.
        candidates: Probe, fine-tuned network and averages of the two.
        kept: The candidate that is returned.
        notes: Sentences: what was cached, what fell back, what was halved.
        lr_factor: Factor on the decision's learning rates, chosen by trials or a range test; > 0.
        monitor: What was seen inside the network during the first fold's fit; None if it was not monitored.
        symptoms: What curves and monitor say is wrong, alarms first; None if they were not read.
    """

    claims: tuple[Claim, ...]
    epochs: tuple[Epoch, ...]
    best_epoch: int
    held_back: int
    how: str
    candidates: tuple[Candidate, ...]
    kept: Candidate
    notes: tuple[str, ...] = ()
    lr_factor: float = 1.0
    monitor: MonitorRecord | None = None
    symptoms: tuple[Symptom, ...] | None = None
