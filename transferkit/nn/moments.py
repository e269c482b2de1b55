"""Channel moments of a network's activations, for comparison with those on its training images.

The running statistics of batch normalisation are the mean and variance of every channel over the images that the
network was trained on. For each stage, the last such layer that runs inside it is used; its *input* is what those
statistics describe. A network without batch normalisation is read at its stages' outputs, for which it stores no
statistics: the other side of the comparison must then come from source images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from transferkit.nn.anatomy import calls_in_order
from transferkit.nn.pooling import Layout, to_grid
from transferkit.nn.stages import Tap, record, tensor_of

__all__ = ["MomentTap", "discover_moment_taps", "record_moments", "running_moments"]


@dataclass(frozen=True)
class MomentTap:
    """A module at which the moments of a stage's channels are read.

    Args:
        stage: The stage's name.
        path: Dotted path of the module to read; "" is the network itself.
        channels: C.
        layout: None reads the input of a normalisation layer, with channels at axis 1; else the module's output.
    """

    stage: str
    path: str
    channels: int
    layout: Layout | None


def _is_trained_norm(module: nn.Module) -> bool:
    """Whether it has running statistics other than the initial (0, 1) in every channel."""
    if not isinstance(module, _BatchNorm) or module.running_mean is None or module.running_var is None:
        return False
    return bool((module.running_mean != 0).any() or (module.running_var != 1).any())


def discover_moment_taps(network: nn.Module, taps: Sequence[Tap], *, size: int) -> tuple[MomentTap, ...]:
    """For each stage the last batch normalisation that runs inside it; without any, the stages' outputs.

    Args:
        network: Without its classifier.
        taps: Its stages, stem -> head.
        size: Side of the input, in pixels.

    Returns:
        Stem -> head. A stage without such a layer is left out if other stages have one. A layer that runs more than
        once mixes several positions in its statistics and is not used.
    """
    norms = {path: module for path, module in network.named_modules() if _is_trained_norm(module)}
    finished = calls_in_order(network, [*norms, *{tap.path for tap in taps} - set(norms)], size=size)
    found = []
    start = 0
    for tap in taps:
        stop = finished.index(tap.path, start) + 1
        inside = [path for path in finished[start:stop] if path in norms and finished.count(path) == 1]
        if inside:
            found.append(MomentTap(tap.stage, inside[-1], _channels(norms[inside[-1]]), None))
        start = stop
    if found:
        return tuple(found)
    return tuple(MomentTap(tap.stage, tap.path, tap.channels, tap.layout) for tap in taps)


def _channels(norm: nn.Module) -> int:
    assert isinstance(norm.running_mean, torch.Tensor)
    return len(norm.running_mean)


def running_moments(network: nn.Module, taps: Sequence[MomentTap]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Stage -> running mean and variance, two (C,) float32 copies; stages read at their outputs have none."""
    moments = {}
    for tap in taps:
        norm = network.get_submodule(tap.path)
        if tap.layout is None and isinstance(norm, _BatchNorm):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            mean, variance = (
                value.detach().to("cpu", torch.float32, copy=True) for value in (norm.running_mean, norm.running_var)
            )
            moments[tap.stage] = (mean, variance)
    return moments


def record_moments(network: nn.Module, taps: Sequence[MomentTap]) -> str:
    """Add hooks for `collecting` under the returned owner: per image and channel, mean and mean square.

    They collect (N, 2C) float32: C means over the positions, then C means of the squares.
    """
    return record(network, {tap.path: partial(_read, tap.layout) for tap in taps})


def _read(layout: Layout | None, inputs: object, output: object) -> torch.Tensor | None:
    tensor = tensor_of(inputs if layout is None else output)
    if tensor is None:
        return None
    grid = (tensor if layout is None else to_grid(tensor, layout)).detach().float()
    positions = grid.reshape(*grid.shape[:2], -1)
    return torch.cat([positions.mean(dim=2), positions.square().mean(dim=2)], dim=1)
