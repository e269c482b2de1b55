"""Layers whose outputs hold several maps: query, key and value of an attention, a gate beside what it gates.

Seen from what the network does with the outputs: the numbers of the units go through the same views, splits and
slices, and what comes out with a part of the units only, is a part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from transferkit.nn.following import NORMALISES, TRANSPOSED, Follower, as_at_start, call, list_layers
from transferkit.nn.nonlinearity import Nonlinearity, assumed, grid

__all__ = ["UnitPart", "find_parts"]

REARRANGES = frozenset(
    {
        "view",
        "_unsafe_view",
        "reshape",
        "permute",
        "transpose",
        "t",
        "split",
        "split_with_sizes",
        "unbind",
        "slice",
        "select",
        "squeeze",
        "unsqueeze",
        "clone",
        "alias",
        "detach",
    }
)
"""Operators that move values without changing them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitPart:
    """Units of a layer that are a map of their own.

    Args:
        units: (U,) their numbers, ascending.
        nonlinearity: What follows them; "linear" for nothing.
    """

    units: torch.Tensor
    nonlinearity: Nonlinearity


def _gated() -> Nonlinearity:
    """What a gate b does to a: a sigmoid(b) has the second moment of a times E sigmoid(z)^2, b being on scale 1."""
    density = torch.exp(-0.5 * grid() ** 2)
    moment = float((density * torch.sigmoid(grid()) ** 2).sum() / density.sum())
    return Nonlinearity(name="gated", outputs=grid() * moment**0.5)


class _PartFollower(Follower):  # type: ignore[no-untyped-call]
    """Follows the numbers of a layer's units, and each part of them as if it were a layer."""

    def __init__(self) -> None:
        super().__init__(self._note)
        self._numbers: dict[int, tuple[str, torch.Tensor]] = {}
        self._found: dict[str, dict[bytes, str]] = {}
        self._units: dict[str, torch.Tensor] = {}
        self._nonlinearity: dict[str, Nonlinearity] = {}

    def number(self, tensor: Any, layer: str, units: int, *, axis: int) -> None:
        if not isinstance(tensor, torch.Tensor) or tensor.shape[axis] != units:
            return
        along = torch.arange(units, dtype=torch.int32, device=tensor.device)
        shape = [1] * tensor.dim()
        shape[axis] = units
        # With the strides of the outputs, so that whatever views these have can be made of it.
        self._remember(tensor, layer, torch.empty_like(tensor, dtype=torch.int32).copy_(along.view(shape)))

    def _remember(self, tensor: torch.Tensor, layer: str, numbers: torch.Tensor) -> None:
        self._numbers[id(tensor)] = layer, numbers
        self._kept.append(tensor)

    def _note(self, part: str, nonlinearity: Nonlinearity, before: torch.Tensor, after: torch.Tensor) -> None:
        self._nonlinearity[part] = nonlinearity

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = super().__torch_dispatch__(function, types, args, kwargs)
        known = self._numbers.get(id(args[0])) if args else None
        if known is None:
            return result
        layer, numbers = known
        name = function.overloadpacket.__name__
        if name.endswith("_"):  # in place: what is taken apart later has been through it
            self._numbers.pop(id(args[0]))
        elif name == "glu":
            value, gate = numbers.chunk(2, dim=args[1] if len(args) > 1 else -1)
            self._nonlinearity[self._part(layer, value)] = _gated()
            self._part(layer, gate)
        elif name in NORMALISES:
            first = result[0] if isinstance(result, tuple) else result
            if first.shape == numbers.shape:
                self._remember(first, layer, numbers)
        elif name in REARRANGES:
            self._rearrange(layer, function(numbers, *args[1:], **(kwargs or {})), result)
        return result

    def _rearrange(self, layer: str, numbers: Any, result: Any) -> None:
        whole = isinstance(result, torch.Tensor)
        units = len(self._units[layer])
        for tensor, own in zip([result] if whole else result, [numbers] if whole else numbers, strict=True):
            if own.numel() and len(torch.unique(own)) < units:
                self.follow(tensor, self._part(layer, own))
            else:
                self._remember(tensor, layer, own)

    def _part(self, layer: str, numbers: torch.Tensor) -> str:
        units = torch.unique(numbers).cpu().long()
        known = self._found.setdefault(layer, {})
        name = known.setdefault(units.numpy().tobytes(), f"{layer}[{len(known)}]")
        self._units[name] = units
        return name

    def add_layer(self, layer: str, units: int) -> None:
        self._units[layer] = torch.arange(units)

    def parts(self) -> dict[str, tuple[UnitPart, ...]]:
        """Those that divide a layer: all its units, each in one part."""
        divided = {}
        for layer, found in self._found.items():
            units = [self._units[part] for part in found.values()]
            if len(units) > 1 and torch.equal(torch.cat(units).sort().values, self._units[layer]):
                divided[layer] = tuple(
                    UnitPart(units=self._units[part], nonlinearity=self._nonlinearity.get(part, assumed("linear")))
                    for part in found.values()
                )
        return divided


def find_parts(module: nn.Module, batch: Any) -> dict[str, tuple[UnitPart, ...]]:
    """The parts of the linear and convolutional layers whose outputs are taken apart.

    Args:
        module: Any network; it is run once in evaluation mode, without gradients, and is as it was afterwards.
        batch: Its input, or a tuple of its inputs.

    Returns:
        Dotted path -> two parts or more. Not layers that are used as a whole; nor grouped and transposed convolutions.

    Example:
        >>> class Gated(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.inner = nn.Linear(4, 12)
        ...     def forward(self, x):
        ...         value, gate = self.inner(x).chunk(2, dim=-1)
        ...         return value * torch.nn.functional.silu(gate)
        >>> [(len(part.units), part.nonlinearity.name) for part in find_parts(Gated(), torch.ones(2, 4))["inner"]]
        [(6, 'linear'), (6, 'silu')]
    """
    follower = _PartFollower()

    def hook(name: str, axis: int, units: int) -> Callable[..., None]:
        follower.add_layer(name, units)
        return lambda layer, inputs, output: follower.number(output, name, units, axis=axis)

    handles = []
    for name, layer in list_layers(module):
        if isinstance(layer, TRANSPOSED) or getattr(layer, "groups", 1) > 1:
            continue
        is_linear = hasattr(layer, "out_features")
        # Counted from the end: images may come without an axis of the batch.
        axis, units = (-1, layer.out_features) if is_linear else (-1 - len(layer.kernel_size), layer.out_channels)
        handles.append(layer.register_forward_hook(hook(name, axis, units)))
    try:
        with as_at_start(module, batch), follower:
            call(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    return follower.parts()
