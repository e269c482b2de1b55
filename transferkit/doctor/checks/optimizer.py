"""Which parameters the optimizer holds, and how it decays them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from transferkit.doctor.checks.registry import CHECKS, Skipped, listed
from transferkit.doctor.checks.trial import aimed_rate
from transferkit.doctor.subject import Subject
from transferkit.records import Symptom

__all__: list[str] = []

SHRINKS = 5e-3
"""Share of a weight that decay takes in a step, from which on it wins over learning: a half every 140 steps. Recipes
go up to 1e-3."""

STRONG = {False: (0.05, 1.0), True: (0.3, 5.0)}
"""Whether decay is apart from the gradient (AdamW) -> decay up to which it is the rate that is to blame, and decay that
is too strong at any rate. Recipes go up to 0.05 in the gradient, up to 0.3 apart from it."""


@CHECKS.register("optimizer")
def check_optimizer(subject: Subject) -> Iterator[Symptom]:
    """Is every trainable parameter in the optimizer, once, at a rate above zero, and are norms and biases not
    decayed?"""
    if subject.optimizer is None:
        raise Skipped("there is no optimizer")
    held = {id(one): group for group in subject.optimizer.param_groups for one in group["params"]}
    named = list(subject.model.named_parameters())
    trained = [(name, one) for name, one in named if one.requires_grad]
    if missing := [name for name, one in trained if id(one) not in held]:
        yield Symptom(
            cause="not_in_optimizer",
            severity="alarm",
            evidence=f"{len(missing)} of {len(trained)} trainable parameters are not in the optimizer: "
            f"{listed(missing)}.",
            remedy="Make the optimizer after the model is complete, from all its trainable parameters; or freeze "
            "these.",
            items=tuple(missing),
        )
    if foreign := len(set(held) - {id(one) for _, one in named}):
        yield Symptom(
            cause="foreign_parameters",
            severity="alarm",
            evidence=f"The optimizer holds {foreign} tensors that are not parameters of this model.",
            remedy="Make the optimizer after the model was moved, copied or given a new head.",
        )
    if still := [name for name, one in trained if id(one) in held and held[id(one)]["lr"] == 0]:
        yield Symptom(
            cause="rate_zero",
            severity="note",
            evidence=f"The learning rate of {len(still)} trainable parameters is 0: {listed(still)}.",
            remedy="Freeze them instead, unless a schedule raises the rate.",
            items=tuple(still),
        )
    yield from _strong_decay(subject.optimizer)
    if decayed := [
        name for name, one in trained if one.dim() <= 1 and id(one) in held and held[id(one)].get("weight_decay", 0) > 0
    ]:
        yield Symptom(
            cause="decay_on_norms",
            severity="note",
            evidence=f"Weight decay pulls {len(decayed)} biases and normalisation parameters to zero: "
            f"{listed(decayed)}.",
            remedy="Put parameters with one axis or none into a group with weight_decay=0.",
            items=tuple(decayed),
        )


def _strong_decay(optimizer: torch.optim.Optimizer) -> Iterator[Symptom]:
    """Groups whose weights decay faster than they can learn."""
    for group in optimizer.param_groups:
        decay, rate = group.get("weight_decay", 0.0) or 0.0, aimed_rate(group)
        usual, strongest = STRONG[group.get("decoupled_weight_decay", False) or "W" in type(optimizer).__name__]
        if (rate * decay > SHRINKS and decay > usual) or decay > strongest:
            yield Symptom(
                cause="decay_too_strong",
                severity="alarm",
                evidence=f"A weight decay of {decay:g} at a learning rate of {rate:g} takes {100 * rate * decay:.2g} % "
                "of the weights in each step.",
                remedy="Usual values are 1e-4 for SGD and 0.01 to 0.1 for AdamW.",
            )
            return
