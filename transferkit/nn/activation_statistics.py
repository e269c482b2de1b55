"""The scale of the signal in every layer of a network, and whether it is too small, too big or just right.

For a layer followed by a nonlinearity, what counts is the input of that nonlinearity: normalisation in between has
had its say. An initialisation is just right if that input has about the same scale in all layers, few units are dead
and few values saturated; if every layer shrinks or blows up the signal by a factor, so does it to the gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from transferkit.nn.following import follow_layers
from transferkit.nn.nonlinearity import Nonlinearity

__all__ = ["SATURATION", "ActivationReport", "LayerStatistics", "activation_statistics", "dead_share"]

TOO_SMALL, TOO_BIG = 0.05, 20.0
"""Standard deviations of the input of a nonlinearity outside of which it works on a constant, or saturates."""

LIMIT = 0.5
"""Share of dead units, or of saturated values, from which on a layer is not just right."""

SATURATION = {"tanh": (-0.95, 0.95), "sigmoid": (0.02, 0.98), "relu6": (-math.inf, 6.0)}
"""Nonlinearity -> outputs beyond which its slope is below a tenth of the largest, or zero."""


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """The signal behind one layer.

    Args:
        layer: Dotted path.
        nonlinearity: What follows it; "linear" for nothing.
        mean, deviation: Of the nonlinearity's input (of the layer's output where none follows), over batch and units.
        saturated: Share of values at which the nonlinearity is flat, in [0, 1]: tanh and sigmoid near their limits,
            ReLU6 at 6.
        dead: Share of units of a rectifier with the same output, zero slope included, for the whole batch, in [0, 1].
    """

    layer: str
    nonlinearity: str
    mean: float
    deviation: float
    saturated: float
    dead: float

    @property
    def verdict(self) -> str:
        """One of: too small, too big, just right; not finite for NaN and infinity."""
        if not (math.isfinite(self.mean) and math.isfinite(self.deviation)):
            return "not finite"
        if self.deviation > TOO_BIG or self.saturated > LIMIT:
            return "too big"
        # A small output that no nonlinearity reads is no fault: of a classifier, or of a branch added to another.
        small = self.deviation < TOO_SMALL and self.nonlinearity != "linear"
        if small or self.dead > LIMIT:
            return "too small"
        return "just right"


@dataclass(frozen=True, kw_only=True)
class ActivationReport:
    """The signal in all layers, in order of their calls."""

    layers: tuple[LayerStatistics, ...]

    @property
    def verdict(self) -> str:
        """That of the first layer which is not just right: later ones only pass its fault on."""
        return next((one.verdict for one in self.layers if one.verdict != "just right"), "just right")

    @property
    def sentence(self) -> str:
        """The verdict with its evidence and a remedy."""
        wrong = [one for one in self.layers if one.verdict != "just right"]
        if not self.layers:
            return "The network has no linear or convolutional layer that runs."
        if not wrong:
            spread = [one.deviation for one in self.layers]
            return (
                f"The signal is just right in all {len(self.layers)} layers: standard deviations {min(spread):.2g} to "
                f"{max(spread):.2g}."
            )
        one = wrong[0]
        return (
            f"The signal is {one.verdict} in {len(wrong)} of {len(self.layers)} layers, first in {one.layer!r} "
            f"({_evidence(one)}). {REMEDIES[one.verdict]}"
        )


REMEDIES = {
    "too small": "Initialise by what follows each layer (initialise), by data (initialise_by_data), or add "
    "normalisation.",
    "too big": "Use smaller weights: initialise by what follows each layer (initialise) or by data "
    "(initialise_by_data), and check "
    "that inputs are normalised.",
    "not finite": "Check the inputs, and the weights of this layer, for NaN and infinity.",
}
"""Verdict -> what to do."""


def _evidence(one: LayerStatistics) -> str:
    said = [f"standard deviation {one.deviation:.2g}"]
    if one.saturated > LIMIT:
        said.append(f"{100 * one.saturated:.0f} % of {one.nonlinearity} saturated")
    if one.dead > LIMIT:
        said.append(f"{100 * one.dead:.0f} % of units dead")
    return ", ".join(said)


def activation_statistics(module: nn.Module, batch: Any) -> ActivationReport:
    """Mean, standard deviation, saturated and dead shares behind each linear and convolutional layer.

    Args:
        module: Any network; run once in evaluation mode, without gradients, and as it was afterwards.
        batch: Real inputs, or a tuple of them; tens of images, or units seem dead that are only rare.

    Example:
        >>> net = nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 3))
        >>> rows = torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
        >>> activation_statistics(net, rows).verdict
        'just right'
        >>> with torch.no_grad():
        ...     _ = net[0].weight.mul_(1e-4), net[0].bias.zero_()
        >>> activation_statistics(net, rows).sentence[:23]
        'The signal is too small'
    """
    outputs, inside = dict[str, list[float]](), dict[str, LayerStatistics]()

    def see_output(layer: str, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            outputs.setdefault(layer, _moments(output))

    def see(layer: str, nonlinearity: Nonlinearity, before: torch.Tensor, after: torch.Tensor) -> None:
        mean, deviation = _moments(before)
        low, high = SATURATION.get(nonlinearity.name, (-math.inf, math.inf))
        axis = _unit_axis(module.get_submodule(layer), after)
        inside[layer] = LayerStatistics(
            layer=layer,
            nonlinearity=nonlinearity.name,
            mean=mean,
            deviation=deviation,
            saturated=float(((after <= low) | (after >= high)).float().mean()),
            dead=dead_share(after, axis=axis) if nonlinearity.rectifies else 0.0,
        )

    follow_layers(module, batch, see=see, see_output=see_output)
    plain = {
        layer: LayerStatistics(
            layer=layer, nonlinearity="linear", mean=mean, deviation=deviation, saturated=0.0, dead=0.0
        )
        for layer, (mean, deviation) in outputs.items()
    }
    return ActivationReport(layers=tuple(inside.get(layer, one) for layer, one in plain.items()))


def _moments(values: torch.Tensor) -> list[float]:
    wide = values.double()
    return [float(wide.mean()), float(wide.std(correction=0))]


def _unit_axis(layer: Any, values: torch.Tensor) -> int | None:
    """The axis of a layer's units in what follows it: where the layer puts them, or where as many are now."""
    is_linear = isinstance(layer, (nn.Linear, nn.Bilinear))
    units = layer.out_features if is_linear else layer.out_channels
    usual = values.dim() - 1 if is_linear else min(1, values.dim() - 1)
    if values.shape[usual] == units:
        return usual
    return next((axis for axis in range(1, values.dim()) if values.shape[axis] == units), None)


def dead_share(after: torch.Tensor, *, axis: int | None = None) -> float:
    """Share of units with one output for the whole batch, in [0, 1].

    Args:
        after: Outputs of a batch.
        axis: Of the units: 1 behind a convolution, the last one behind a linear layer, (N, D), (N, L, D) or (N, H, W,
            D). None guesses by the shape: channels of (N, C, H, W) maps, else the last axis.

    Example:
        >>> tokens = torch.ones(4, 6, 5, 2)
        >>> tokens[..., 0] = torch.rand(4, 6, 5)  # one of two units is alive
        >>> dead_share(tokens, axis=3), dead_share(tokens.permute(0, 3, 1, 2))
        (0.5, 0.5)
    """
    if axis is None:
        axis = 1 if after.dim() >= 4 else after.dim() - 1
    if after.numel() <= after.shape[axis]:  # one value of each
        return 0.0
    others = [one for one in range(after.dim()) if one != axis % after.dim()]
    return float((after.amin(dim=others) == after.amax(dim=others)).float().mean())
