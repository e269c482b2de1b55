"""Whether the signal reaches the end of the network, and differs from image to image there."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from transferkit.doctor.checks.gradients import leave_kinks
from transferkit.doctor.checks.registry import CHECKS, Skipped, listed
from transferkit.doctor.penultimate import penultimate_features
from transferkit.doctor.subject import Subject, seeded
from transferkit.nn.activation_statistics import activation_statistics
from transferkit.records import Symptom

__all__: list[str] = []

DEAD = 0.999
"""Share of dead units of a rectified layer from which on it is dead. On a batch of plain drawings 95 % of the top layer
of a pretrained network may be silent."""

SAME = 1e-4
"""Standard deviation of the features over images, in units of their size, below which images cannot be told apart."""

EXPLODED = 1e4
"""Standard deviation of a layer's outputs."""


@CHECKS.register("signal")
def check_signal(subject: Subject) -> Iterator[Symptom]:
    """Do rectifiers pass a signal, does it stay finite, and do the features before the last layer tell images apart?"""
    if _ignores_inputs(subject):
        yield Symptom(
            cause="ignores_inputs",
            severity="alarm",
            evidence="The outputs are the same for all images, and no path leads to them from the inputs.",
            remedy="Look in the forward pass for a variable that is not used, or overwritten.",
        )
        return
    model, _ = subject.copy()
    inputs = tuple(subject.inputs) if isinstance(subject.inputs, list) else subject.inputs
    if not isinstance(inputs, (torch.Tensor, tuple)):
        raise Skipped("inputs are neither a tensor nor a tuple")
    layers = activation_statistics(model, inputs).layers
    dead = [one for one in layers if one.dead >= DEAD]
    if dead:
        yield Symptom(
            cause="dead_units",
            severity="alarm",
            evidence=f"{100 * max(one.dead for one in dead):.0f} % of the rectified units of {len(dead)} layers "
            f"give the same output for all images: {listed(one.layer for one in dead)}.",
            remedy="Initialise anew (nn.init.initialise) without large negative biases, and lower a rate that has "
            "thrown the weights off.",
            items=tuple(one.layer for one in dead),
        )
    wild = [one.layer for one in layers if not math.isfinite(one.deviation) or one.deviation > EXPLODED]
    if wild:
        yield Symptom(
            cause="signal_explodes",
            severity="alarm",
            evidence=f"The outputs of {len(wild)} of {len(layers)} layers have standard deviations above "
            f"{EXPLODED:g}, or are not finite: {listed(wild)}.",
            remedy="Check the range of the inputs, and initialise by what follows each layer (nn.init.initialise).",
            items=tuple(wild),
        )
    features = penultimate_features(model, inputs)
    if features is None or dead or wild:
        return
    spread = _spread(features)
    if spread <= SAME:
        # Running statistics that lag behind the weights do this in evaluation mode alone, and catch up.
        model.train(subject.model.training)
        trained = penultimate_features(model, inputs, evaluated=False)
        lags = trained is not None and _spread(trained) > SAME
        yield Symptom(
            cause="same_features",
            severity="note" if lags else "alarm",
            evidence="The features before the last layer are the same for all images"
            + (" in evaluation mode" if lags else "")
            + f": their standard deviation is {spread:.1g} of their size.",
            remedy="The signal is lost on the way: look for zero weights, saturated units and missing normalisation "
            "(activation_statistics says where).",
        )


def _ignores_inputs(subject: Subject) -> bool:
    """Whether outputs are equal for all images, whatever the weights, and their graph does not reach the inputs."""
    inputs = subject.inputs
    if not isinstance(inputs, torch.Tensor) or not inputs.is_floating_point():
        return False
    model, _ = subject.copy()
    leave_kinks(list(model.parameters()), seed=subject.seed)  # a last layer of zeros gives equal outputs as well
    given = inputs.detach().clone().requires_grad_(True)
    with torch.enable_grad(), seeded(subject.seed):
        outputs = subject.run(model.eval(), given)
        if not isinstance(outputs, torch.Tensor) or outputs.shape[:1] != inputs.shape[:1]:
            return False
        if not bool((outputs == outputs[:1]).all()) or bool((inputs == inputs[:1]).all()):
            return False
        return not outputs.requires_grad or torch.autograd.grad(outputs.sum(), given, allow_unused=True)[0] is None


def _spread(features: torch.Tensor) -> float:
    """Standard deviation over images in units of the size."""
    size = float(features.pow(2).mean().sqrt())
    return float(features.std(dim=0).pow(2).mean().sqrt()) / max(size, 1e-30)
