"""Which parameters the optimizer holds, and how it decays them."""

from __future__ import annotations

from collections.abc import Iterator

from transferkit.doctor.checks.registry import CHECKS, Skipped, listed
from transferkit.doctor.subject import Subject
from transferkit.records import Symptom

__all__: list[str] = []


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
