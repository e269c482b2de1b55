"""Names and shapes of an architecture's tensors: its trunk, which a weights file must contain, and its classifier."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from transferkit.zoo._entry import ModelEntry

__all__ = ["COUNTER", "Blueprint", "draw_blueprint", "draw_module", "find_last_linear"]

COUNTER = "num_batches_tracked"
"""Files from before PyTorch 1.0 lack these tensors, and only layers with momentum=None use them."""


@dataclass(frozen=True)
class Blueprint:
    """Names and shapes of a network's tensors.

    Args:
        trunk: Name -> shape, without batch counters, which files from before PyTorch 1.0 lack.
        head: The same for the classifier.
        counted: Names of the head's tensors whose first dimension is the number of classes.
        children: Names of the network's modules, in order.
    """

    trunk: Mapping[str, torch.Size]
    head: Mapping[str, torch.Size]
    counted: frozenset[str]
    children: tuple[str, ...]

    @cached_property
    def tops(self) -> frozenset[str]:
        return frozenset(name.partition(".")[0] for name in self.trunk)

    @cached_property
    def head_paths(self) -> tuple[str, ...]:
        return tuple({f"{name.rpartition('.')[0]}." for name in self.head})


def draw_blueprint(entry: ModelEntry, keys: Collection[str], *, meta_only: bool = False) -> Blueprint:
    """The blueprint of an entry. The classifier is what changes with the number of classes, or is missing with 0."""
    few, children = _shapes(entry, 3, keys, meta_only)
    more, _ = _shapes(entry, 5, keys, meta_only)
    bare = _shapes(entry, 0, keys, meta_only)[0] if entry.headless else few
    counted = frozenset(name for name, shape in few.items() if more.get(name) != shape)
    trunk = {name: shape for name, shape in bare.items() if name not in counted and not name.endswith(COUNTER)}
    head = {name: shape for name, shape in few.items() if name not in trunk and not name.endswith(COUNTER)}
    return Blueprint(trunk, head, counted, children)


def draw_module(network: nn.Module) -> Blueprint:
    """The blueprint of a user's module; its last layer counts as its classifier if it is linear."""
    last = find_last_linear(network)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    head = {name: shape for name, shape in shapes.items() if last is not None and name.rpartition(".")[0] == last}
    return Blueprint(
        trunk={name: shape for name, shape in shapes.items() if name not in head and not name.endswith(COUNTER)},
        head=head,
        counted=frozenset(head),
        children=tuple(name for name, _ in network.named_children()),
    )


def _shapes(
    entry: ModelEntry, classes: int, keys: Collection[str], meta_only: bool
) -> tuple[dict[str, torch.Size], tuple[str, ...]]:
    """Name -> shape of the tensors of a network with that many classes, and the names of its children."""
    try:
        network = _build_shapeless(entry, classes, keys, meta=True)
    except Exception:  # some networks compute with their own weights during construction
        if meta_only:
            raise
        network = _build_shapeless(entry, classes, keys, meta=False)
    children = tuple(name for name, _ in network.named_children())
    return {name: tensor.shape for name, tensor in network.state_dict().items()}, children


def _build_shapeless(entry: ModelEntry, classes: int, keys: Collection[str], *, meta: bool) -> nn.Module:
    with torch.device("meta") if meta else nullcontext():  # shapes only, no memory or computation
        return entry.build(pretrained=False, num_classes=classes, checkpoint_keys=keys)


def find_last_linear(network: nn.Module) -> str | None:
    """Path of the last layer with weights, if it is linear."""
    leaves = [(path, module) for path, module in network.named_modules() if list(module.parameters(recurse=False))]
    if not leaves:
        return None
    path, last = leaves[-1]
    linear = isinstance(last, nn.Linear) or (isinstance(last, nn.Conv2d) and last.kernel_size == (1, 1))
    return path if path and linear else None
