"""Checks of a training set-up, a file each: `Subject` -> symptoms. Adding one is a file and a line here."""

from transferkit.doctor.checks import (
    evaluation,
    gradients,
    mixing,
    optimizer,
    outputs,
    start_loss,
    step,
    tiny_batch,
)
from transferkit.doctor.checks.registry import CHECKS, Check, Skipped

__all__ = [
    "CHECKS",
    "Check",
    "Skipped",
    "evaluation",
    "gradients",
    "mixing",
    "optimizer",
    "outputs",
    "start_loss",
    "step",
    "tiny_batch",
]
