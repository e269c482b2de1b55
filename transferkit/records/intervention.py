"""What was changed while a model was babysat: why, from what to what, and whether it helped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transferkit.records._checks import require

__all__ = ["Intervention"]


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """One change of a setting, tried on a segment of a training.

    Args:
        back_to: Epochs after which the training was continued with the change; 0: from the beginning.
        epoch: Epochs after which the symptom was read, and held-back images were compared.
        symptom: Name of what was read in the curves, "lr_too_high".
        evidence: A sentence with its numbers.
        setting: That was changed, as on the command line.
        before, after: Its values.
        loss_before, loss_after: On the held-back images after `epoch`, without and with the change; None where it was
            not finite or not measured.
        accuracy_before, accuracy_after: Likewise, in [0, 1]; None where it was not measured.
        is_kept: Whether the change was kept; else the training went on without it.
        seconds: Wall-clock that trying it took.
        error: Why it could not be tried; "" if it could.
    """

    back_to: int
    epoch: int
    symptom: str
    evidence: str
    setting: str
    before: Any
    after: Any
    loss_before: float | None
    loss_after: float | None
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    is_kept: bool
    seconds: float = 0.0
    error: str = ""

    def __post_init__(self) -> None:
        require(0 <= self.back_to < self.epoch, f"Intervention.back_to must be in [0, epoch), got {self.back_to!r}.")
        require(self.before != self.after, f"Intervention of {self.setting} changes nothing, got {self.after!r}.")
        for name in ("loss_before", "loss_after"):
            loss = getattr(self, name)
            require(loss is None or math.isfinite(loss), f"Intervention.{name} must be finite or None, got {loss!r}.")

    @property
    def sentence(self) -> str:
        """What was done and what came of it.

        Example:
            >>> Intervention(back_to=0, epoch=5, symptom="lr_too_high", evidence="", setting="train.lr", before=0.3,
            ...              after=0.1, loss_before=2.0, loss_after=0.5, is_kept=True).sentence
            'Epoch 5, lr_too_high: train.lr 0.3 -> 0.1 from the beginning; held-back loss 2 -> 0.5, kept.'
        """
        start = f"epoch {self.back_to}" if self.back_to else "the beginning"
        losses = f"held-back loss {_loss(self.loss_before)} -> {_loss(self.loss_after)}"
        came = f"failed: {self.error.rstrip('.')}" if self.error else losses
        done = "kept" if self.is_kept else "undone"
        return (
            f"Epoch {self.epoch}, {self.symptom}: {self.setting} {_short(self.before)} -> {_short(self.after)} from "
            f"{start}; {came}, {done}."
        )


def _loss(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.3g}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
