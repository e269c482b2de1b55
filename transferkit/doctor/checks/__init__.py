"""Checks of a training set-up, a file each: `Subject` -> symptoms. Adding one is a file and a line here."""

from transferkit.doctor.checks import (
    evaluation,
    gradients,
    inputs,
    loss,
    mixing,
    optimizer,
    outputs,
    rate,
    signal,
    start_loss,
    step,
    tiny_batch,
    weights,
)
from transferkit.doctor.checks.registry import CHECKS, Check, Skipped

__all__ = [
    "CHECKS",
    "Check",
    "Skipped",
    "evaluation",
    "gradients",
    "inputs",
    "loss",
    "mixing",
    "optimizer",
    "outputs",
    "rate",
    "signal",
    "start_loss",
    "step",
    "tiny_batch",
    "weights",
]
