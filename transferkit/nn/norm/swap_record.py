"""The record of a swap that a replacement stores, invisible to parameters() and state_dict()."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from transferkit.nn.norm.source import read_source

__all__ = ["NormSwap", "SwapRecord", "original_of", "record_of", "store_record", "swapped_layers", "swapped_norms"]

_SLOT = "_swapped"
"""Attribute of a replacement. Its value is not a module, so torch does not register the original in it."""


@dataclass(frozen=True, eq=False)
class SwapRecord:
    """Stored by a replacement.

    Args:
        original: The original layer.
        kind: The kind that it was last swapped to.
    """

    original: nn.Module
    kind: str


@dataclass(frozen=True, kw_only=True)
class NormSwap:
    """Description of one swapped layer.

    Args:
        path: Its dotted path; the first one if the layer occurs several times.
        kind_before: Type of the original layer.
        kind_after: Name of the kind, or type of the replacement where a function made it.
        channels: C.
        groups: Number of groups of channels; None if there are none.
        note: Remarks; "" if none.
    """

    path: str
    kind_before: str
    kind_after: str
    channels: int
    groups: int | None
    note: str


def store_record(replacement: nn.Module, record: SwapRecord) -> None:
    """Store the record in a replacement; `Module.to` does not affect the original in it."""
    setattr(replacement, _SLOT, record)


def record_of(module: nn.Module) -> SwapRecord | None:
    """The record stored in a replacement; None for other modules."""
    record: SwapRecord | None = module.__dict__.get(_SLOT)
    return record


def original_of(module: nn.Module) -> nn.Module | None:
    """The original of a swapped layer, unchanged and on its original device; None for other modules."""
    record = record_of(module)
    return None if record is None else record.original


def swapped_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """(path, swapped layer, original layer), each layer once, in the order of the modules."""
    for path, layer in module.named_modules():
        original = original_of(layer)
        if original is not None:
            yield path, layer, original


def swapped_norms(module: nn.Module) -> tuple[NormSwap, ...]:
    """The layers that `swap_norm` changed in a module, in module order; empty if none.

    Example:
        >>> from transferkit.nn.norm import swap_norm
        >>> network = nn.Sequential(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12))
        >>> swapped_norms(swap_norm(network, "group", groups=5))[0].note
        '4 groups: 5 do not divide 12 channels'
    """
    paths: dict[int, list[str]] = {}
    for path, layer in module.named_modules(remove_duplicate=False):
        if record_of(layer) is not None:
            paths.setdefault(id(layer), []).append(path)
    return tuple(_describe(paths[id(layer)], layer) for _, layer, _ in swapped_layers(module))


def _describe(paths: list[str], layer: nn.Module) -> NormSwap:
    record = record_of(layer)
    assert record is not None
    channels = read_source(record.original).channels
    notes = [_note(layer, channels), f"also at {', '.join(paths[1:])}" if paths[1:] else ""]
    return NormSwap(
        path=paths[0],
        kind_before=type(record.original).__name__,
        kind_after=record.kind,
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
