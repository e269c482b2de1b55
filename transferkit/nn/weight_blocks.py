"""What there is to initialise in a network: blocks of weights, each a linear map with a fan-in, and what is left alone.

A convolution is one block, unless its outputs are taken apart. The projection of an attention holds three, stacked; a
recurrent layer one for each gate; a transposed convolution is stored by its inputs, and an output sees a share
1 / stride of its kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from transferkit.core.errors import OptionError
from transferkit.nn.following import LAYERS, TRANSPOSED
from transferkit.nn.nonlinearity import Nonlinearity, assumed
from transferkit.nn.packed import UnitPart

__all__ = [
    "Block",
    "Site",
    "attention_blocks",
    "gates_of",
    "is_recurrent",
    "layer_block",
    "own_modules",
    "part_blocks",
    "recurrent_blocks",
    "rest",
]

RECURRENT = (nn.RNNBase, nn.RNNCellBase)

GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "GRU": 3, "LSTM": 4, "RNNCell": 1, "GRUCell": 3, "LSTMCell": 4}
"""Blocks that are stacked in the weights of a recurrent layer."""

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


@dataclass(frozen=True, kw_only=True)
class Site:
    """What decides about the scale of a block's weights.

    Args:
        inputs: Numbers that one output is computed from (fan-in); of a transposed convolution on average, away from
            the border.
        outputs: Numbers that one input takes part in (fan-out).
        nonlinearity: What follows.
        groups: Of a grouped convolution.
        share: Of a unit's weights that one output sees: 1, or 1 / stride.
    """

    inputs: float
    outputs: float
    nonlinearity: Nonlinearity
    groups: int = 1
    share: float = 1.0

    @property
    def gain(self) -> float:
        """Factor on the standard deviation 1 / sqrt(fan-in) that keeps the signal's second moment."""
        return self.nonlinearity.gain


@dataclass(frozen=True, kw_only=True)
class Block:
    """A part of a parameter that is one linear map.

    Args:
        shape: (units, inputs of a unit, ...), as of a linear or convolutional layer.
        site: Its place in the network.
        write: Puts weights of this shape there.
        recurrent: Whether it maps a state to the next one.
    """

    shape: tuple[int, ...]
    site: Site
    write: Callable[[torch.Tensor], object]
    recurrent: bool = False


def layer_block(layer: Any, nonlinearity: Nonlinearity) -> Block:
    """The block of a linear or convolutional layer."""
    weight, groups = layer.weight, getattr(layer, "groups", 1)
    field = math.prod(weight.shape[2:])
    if not isinstance(layer, TRANSPOSED):
        site = Site(
            inputs=weight.shape[1] * field,
            outputs=weight.shape[0] // groups * field,
            nonlinearity=nonlinearity,
            groups=groups,
        )
        return Block(shape=tuple(weight.shape), site=site, write=weight.detach().copy_)
    inputs, outputs = weight.shape[0] // groups, weight.shape[1]
    share = 1 / math.prod(layer.stride)
    site = Site(
        inputs=inputs * field * share, outputs=outputs * field, nonlinearity=nonlinearity, groups=groups, share=share
    )

    def write(values: torch.Tensor) -> None:
        parts = [part.transpose(0, 1) for part in values.chunk(groups)]
        weight.detach().copy_(torch.cat(parts))

    return Block(shape=(groups * outputs, inputs, *weight.shape[2:]), site=site, write=write)


def part_blocks(layer: Any, parts: Iterable[UnitPart]) -> Iterator[Block]:
    """The parts of a linear or convolutional layer that are maps of their own."""
    weight = layer.weight
    field = math.prod(weight.shape[2:])
    for part in parts:
        site = Site(inputs=weight.shape[1] * field, outputs=len(part.units) * field, nonlinearity=part.nonlinearity)
        write = partial(_write_units, weight.detach(), part.units.to(weight.device))
        yield Block(shape=(len(part.units), *weight.shape[1:]), site=site, write=write)


def _write_units(weight: torch.Tensor, units: torch.Tensor, values: torch.Tensor) -> None:
    weight[units] = values.to(weight.dtype)


