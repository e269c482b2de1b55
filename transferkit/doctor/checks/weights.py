"""Whether every layer has weights worth training: initialised, loaded, finite, and different from unit to unit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from transferkit.doctor.checks.registry import CHECKS, listed
from transferkit.doctor.subject import Subject
from transferkit.records import Symptom

__all__: list[str] = []

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

SCALES = (1e-5, 1e3)
"""Root mean square of a weight times sqrt(fan-in), by which a layer scales its signal, outside of which it was never
initialised. Initialisations give 0.1 to 2, training seldom leaves 0.01 to 100."""

FEWEST = 400
"""Values from which on the distribution of a weight can be told."""

FEWEST_OF_HEAD = 60
"""The same for the one layer that is asked whether it is a new head."""

EDGE, UNLIKELY = 8.0, 0.05
"""A uniform distribution has a value within this many places of the bound, and is told from it by the test of
Kolmogorov and Smirnov with less than this chance."""

FEWEST_NORMS = 3
"""Normalisation layers from which on their being new tells that nothing was loaded."""

LEAVES_LITTLE, LEAVES_NOTHING = 0.75, 0.9
"""Shares of dropout that are a note, and an alarm."""


@dataclass(frozen=True)
class _Layer:
    name: str
    weight: torch.Tensor  # (out, in, ...)

    @property
    def fan_in(self) -> int:
        return self.weight[0].numel()

    @property
    def scale(self) -> float:
        return float(self.weight.double().pow(2).mean().sqrt()) * math.sqrt(self.fan_in)


@CHECKS.register("weights")
def check_weights(subject: Subject) -> Iterator[Symptom]:
    """Are all weights finite, of a sane size, not alike in all units, and loaded where their neighbours are?"""
    layers = [
        _Layer(name, module.weight.detach())
        for name, module in subject.model.named_modules()
        if isinstance(module, WEIGHTED) and module.weight.numel()
    ]
    if broken := [
        name for name, one in subject.model.state_dict().items() if not bool(torch.isfinite(one.double()).all())
    ]:
        yield _symptom(
            "weights_not_finite",
            f"NaN or infinity in {len(broken)} parameters or statistics: {listed(broken)}.",
            "Load the checkpoint again; one that was saved after training had diverged is lost.",
            broken,
        )
        return
    yield from _zero(layers)
    yield from _alike(layers)
    wild = [one.name for one in layers if bool(one.weight.any()) and not SCALES[0] <= one.scale <= SCALES[1]]
    if wild:
        yield _symptom(
            "uninitialised",
            f"Weights of an absurd size in {len(wild)} layers: {listed(wild)}.",
            "A tensor made by torch.empty holds whatever lay in memory: initialise it (nn.init.initialise).",
            wild,
        )
    yield from _too_much_dropout(subject.model)
    yield from _frozen_head(subject.model, layers)
    if subject.preprocessing is not None:  # a network from scratch may start its layers in several ways
        yield from _left_out(subject.model, layers)


def _zero(layers: list[_Layer]) -> Iterator[Symptom]:
    """Layers of zeros before the last one. Zero heads, and the second factor of low-rank adapters, are made so."""
    hidden = [one for one in layers[:-1] if not _is_adapter(one.name)]
    zero = [one.name for one in hidden if not bool(one.weight.any())]
    if zero:
        yield _symptom(
            "zero_weights",
            f"All weights are zero in {len(zero)} of {len(hidden)} hidden layers: {listed(zero)}.",
            "Initialise them (nn.init.initialise): zeros pass no signal, and no gradient to the layers before.",
            zero,
        )


def _alike(layers: list[_Layer]) -> Iterator[Symptom]:
    """Layers whose units are copies of one: they get the same gradients, and stay alike."""
    alike = [
        one.name
        for one in layers
        if len(one.weight) > 2 and bool(one.weight.any()) and bool((one.weight == one.weight[:1]).all())
    ]
    if alike:
        yield _symptom(
            "equal_units",
            f"All units have the same weights in {len(alike)} layers: {listed(alike)}.",
            "Initialise at random: units that start alike stay alike.",
            alike,
        )


def _left_out(model: nn.Module, layers: list[_Layer]) -> Iterator[Symptom]:
    """Layers as PyTorch makes them, before others that are not: their weights were not in the checkpoint. New layers
    at the end are a new head."""
    fresh = [_is_fresh(one) for one in layers]
    last_loaded = max((place for place, new in enumerate(fresh) if not new and _can_tell(layers[place])), default=0)
    missing = [one.name for one, new in zip(layers[:last_loaded], fresh, strict=False) if new]
    told = sum(_can_tell(one) for one in layers)
    affine = [_is_fresh_affine(module) for module in model.modules() if _is_affine_norm(module)]
    norms = [
        (name, _is_fresh_norm(module))
        for name, module in model.named_modules()
        if isinstance(getattr(module, "running_mean", None), torch.Tensor)
    ]
    if len(affine) >= FEWEST_NORMS and all(affine) and all(new for _, new in norms):
        yield _symptom(
            "not_loaded",
            f"Nothing was loaded: all {len(affine)} normalisation layers are as PyTorch makes them, in a network that "
            "is said to be pretrained.",
            "Look at what load_state_dict(strict=False) returns: a prefix such as 'module.' or 'backbone.' makes all "
            "names unknown.",
            [],
        )
        return
    if norms and 2 * sum(new for _, new in norms) < len(norms):
        missing += [name for name, new in norms if new]
    if missing and 2 * len(missing) < told + len(norms):
        yield _symptom(
            "not_loaded",
            f"{len(missing)} layers in the middle of a trained network are as PyTorch initialises them: "
            f"{listed(missing)}.",
            "They were not in the checkpoint: look at what load_state_dict(strict=False) returns.",
            missing,
        )


def _too_much_dropout(model: nn.Module) -> Iterator[Symptom]:
    """Dropout that leaves hardly anything: often the share to keep was given instead of the share to drop."""
    strong = {
        name: module.p
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > LEAVES_LITTLE
    }
    if strong:
        highest = max(strong.values())
        yield Symptom(
            cause="dropout_too_strong",
            severity="alarm" if highest >= LEAVES_NOTHING else "note",
            evidence=f"Dropout takes {100 * highest:.3g} % of the signal: {listed(strong)}.",
            remedy="p is the share that is dropped, not the one that is kept: usual values are 0.1 to 0.5.",
            items=tuple(strong),
        )


def _frozen_head(model: nn.Module, layers: list[_Layer]) -> Iterator[Symptom]:
    """A last layer that is new and frozen, behind others that are trained."""
    frozen = {name for name, one in model.named_parameters() if not one.requires_grad}
    if not layers or f"{layers[-1].name}.weight".lstrip(".") not in frozen:
        return
    hidden = [one for one in layers[:-1] if f"{one.name}.weight" not in frozen]
    head = layers[-1]
    # A frozen copy of the network, as in self-distillation, has more than its last layer frozen.
    if hidden and hidden[-1] is layers[-2] and (not bool(head.weight.any()) or _is_fresh(head, fewest=FEWEST_OF_HEAD)):
        yield _symptom(
            "frozen_head",
            f"The last layer, {head.name}, is new and frozen, and {len(hidden)} layers before it are trained.",
            "Set requires_grad of the new layer to True.",
            [head.name],
        )


def _can_tell(one: _Layer) -> bool:
    return one.weight.numel() >= FEWEST


def _is_fresh(one: _Layer, *, fewest: int = FEWEST) -> bool:
    """Whether a weight is uniform in +-1 / sqrt(fan-in), PyTorch's default."""
    if one.weight.numel() < fewest:
        return False
    values = one.weight.double().flatten().cpu().numpy() * math.sqrt(one.fan_in)
    edge = float(np.abs(values).max())
    if not 1 - EDGE / len(values) <= edge <= 1 + 1e-6:
        return False
    from scipy.stats import kstest  # here: it takes a second to import

    return float(kstest(values, "uniform", (-1, 2)).pvalue) > UNLIKELY


def _is_fresh_norm(module: nn.Module) -> bool:
    mean, variance = module.running_mean, module.running_var
    assert isinstance(mean, torch.Tensor)
    assert isinstance(variance, torch.Tensor)
    return not bool(mean.any()) and bool((variance == 1).all())


def _is_affine_norm(module: nn.Module) -> bool:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    return isinstance(module, kinds) and module.weight is not None


def _is_fresh_affine(module: nn.Module) -> bool:
    """Whether scales are all 1 (or all 0, as at the end of residual branches) and shifts all 0."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, torch.Tensor)
    shifted = isinstance(bias, torch.Tensor) and bool(bias.any())
    return not shifted and bool((weight == weight.flatten()[0]).all()) and float(weight.flatten()[0]) in (0.0, 1.0)


def _is_adapter(name: str) -> bool:
    return any(part in name.lower() for part in ("lora", "adapter"))


def _symptom(cause: str, evidence: str, remedy: str, items: list[str]) -> Symptom:
    return Symptom(cause=cause, severity="alarm", evidence=evidence, remedy=remedy, items=tuple(items))
