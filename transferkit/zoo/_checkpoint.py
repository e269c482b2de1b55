"""A weights file on disk: reading it without running code from it, and fitting it to an architecture."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from transferkit.errors import CheckpointError, list_problems
from transferkit.paths import expand
from transferkit.zoo._recipe import Recipe

__all__ = ["fit", "load_checkpoint", "read_state", "strip_wrappers"]

# Exponential moving averages come first, as in timm: where a run kept them, they are the weights it reported.
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module", "net")

# Attribute names that wrappers put in front of a network's own: torch.compile, DDP, LightningModules.
WRAPPERS = frozenset({"_orig_mod", "module", "model", "backbone", "net", "network", "encoder"})

SHOWN = 5
GUESS_SECONDS = 3.0
CHECK_THE_NAME = "Check the model name: the file must come from the same architecture."


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file by name, on CPU; no code from the file is run.

    Args:
        path: ".safetensors", or anything that `torch.save` wrote (.pth, .pt, .ckpt, .bin). Of a training checkpoint,
            the averaged weights ("state_dict_ema", "model_ema") are preferred to "state_dict" and "model".

    Raises:
        CheckpointError: If the file is missing, is no checkpoint, or needs code to be run.
    """
    file = expand(path)
    if not file.is_file():
        raise CheckpointError(f"There is no file {str(path)!r}. checkpoint= takes the path of one weights file.")
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    state = _unwrap(content)
    if state is None:
        raise CheckpointError(
            f"{file} holds no tensors by name. Expected a state dict, alone or under one of "
            f"{', '.join(CONTAINERS)}; save one with torch.save(model.state_dict(), PATH)."
        )
    return state


def strip_wrappers(state: Mapping[str, torch.Tensor], wanted: Collection[str]) -> dict[str, torch.Tensor]:
    """Leave out what wrappers put in front of the names; under a wrapper, tensors that lie outside it are dropped.

    Args:
        state: Tensors by name.
        wanted: The names that the network has.

    Example:
        >>> state = {"model.fc.weight": torch.ones(1), "loss.weight": torch.ones(1)}
        >>> strip_wrappers(state, ["fc.weight"])
        {'fc.weight': tensor([1.])}
    """
    candidates = {prefix for key in state for prefix in _wrapper_prefixes(key)}
    matches = {prefix: sum(prefix + name in state for name in wanted) for prefix in candidates | {""}}
    best = max(sorted(matches, key=len), key=lambda prefix: matches[prefix])
    return {key.removeprefix(best): tensor for key, tensor in state.items() if key.startswith(best)}


def load_checkpoint(recipe: Recipe, path: str | Path, *, relatives: Iterable[Recipe] = ()) -> tuple[nn.Module, int]:
    """Build the recipe's network with the classifier that the file has, and load the file.

    Args:
        recipe: The architecture.
        path: The weights file.
        relatives: What else the file may be of; gone through only if it does not fit.

    Returns:
        The network, and the number of outputs of its classifier (0: none).

    Raises:
        CheckpointError: If the file cannot be read or does not fit.
    """
    raw = read_state(path)
    network = recipe.build(pretrained=False, checkpoint_keys=raw)
    expected = network.state_dict()
    state = strip_wrappers(raw, expected)
    classes = _count_classes(recipe, expected, state)
    if classes is not None:
        network = recipe.build(pretrained=False, num_classes=classes, checkpoint_keys=raw)
    fit(network, state, file=Path(path).name, address=recipe.address, relatives=relatives)
    return network, recipe.num_classes if classes is None else classes


def fit(
    network: nn.Module,
    state: Mapping[str, torch.Tensor],
    *,
    file: str,
    address: str,
    relatives: Iterable[Recipe] = (),
) -> None:
    """Load `state` into `network`, with every tensor of both accounted for.

    Args:
        network: What to load into.
        state: Tensors by name.
        file: The file they come from, for people.
        address: What the network is, for people.
        relatives: What else the file may be of; gone through only if it does not fit.

    Raises:
        CheckpointError: If a tensor is missing, unexpected, or of another shape.
    """
    expected = network.state_dict()
    # Files from before PyTorch 1.0 lack these counters, and nothing but a momentum of None reads them.
    counters = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")}
    state = {**counters, **state}
    problems = _misfits(expected, state)
    if problems:
        better = _closest(state, relatives)
        remedy = f"It fits {better!r}: load it under that name." if better else CHECK_THE_NAME
        raise CheckpointError(list_problems(f"{file} does not fit {address}:", problems) + f"\n{remedy}")
    network.load_state_dict(dict(state))


