"""Reading the state dicts of a weights file without running code from it."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import re
import types
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from transferkit.core.errors import CheckpointError
from transferkit.core.paths import expand
from transferkit.zoo._file_kinds import describe_other_file, is_pickle, is_safetensors
from transferkit.zoo._pickled import outermost_keys

__all__ = ["CONTAINERS", "WRAPPED", "Part", "find_file", "loads_plainly", "preference", "read_parts", "read_state"]

CONTAINERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "teacher",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "network",
    "net",
    "backbone",
    "encoder",
    "student",
)
"""Keys under which training scripts store a state dict, the preferred first. Averages come first: if a run kept an
exponential moving average (DINO's teacher is one), that is the model that was evaluated."""

AVERAGED = frozenset({"ema", "teacher", "averaged", "average", "swa", "best"})
COUNTERPARTS = frozenset({"student", "target", "momentum", "key", "k"})
"""Words in names of networks that self-supervised training keeps in addition to the one that is evaluated."""

NOT_WEIGHTS = re.compile(r".*optim.*|.*sched.*|.*scaler.*|callbacks|loops|.*rng.*")
"""Entries of a training checkpoint that are not weights, Adam's tensors included."""

WRAPPED = r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
"""Inserted into names, also in the middle, by torch.compile, sharding and activation checkpointing."""

DEPTH = 4
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar", ".pkl")
INDEX = ".index.json"
"""File name ending of the index of weights saved in several files."""


class Part(NamedTuple):
    """A state dict of a file.

    Args:
        where: The keys and list indices that lead to it; empty if the file itself is the state dict.
        state: Tensors by name, with wrapper names removed.
        wrapped: Whether any wrapper name was removed.
    """

    where: tuple[str | int, ...]
    state: dict[str, torch.Tensor]
    wrapped: bool = False

    @property
    def under(self) -> str:
        """The keys that lead to it, dotted."""
        return ".".join(map(str, self.where))


def find_file(path: str | Path) -> Path:
    """The weights file at a path: the file itself, or the one in a run's or a model's folder.

    Raises:
        CheckpointError: If there is no such file.
    """
    given = expand(path)
    if given.is_file():
        return given
    if given.is_dir():
        for name in FOLDER_FILES:
            if (given / name).is_file():
                return given / name
        raise CheckpointError(
            f"The folder {str(path)!r} is neither a finished run nor a saved model: it has no {FOLDER_FILES[0]}. "
            f"{_choose_inside(given)}"
        )
    if "://" in str(path):
        raise CheckpointError(f"{str(path)!r} is a URL. Download the file, and pass its path as checkpoint=.")
    raise CheckpointError(
        f"There is no file {str(path)!r}. checkpoint= takes the path of one weights file, or of a run's folder."
    )


def _choose_inside(folder: Path) -> str:
    """The next step for a folder without a weights file of a standard name."""
    inside = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if any(file.name.endswith(INDEX) for file in folder.iterdir()):
        return _join_shards(folder, inside)
    return f"Name one of its files: {', '.join(inside[:5])}." if inside else "It contains no weights file."


def _join_shards(folder: Path, inside: Sequence[str]) -> str:
    shards = [str(folder / name) for name in inside]
    new = str(folder / FOLDER_FILES[1])
    load = "torch.load(file, map_location='cpu', weights_only=True)"
    lines = ["import torch"]
    if all(name.endswith(".safetensors") for name in inside):
        lines, load = [*lines, "from safetensors.torch import load_file"], "load_file(file)"
    code = "\n".join(
        [
            *lines,
            f"parts = [{load} for file in {shards}]",
            f"torch.save({{k: v for p in parts for k, v in p.items()}}, {new!r})",
        ]
    )
    return f"Its weights are in {len(shards)} files. Join them:\n{code}\nThen pass checkpoint={new}."


def read_parts(path: str | Path) -> tuple[Part, ...]:
    """All state dicts of a weights file, on CPU; no code from the file is run.

    Args:
        path: ".safetensors", or a file written by `torch.save` (.pth, .pt, .ckpt, .bin).

    Returns:
        At least one, in the order of the file.

    Raises:
        CheckpointError: If the file is missing, is not a checkpoint, or can only be read by running code.
    """
    file = find_file(path)
    content = _read_safetensors(file) if is_safetensors(file) else _read_pickle(file)
    parts = tuple(_state_dicts(content, ()))
    if not parts:
        raise CheckpointError(
            f"{file} contains no named tensors, but {_describe(content)}. Expected a state dict, alone or under a key "
            "such as 'state_dict' or 'model'; save one with torch.save(model.state_dict(), PATH)."
        )
    return parts


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The preferred state dict of a file: an average before the weights it was averaged from."""
    return min(read_parts(path), key=lambda part: preference(part.under)).state


def preference(address: str) -> tuple[int, int]:
    """Preference of the network under a dotted address; lower is preferred.

    Example:
        >>> sorted(["student", "model", "teacher.backbone."], key=preference)
        ['teacher.backbone.', 'model', 'student']
    """
    words = set(re.split(r"[._]", address))
    rank = 0 if words & AVERAGED else 2 if words & COUNTERPARTS else 1
    first = address.partition(".")[0]
    return rank, CONTAINERS.index(first) if first in CONTAINERS else len(CONTAINERS)


def _state_dicts(content: object, where: tuple[str | int, ...]) -> Iterator[Part]:
    if len(where) > DEPTH or not isinstance(content, Mapping | list | tuple):
        return
    entries = content if isinstance(content, Mapping) else dict(enumerate(content))
    if "param_groups" in entries:  # an optimizer's state, under any name
        return
    named = {
        str(key): _as_tensor(value) for key, value in entries.items() if isinstance(value, torch.Tensor | np.ndarray)
    }
    if named and isinstance(content, Mapping):
        tensors = {re.sub(WRAPPED, "", key): value for key, value in named.items() if value is not None}
        yield Part(where, tensors, wrapped=tensors.keys() != named.keys())
    for key, value in entries.items():
        if isinstance(key, int) or (isinstance(key, str) and not NOT_WEIGHTS.fullmatch(key.lower())):
            yield from _state_dicts(value, (*where, key))


def _as_tensor(value: torch.Tensor | np.ndarray) -> torch.Tensor | None:
    """An array as a tensor; None if torch does not support its dtype."""
    if isinstance(value, torch.Tensor):
        return value
    try:
        return torch.from_numpy(value)
    except TypeError:
        return None


def _describe(content: object) -> str:
    if isinstance(content, Mapping):
        keys = ", ".join(repr(str(key)) for key in list(content)[:5])
        return f"the keys {keys}" if keys else "an empty dictionary"
    return f"one object of the type {type(content).__name__}"


def _read_safetensors(file: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file, device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is truncated or damaged: {error}. Download it again.") from error


def _read_pickle(file: Path) -> object:
    _refuse_programs(file)
    try:
        with _allowing_plain_objects(), file.open("rb") as stream:  # with a path, torch would decide by its suffix
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises KeyError, EOFError, RuntimeError, ... on a file that is not a checkpoint
        refused = re.search(r"GLOBAL (\S+)", str(error)) or re.search(
            r"WeightsUnpickler error:.*<class '(\S+)'>", str(error), re.S
        )
        if refused is not None:
            raise CheckpointError(
                f"{file} contains pickled code ({refused[1]}), which would run on loading, so it was not loaded. If "
                "you trust the file, save only its weights, in a separate Python session:\n"
                f"{_saving_weights(file)}\nThen pass checkpoint={_beside(file)}."
            ) from error
        raise CheckpointError(
            describe_other_file(file)
            or (_convert_pickle(file) if is_pickle(file) else "")
            or f"{file} is not a checkpoint, or is truncated. Expected .safetensors, or a file written by torch.save."
        ) from error


def loads_plainly(file: Path) -> bool:
    """Whether torch reads a file with weights_only=True and no allowed classes added."""
    try:
        with file.open("rb") as stream:
            torch.load(stream, map_location="meta", weights_only=True)
    except Exception:  # any error: the file was already read with these classes allowed
        return False
    return True


def _convert_pickle(file: Path) -> str:
    return (
        f"{file} was written by pickle, not by torch.save: it may contain code, which would run on loading, so it was "
        "not loaded. If you trust the file, save only its weights, in a separate Python session:\nimport torch\n"
        f"import pickle\nwith open({str(file)!r}, 'rb') as stream:\n    part = pickle.load(stream)\n"
        f"torch.save(getattr(part, 'state_dict', lambda: part)(), {_beside(file)!r})\n"
        f"Then pass checkpoint={_beside(file)}."
    )


def _refuse_programs(file: Path) -> None:
    """Raise for torch archives that contain a program: reading their weights would require loading it."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names:
        kind, state = "a TorchScript archive", f"torch.jit.load({str(file)!r}, map_location='cpu').state_dict()"
    elif "archive_format" in names:
        kind, state = "a program that torch.export wrote", f"torch.export.load({str(file)!r}).state_dict"
    else:
        return
    raise CheckpointError(
        f"{file} is {kind}: it contains code, which would run on loading, so it was not loaded. If you trust the file, "
        f"save only its weights, in a separate Python session:\nimport torch\n"
        f"torch.save(dict({state}), {_beside(file)!r})\nThen pass checkpoint={_beside(file)}."
    )


def _beside(file: Path) -> str:
    return str(file.with_name(f"{file.stem}-weights.pth"))


def _saving_weights(file: Path) -> str:
    """Python code that saves the weights of a file that needs its classes to load."""
    kept = _container_named_in(file)
    under = "" if kept is None else f"[{kept!r}]"
    return (
        "import torch\n"
        f"part = torch.load({str(file)!r}, map_location='cpu', weights_only=False){under}\n"
        f"torch.save(getattr(part, 'state_dict', lambda: part)(), {_beside(file)!r})"
    )


def _container_named_in(file: Path) -> str | None:
    """The key under which a pickled dict stores its weights."""
    keys = outermost_keys(file)
    return next((container for container in CONTAINERS if container in keys), None)


@contextmanager
def _allowing_plain_objects() -> Iterator[None]:
    """Allow harmless objects that training scripts store with the weights: arguments, paths, numbers."""
    safe_globals = getattr(torch.serialization, "safe_globals", None)
    if safe_globals is None:  # torch 2.4
        yield
        return
    kinds = [type(np.dtype(name)) for name in ("bool", "uint8", "uint32", "uint64", "int32", "int64")]
    kinds += [type(np.dtype(name)) for name in ("float16", "float32", "float64")]
    rebuild = [np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]]  # their modules moved between versions
    paths = [type(pathlib.Path()), type(pathlib.PurePath())]
    plain = [list, dict, set, int, float, types.SimpleNamespace, argparse.Namespace]
    dates = [datetime.datetime, datetime.date, datetime.timedelta]
    torches = [torch.torch_version.TorchVersion]
    with safe_globals([np.dtype, np.ndarray, *rebuild, *kinds, *paths, *plain, *dates, *torches]):
        yield
