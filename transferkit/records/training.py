"""What fine-tuning did: parameters trained, epochs, candidates."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.records._checks import require_share

__all__ = ["Candidate", "Claim", "Epoch", "TrainingRecord"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What one rule of a freeze plan takes hold of, in one stage and phase.

    Args:
        phase: Name of the phase.
        rule: The rule, as it is written for people.
        stage: A stage name, or "head".
        tensors: Parameter tensors.
        parameters: Numbers in them.
        lr: Their learning rate; 0 where they are frozen.
        decayed: Numbers among them that weight decay acts on (not those of norms and biases).
        statistics: What becomes of the stage's running statistics: "fixed", "updated", or "none" to speak of.
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
    """What one epoch of training measured.

    Args:
        number: From 0.
        phase: Name of the phase.
        train_loss: Mean over the epoch's steps, with augmentation and all that is added to the loss.
        lr: Highest learning rate at its end.
        seconds: It took, validation included.
        val_loss, val_accuracy: On the held-back images; None without any.
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
    """One of the models that could be returned after training, judged on held-back images.

    Args:
        name: "probe", "fine-tuned" or "average".
        weight: Of the fine-tuned network's logits in it, in [0, 1].
        accuracy: On the held-back images, in [0, 1].
        log_loss: On them, nats.
        gain_error: Standard error of `accuracy` less that of the probe, image by image, >= 0.
        plain_accuracy: The same where images do not count by their classes, as in a test; None: `accuracy` is that.
    """

    name: str
    weight: float
    accuracy: float
    log_loss: float
    gain_error: float = 0.0
    plain_accuracy: float | None = None

    def __post_init__(self) -> None:
        require_share("Candidate", "weight", self.weight)
        require_share("Candidate", "accuracy", self.accuracy)


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """How a network was fine-tuned, and what was kept of it.

    Args:
        claims: What the freeze plan took hold of, phase by phase, stem -> head.
        epochs: Of what was validated, mean over the folds.
        best_epoch: Number of the epoch whose weights did best on the held-back images.
        held_back: Images that training did not see while the number of epochs and the blend were chosen.
        how: A sentence: which images those are, and whether the network was fitted to them afterwards.
        candidates: Probe, fine-tuned network and averages of the two.
        kept: The one that is returned.
        notes: Sentences: what was cached, what fell back, what was halved.
        lr_factor: What the decision's learning rates were multiplied by, as trials or a range test advised; > 0.
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
