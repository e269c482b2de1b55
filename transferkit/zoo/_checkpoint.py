"""Loading a weights file into an architecture.

The file must contain the complete trunk, under any prefix; its classifier may differ or be absent.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from transferkit.core.errors import CheckpointError, list_problems
from transferkit.zoo._blueprint import Blueprint, draw_blueprint, draw_module, find_last_linear
from transferkit.zoo._entry import ModelEntry
from transferkit.zoo._matching import Match, Misfit, count_classes, find_misfit, find_places, is_same, rank_of
from transferkit.zoo._misfits import (
    CHECK_THE_NAME,
    describe_found,
    describe_left_out,
    describe_passed_over,
    describe_rivals,
    find_remedy,
    list_misfit,
)
from transferkit.zoo._weights_file import Part, find_file, read_parts

__all__ = ["Loaded", "fit", "load_checkpoint", "load_into"]

GUESS_SECONDS = 3.0


class Loaded(NamedTuple):
    """A network with the weights of a file.

    Args:
        network: If the file has no classifier that fits and the architecture requires one, the classifier is random.
        classes: Outputs of the file's classifier; 0 if it has none that fits.
        note: Which of several networks in the file was loaded, and what was left out; "" if not applicable.
    """

    network: nn.Module
    classes: int
    note: str


def load_checkpoint(entry: ModelEntry, path: str | Path, *, relatives: Iterable[ModelEntry] = ()) -> Loaded:
    """The entry's network with the file's weights, built with the file's number of classes.

    Args:
        entry: The architecture.
        path: The weights file, or the folder of a run.
        relatives: Other architectures that the file may belong to; tried only if it does not fit.

    Raises:
        CheckpointError: If the file cannot be read, lacks part of the trunk, or contains several networks that fit.
    """
    parts = [_only_tower(part, entry.tower) for part in read_parts(path)]
    keys = [key for part in parts for key in part.state]
    blueprint = draw_blueprint(entry, keys)
    match, note = _locate(parts, blueprint, find_file(path), entry.address, relatives)
    classes = count_classes(match, blueprint)
    sized = {"num_classes": classes} if classes or entry.headless else {}
    network = entry.build(pretrained=False, checkpoint_keys=keys, **sized)
    _fill(network, match, blueprint, classes)
    return Loaded(network, classes, note)


def _only_tower(part: Part, tower: str) -> Part:
    """What belongs to the tower; all of it if the part has no such tower."""
    own = {key: tensor for key, tensor in part.state.items() if f".{tower}" in f".{key}"}
    return part._replace(state=own) if tower and own else part


def load_into(network: nn.Module, path: str | Path) -> Loaded:
    """Load a file into a user's module, whose classifier is resized to the file's number of classes.

    Raises:
        CheckpointError: As for `load_checkpoint`.
    """
    blueprint = draw_module(network)
    match, note = _locate(read_parts(path), blueprint, find_file(path), f"the module {type(network).__name__}", ())
    classes = count_classes(match, blueprint)
    if classes:
        _resize(network, classes)
    _fill(network, match, blueprint, classes)
    return Loaded(network, classes, note)


def fit(network: nn.Module, state: Mapping[str, torch.Tensor], *, file: str, address: str) -> None:
    """Load `state` into `network`; every tensor of both must match.

    Raises:
        CheckpointError: If a tensor is missing, unexpected, or of another shape.
    """
    expected = network.state_dict()
    shared = [key for key in expected if key in state]
    misfit = Misfit(
        missing=tuple(key for key in expected if key not in state),
        unexpected=tuple(key for key in state if key not in expected),
        shapes=tuple(
            (key, state[key].shape, expected[key].shape) for key in shared if state[key].shape != expected[key].shape
        ),
    )
    if misfit:
        raise CheckpointError(
            list_problems(f"{file} does not fit {address}:", list_misfit(misfit)) + f"\n{CHECK_THE_NAME}"
        )
    network.load_state_dict(dict(state))


def _resize(network: nn.Module, classes: int) -> None:
    """Replace the network's last layer by one with `classes` outputs, if it has another number."""
    path = find_last_linear(network)
    assert path is not None
    old = network.get_submodule(path)
    assert isinstance(old, nn.Linear | nn.Conv2d)
    outputs, wide = old.weight.shape[:2]
    if outputs == classes:
        return
    bias = old.bias is not None
    new = nn.Linear(wide, classes, bias=bias) if isinstance(old, nn.Linear) else nn.Conv2d(wide, classes, 1, bias=bias)
    network.set_submodule(path, new)


def _locate(
    parts: Sequence[Part], blueprint: Blueprint, file: Path, address: str, relatives: Iterable[ModelEntry]
) -> tuple[Match, str]:
    """The best match of the network in the file, and a note about it."""
    ranked = find_places(parts, blueprint)
    best = ranked[0]
    misfit = find_misfit(best, blueprint)
    if misfit:
        better = _find_closest(parts, relatives)
        remedy = (
            f"It fits {better!r}: load it under that name." if better else find_remedy(best, misfit, blueprint, file)
        )
        problems = [*describe_found(best, blueprint, parts), *list_misfit(misfit)]
        raise CheckpointError(list_problems(f"{file.name} does not fit {address}:", problems) + f"\n{remedy}")
    fitting = [match for match in ranked[1:] if not find_misfit(match, blueprint)]
    others = [match for match in fitting if not is_same(match, best, blueprint)]
    rivals = [match for match in others if rank_of(match, blueprint) == rank_of(best, blueprint)]
    if rivals:
        raise CheckpointError(describe_rivals(best, rivals, file))
    return best, "; ".join(filter(None, [describe_passed_over(best, others), describe_left_out(best, blueprint)]))


def _fill(network: nn.Module, match: Match, blueprint: Blueprint, classes: int) -> None:
    """Load the matched tensors. Those missing in the file keep their values: batch counters, a missing classifier."""
    wanted = [name for name in network.state_dict() if classes or name not in blueprint.head]
    found = {name: match.find(name) for name in wanted}
    state = {name: tensor for name, tensor in found.items() if tensor is not None}
    network.load_state_dict({**network.state_dict(), **state})


def _find_closest(parts: Sequence[Part], relatives: Iterable[ModelEntry]) -> str | None:
    """Address of the first relative that the file fits; None if there is none."""
    keys = [key for part in parts for key in part.state]
    deadline = time.monotonic() + GUESS_SECONDS
    for entry in relatives:
        if time.monotonic() > deadline:
            break
        try:
            blueprint = draw_blueprint(entry, keys, meta_only=True)
        except Exception:  # skip what cannot be built on the meta device; the original misfit is reported
            continue
        if not find_misfit(find_places(parts, blueprint)[0], blueprint):
            return entry.address
    return None
