"""What a swapped layer remembers of the one it stands for, out of sight of parameters and state_dict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from transferkit.nn.norm.source import read_source

__all__ = ["SwapRecord", "NormSwap", "memory_of", "original_of", "remember", "swapped_layers", "swapped_norms"]

_SLOT = "_swapped"
"""Attribute of a replacement. What stands there is no module, so torch does not register what it holds."""


@dataclass(frozen=True, eq=False)
class SwapRecord:
    """Kept by a replacement.

    Args:
        original: The first layer that stood there.
        kind: What it was swapped to last.
    """

    original: nn.Module
    kind: str


@dataclass(frozen=True, kw_only=True)
class NormSwap:
    """One layer that was swapped.

    Args:
        path: Dotted path of its place; the first one if the layer stands in several.
        kind_before: Type of the original layer.
        kind_after: Name of the kind, or type of the replacement where a function made it.
        channels: C.
        groups: That the channels are normalised in; None where there are none.
        note: What else is worth knowing, "" if nothing.
    """

    path: str
    kind_before: str
    kind_after: str
    channels: int
    groups: int | None
    note: str


def remember(replacement: nn.Module, memory: SwapRecord) -> None:
    """Make a replacement remember; `Module.to` does not reach what it remembers."""
    setattr(replacement, _SLOT, memory)


def memory_of(module: nn.Module) -> SwapRecord | None:
    """What a replacement remembers; None for other modules."""
    memory: SwapRecord | None = module.__dict__.get(_SLOT)
    return memory


def original_of(module: nn.Module) -> nn.Module | None:
    """The layer that a swapped one stands for, as it was, on the device where it was; None for other modules."""
    memory = memory_of(module)
    return None if memory is None else memory.original


def swapped_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """(path, swapped layer, original layer), each layer once, in the order of the modules."""
    for path, layer in module.named_modules():
        original = original_of(layer)
        if original is not None:
            yield path, layer, original


def swapped_norms(module: nn.Module) -> tuple[NormSwap, ...]:
    """What `swap_norm` has changed in a module, in the order of the modules; empty if nothing.

    Example:
        >>> from transferkit.nn.norm import swap_norm
        >>> network = nn.Sequential(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12))
        >>> swapped_norms(swap_norm(network, "group", groups=5))[0].note
        '4 groups: 5 do not divide 12 channels'
    """
    places: dict[int, list[str]] = {}
    for path, layer in module.named_modules(remove_duplicate=False):
        if memory_of(layer) is not None:
            places.setdefault(id(layer), []).append(path)
    return tuple(_describe(places[id(layer)], layer) for _, layer, _ in swapped_layers(module))


def _describe(paths: list[str], layer: nn.Module) -> NormSwap:
    memory = memory_of(layer)
    assert memory is not None
    channels = read_source(memory.original).channels
    notes = [_note(layer, channels), f"also at {', '.join(paths[1:])}" if paths[1:] else ""]
    return NormSwap(
        path=paths[0],
        kind_before=type(memory.original).__name__,
        kind_after=memory.kind,
        channels=channels,
        groups=_groups_of(layer),
        note="; ".join(note for note in notes if note),
    )


def _groups_of(layer: nn.Module) -> int | None:
    groups: int | None = getattr(layer, "num_groups", None)
    return groups


def _note(layer: nn.Module, channels: int) -> str:
    groups, asked = _groups_of(layer), getattr(layer, "asked_groups", None)
    if asked is None or groups == asked or channels % asked == 0:
        return ""
    return f"{groups} groups: {asked} do not divide {channels} channels"
