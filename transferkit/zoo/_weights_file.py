"""A weights file on disk: the state dicts in it, read without running code from it."""

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
"""Where training scripts put a state dict; the earlier ones are preferred. Averages come first: where a run kept an
exponential moving average (DINO's teacher is one), it is the model that was evaluated."""

AVERAGED = frozenset({"ema", "teacher", "averaged", "average", "swa", "best"})
COUNTERPARTS = frozenset({"student", "target", "momentum", "key", "k"})
"""Words of names: the networks that self-supervised training keeps beside the one that is evaluated."""

PASSED_BY = re.compile(r".*optim.*|.*sched.*|.*scaler.*|callbacks|loops|.*rng.*")
"""What a training checkpoint holds beside the weights, tensors of Adam's included."""

WRAPPED = r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
"""What torch.compile, sharding and activation checkpointing put into names, in the middle of them too."""

DEPTH = 4
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar", ".pkl")
INDEX = ".index.json"
"""End of the name of the list of contents of weights that were saved in several files."""


class Part(NamedTuple):
    """A state dict of a file.

    Args:
        where: The keys, and the places in lists, that lead to it; none if the file is the state dict.
        state: Tensors by name, without what wrappers put into the names.
        wrapped: Whether there was anything to take out.
    """

    where: tuple[str | int, ...]
    state: dict[str, torch.Tensor]
    wrapped: bool = False

    @property
    def under(self) -> str:
        """What leads to it, dotted."""
        return ".".join(map(str, self.where))


def find_file(path: str | Path) -> Path:
    """The weights file that a person means: the file itself, or the one in a run's or a model's folder.

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
            f"The folder {str(path)!r} is no finished run and no saved model: it has no {FOLDER_FILES[0]}. "
            f"{_choose_inside(given)}"
        )
    if "://" in str(path):
        raise CheckpointError(f"{str(path)!r} is an address. Download the file, and pass its path as checkpoint=.")
    raise CheckpointError(
        f"There is no file {str(path)!r}. checkpoint= takes the path of one weights file, or of a run's folder."
    )


def _choose_inside(folder: Path) -> str:
    """What to do where a folder has no weights file of the usual name."""
    inside = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if any(file.name.endswith(INDEX) for file in folder.iterdir()):
        return _join_shards(folder, inside)
    return f"Name one of its files: {', '.join(inside[:5])}." if inside else "It holds no weights file."


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
        path: ".safetensors", or anything that `torch.save` wrote (.pth, .pt, .ckpt, .bin).

    Returns:
        At least one, in the order of the file.

    Raises:
        CheckpointError: If the file is missing, is no checkpoint, or needs code to be run.
    """
    file = find_file(path)
    content = _read_safetensors(file) if is_safetensors(file) else _read_pickle(file)
    parts = tuple(_state_dicts(content, ()))
    if not parts:
        raise CheckpointError(
            f"{file} holds no tensors by name, but {_describe(content)}. Expected a state dict, alone or under a key "
            "such as 'state_dict' or 'model'; save one with torch.save(model.state_dict(), PATH)."
        )
    return parts


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The preferred one of the state dicts of a file: an average before the weights it was averaged from."""
    return min(read_parts(path), key=lambda part: preference(part.under)).state


def preference(address: str) -> tuple[int, int]:
    """How much the network under a dotted address is the one to use; lower is preferred.

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
    if "param_groups" in entries:  # an optimizer's, under whatever name
        return
    named = {
        str(key): _as_tensor(value) for key, value in entries.items() if isinstance(value, torch.Tensor | np.ndarray)
    }
    if named and isinstance(content, Mapping):
        tensors = {re.sub(WRAPPED, "", key): value for key, value in named.items() if value is not None}
        yield Part(where, tensors, wrapped=tensors.keys() != named.keys())
    for key, value in entries.items():
        if isinstance(key, int) or (isinstance(key, str) and not PASSED_BY.fullmatch(key.lower())):
            yield from _state_dicts(value, (*where, key))


def _as_tensor(value: torch.Tensor | np.ndarray) -> torch.Tensor | None:
    """An array as a tensor; None if it does not hold numbers that torch knows."""
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
        raise CheckpointError(f"{file} was cut short, or is damaged: {error}. Fetch it again.") from error


def _read_pickle(file: Path) -> object:
    _refuse_programs(file)
    try:
        with _allowing_plain_objects(), file.open("rb") as stream:  # torch goes by the suffix of a path
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises KeyError, EOFError, RuntimeError, ... on a file that is no checkpoint
        refused = re.search(r"GLOBAL (\S+)", str(error)) or re.search(
            r"WeightsUnpickler error:.*<class '(\S+)'>", str(error), re.S
        )
        if refused is not None:
            raise CheckpointError(
                f"{file} holds pickled code ({refused[1]}), which would run on loading, and was not loaded. If you "
                "trust the file, save its weights alone, in a Python session of its own:\n"
                f"{_saving_weights(file)}\nThen pass checkpoint={_beside(file)}."
            ) from error
        raise CheckpointError(
            describe_other_file(file)
            or (_convert_pickle(file) if is_pickle(file) else "")
            or f"{file} is no checkpoint, or was cut short. Expected .safetensors, or what torch.save wrote."
        ) from error


def loads_plainly(file: Path) -> bool:
    """Whether torch reads a file without being told of objects that may be in it."""
    try:
        with file.open("rb") as stream:
            torch.load(stream, map_location="meta", weights_only=True)
    except Exception:  # whatever it is, the file has been read with such objects allowed
        return False
    return True


def _convert_pickle(file: Path) -> str:
    return (
        f"{file} was written by pickle, not by torch.save: it may hold code, which would run on loading, and was not "
        "loaded. If you trust the file, save its weights alone, in a Python session of its own:\nimport torch\n"
        f"import pickle\nwith open({str(file)!r}, 'rb') as stream:\n    part = pickle.load(stream)\n"
        f"torch.save(getattr(part, 'state_dict', lambda: part)(), {_beside(file)!r})\n"
        f"Then pass checkpoint={_beside(file)}."
    )


def _refuse_programs(file: Path) -> None:
    """Archives of torch's that hold a program: their weights come out only by loading all of it."""
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
        f"{file} is {kind}: it holds code, which would run on loading, and was not loaded. If you trust the file, save "
        f"its weights alone, in a Python session of its own:\nimport torch\n"
        f"torch.save(dict({state}), {_beside(file)!r})\nThen pass checkpoint={_beside(file)}."
    )


def _beside(file: Path) -> str:
    return str(file.with_name(f"{file.stem}-weights.pth"))


def _saving_weights(file: Path) -> str:
    """Python that keeps the weights of a file that needs its classes."""
    kept = _container_named_in(file)
    under = "" if kept is None else f"[{kept!r}]"
    return (
        "import torch\n"
        f"part = torch.load({str(file)!r}, map_location='cpu', weights_only=False){under}\n"
        f"torch.save(getattr(part, 'state_dict', lambda: part)(), {_beside(file)!r})"
    )


def _container_named_in(file: Path) -> str | None:
    """The key under which a pickled dictionary keeps its weights."""
    keys = outermost_keys(file)
    return next((container for container in CONTAINERS if container in keys), None)


@contextmanager
def _allowing_plain_objects() -> Iterator[None]:
    """Let through what training scripts file beside the weights and what runs no code: arguments, paths, numbers."""
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