def _misfits(expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> list[str]:
    """A line for each way in which the tensors differ."""
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    found = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": shapes,
    }
    return [_listed(kind, entries) for kind, entries in found.items() if entries]


def _listed(kind: str, entries: list[str]) -> str:
    more = ", ..." if len(entries) > SHOWN else ""
    count = "1 tensor is" if len(entries) == 1 else f"{len(entries)} tensors are"
    return f"{count} {kind}: {', '.join(entries[:SHOWN])}{more}"


def _count_classes(
    recipe: Recipe, expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> int | None:
    """Outputs of the file's classifier, where they differ from the architecture's; else None."""
    resized = [(expected[key].shape, state[key].shape) for key in expected if key in state]
    resized = [(mine, theirs) for mine, theirs in resized if mine != theirs]
    # A classifier of another width shows as tensors that differ in their first dimension only, all in the same way.
    changes = {(mine[:1], theirs[:1]) for mine, theirs in resized if mine[1:] == theirs[1:]}
    if resized and len(changes) == 1 and all(mine[1:] == theirs[1:] for mine, theirs in resized):
        return next(theirs[0] for _, theirs in resized if len(theirs) > 0)
    if not recipe.headless:
        return None
    weights = [f"{name}.weight" for name in recipe.classifiers]
    theirs_count = {len(state[key]) for key in weights if key in state}
    if recipe.num_classes == 0 and len(theirs_count) == 1:
        return theirs_count.pop()
    if recipe.num_classes > 0 and weights and not theirs_count:
        return 0
    return None


def _closest(state: Mapping[str, torch.Tensor], relatives: Iterable[Recipe]) -> str | None:
    """Address of the first relative that the file fits, whatever its number of classes; None if no one is found."""
    deadline = time.monotonic() + GUESS_SECONDS
    for recipe in relatives:
        if time.monotonic() > deadline:
            break
        try:
            with torch.device("meta"):  # shapes without memory or arithmetic
                network = recipe.build(pretrained=False, checkpoint_keys=state)
                own = strip_wrappers(state, network.state_dict())
                classes = _count_classes(recipe, network.state_dict(), own)
                if classes is not None:
                    network = recipe.build(pretrained=False, num_classes=classes, checkpoint_keys=state)
        except Exception:  # what cannot be built without memory is no candidate; the misfit stays the error
            continue
        if not _misfits(network.state_dict(), own):
            return recipe.address
    return None


def _read_safetensors(file: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file, device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is no safetensors file, or was cut short: {error}.") from error


def _read_pickle(file: Path) -> object:
    try:
        with _allowing_plain_objects():
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises KeyError, EOFError, RuntimeError, ... on a file that is no checkpoint
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is not None:
            raise CheckpointError(
                f"{file} holds pickled code ({refused[1]}), which would run on loading, and was not loaded. "
                "If you trust it: torch.load(PATH, weights_only=False) in a session of its own, then "
                "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors'), and load that file."
            ) from error
        raise CheckpointError(
            f"{file} is no checkpoint, or was cut short. Expected .safetensors, or what torch.save wrote."
        ) from error


@contextmanager
def _allowing_plain_objects() -> Iterator[None]:
    """Let through what training scripts file beside the weights and what runs no code: arguments, NumPy numbers."""
    safe_globals = getattr(torch.serialization, "safe_globals", None)
    if safe_globals is None:  # torch 2.4
        yield
        return
    rebuild = np.float64(0).__reduce__()[0]  # its module has moved between versions of NumPy
    kinds = [type(np.dtype(name)) for name in ("float64", "float32", "int64")]
    with safe_globals([argparse.Namespace, np.dtype, rebuild, *kinds]):
        yield


def _unwrap(content: object) -> dict[str, torch.Tensor] | None:
    """The state dict inside what was read; None if there is none."""
    if not isinstance(content, Mapping):
        return None
    for container in CONTAINERS:
        if isinstance(content.get(container), Mapping):
            return _unwrap(content[container])
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    return tensors or None


def _wrapper_prefixes(key: str) -> Iterator[str]:
    """The prefixes of a name that are made of wrappers' names: "model." and "model.module." of "model.module.fc"."""
    parts = key.split(".")
    for count, part in enumerate(parts, start=1):
        if part not in WRAPPERS:
            return
        yield ".".join(parts[:count]) + "."