def attention_blocks(layer: nn.MultiheadAttention) -> Iterator[Block]:
    """Query, key and value, each a map of its own, stacked or not."""
    stored = _weights(layer)
    for part in stored[0].chunk(3) if len(stored) == 1 else stored:
        yield _matrix(part)


def is_recurrent(layer: nn.Module) -> bool:
    return isinstance(layer, RECURRENT)


def recurrent_blocks(layer: Any) -> Iterator[Block]:
    """Input, recurrent and projecting maps of every gate, level and direction."""
    for name, weight in layer.named_parameters(recurse=False):
        if name.startswith("weight_hr"):
            yield _matrix(weight)
        elif name.startswith("weight"):
            for part in weight.chunk(gates_of(layer)):
                yield _matrix(part, recurrent=name.startswith("weight_hh"))


def gates_of(layer: Any) -> int:
    """Blocks that are stacked in each weight of a recurrent layer."""
    return GATES[layer.mode if isinstance(layer, nn.RNNBase) else type(layer).__name__]


def _matrix(part: torch.Tensor, *, recurrent: bool = False) -> Block:
    site = Site(inputs=part.shape[1], outputs=part.shape[0], nonlinearity=assumed("linear"))
    return Block(shape=tuple(part.shape), site=site, write=part.detach().copy_, recurrent=recurrent)


def own_modules(module: nn.Module) -> dict[str, Any]:
    """Path -> layer, attention or recurrent layer; one of several that share a weight.

    Raises:
        OptionError: A weight is computed from others, or not made yet.
    """
    found, weights = dict[str, Any](), set[int]()
    for name, layer in module.named_modules():
        if not isinstance(layer, (*LAYERS, nn.MultiheadAttention, *RECURRENT)):
            continue
        own = _weights(layer)
        if nn.utils.parametrize.is_parametrized(layer) or not all(isinstance(one, nn.Parameter) for one in own):
            raise OptionError(
                f"The weight of {name!r} is computed from others (weight_norm, spectral_norm, pruning): "
                "initialise before that is added."
            )
        if any(one.is_meta for one in own):
            raise OptionError(f"{name!r} lies on the meta device, without memory: module.to_empty(device=...) first.")
        if any(isinstance(one, nn.UninitializedParameter) for one in own):
            raise OptionError(f"{name!r} has no weight yet: run the network once, then initialise it.")
        if not any(id(one) in weights for one in own):
            found[name] = layer
            weights.update(id(one) for one in own)
    return found


def _weights(layer: Any) -> list[Any]:
    if isinstance(layer, LAYERS):
        return [layer.weight]
    if isinstance(layer, nn.MultiheadAttention):
        stacked = [layer.in_proj_weight, layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight]
        return [one for one in stacked if one is not None]
    if isinstance(layer, nn.RNNBase):
        return [one for level in layer.all_weights for one in level if one.dim() == 2]
    return [layer.weight_ih, layer.weight_hh]


def rest(module: nn.Module) -> dict[str, str]:
    """Path of each module with parameters of its own that no block covers -> why they are left alone.

    Normalisation is not listed: it starts at scale 1 and shift 0.
    """
    found = dict[str, str]()
    covered = {id(one) for _, layer in module.named_modules() for one in _covered(layer)}
    for name, one in module.named_modules():
        left = [key for key, value in one.named_parameters(recurse=False) if id(value) not in covered]
        if not left or isinstance(one, NORMS):
            continue
        if isinstance(one, (nn.Embedding, nn.EmbeddingBag)):
            found[name] = "a row is looked up, not summed: there is no fan-in to scale by"
        else:
            found[name] = f"no linear map with a known fan-in: {', '.join(left)}"
    return found


def _covered(layer: nn.Module) -> list[Any]:
    if isinstance(layer, nn.MultiheadAttention):
        return [*_weights(layer), layer.in_proj_bias]
    if isinstance(layer, (*LAYERS, *RECURRENT)):
        return list(layer.parameters(recurse=False))
    return []
