"""A weights file on disk, loaded into an architecture.

The trunk must be in the file whole, under whatever prefix; a classifier may be another one or absent.
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
from transferkit.zoo._entry import ZooEntry
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
        network: Where the file has no classifier that fits and the network cannot do without one, its own is random.
        classes: Outputs of the file's classifier; 0 if it has none that fits.
        note: Which of several networks in the file it is, and what was left out of it; "" if there is nothing to say.
    """

    network: nn.Module
    classes: int
    note: str


def load_checkpoint(recipe: ZooEntry, path: str | Path, *, relatives: Iterable[ZooEntry] = ()) -> Loaded:
    """Build the recipe's network with the classifier that the file has, and load the file.

    Args:
        recipe: The architecture.
        path: The weights file, or the folder of a run.
        relatives: What else the file may be of; gone through only if it does not fit.

    Raises:
        CheckpointError: If the file cannot be read, lacks part of the trunk, or holds several networks that fit.
    """
    parts = read_parts(path)
    keys = [key for part in parts for key in part.state]
    blueprint = draw_blueprint(recipe, keys)
    match, note = _locate(parts, blueprint, find_file(path), recipe.address, relatives)
    classes = count_classes(match, blueprint)
    sized = {"num_classes": classes} if classes or recipe.headless else {}
    network = recipe.build(pretrained=False, checkpoint_keys=keys, **sized)
    _fill(network, match, blueprint, classes)
    return Loaded(network, classes, note)


def load_into(network: nn.Module, path: str | Path) -> Loaded:
    """Load a file into a module of the person's own, which gets a classifier of the file's width.

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
    """Load `state` into `network`, with every tensor of both accounted for.

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
    """Give the network's last layer so many outputs, if it has another number of them."""
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
    parts: Sequence[Part], blueprint: Blueprint, file: Path, address: str, relatives: Iterable[ZooEntry]
) -> tuple[Match, str]:
    """The network in the file, and what there is to say of it."""
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
    """What the file lacks stays as it is: counters of batches, and a classifier that it has none for."""
    wanted = [name for name in network.state_dict() if classes or name not in blueprint.head]
    found = {name: match.find(name) for name in wanted}
    state = {name: tensor for name, tensor in found.items() if tensor is not None}
    network.load_state_dict({**network.state_dict(), **state})


def _find_closest(parts: Sequence[Part], relatives: Iterable[ZooEntry]) -> str | None:
    """Address of the first relative that the file fits; None if no one is found."""
    keys = [key for part in parts for key in part.state]
    deadline = time.monotonic() + GUESS_SECONDS
    for recipe in relatives:
        if time.monotonic() > deadline:
            break
        try:
            blueprint = draw_blueprint(recipe, keys, meta_only=True)
        except Exception:  # what cannot be built without memory is no candidate; the misfit stays the error
            continue
        if not find_misfit(find_places(parts, blueprint)[0], blueprint):
            return recipe.address
    return None
