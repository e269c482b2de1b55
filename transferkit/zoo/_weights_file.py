"""A weights file on disk: the state dicts in it, read without running code from it."""

from __future__ import annotations

import argparse
import pathlib
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from transferkit.errors import CheckpointError
from transferkit.paths import expand

__all__ = ["CONTAINERS", "WRAPPED", "Part", "find_file", "preference", "read_parts", "read_state"]

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
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


class Part(NamedTuple):
    """A state dict of a file.

    Args:
        where: The keys that lead to it; none if the file is the state dict.
        state: Tensors by name, without what wrappers put into the names.
        wrapped: Whether there was anything to take out.
    """

    where: tuple[str, ...]
    state: dict[str, torch.Tensor]
    wrapped: bool = False


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
        inside = sorted(file.name for file in given.iterdir() if file.suffix in SUFFIXES)
        remedy = f"Name one of its files: {', '.join(inside[:5])}." if inside else "It holds no weights file."
        raise CheckpointError(
            f"The folder {str(path)!r} is no finished run and no saved model: it has no {FOLDER_FILES[0]}. {remedy}"
        )
    raise CheckpointError(
        f"There is no file {str(path)!r}. checkpoint= takes the path of one weights file, or of a run's folder."
    )


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
    content = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    parts = tuple(_state_dicts(content, ()))
    if not parts:
        raise CheckpointError(
            f"{file} holds no tensors by name, but {_describe(content)}. Expected a state dict, alone or under a key "
            "such as 'state_dict' or 'model'; save one with torch.save(model.state_dict(), PATH)."
        )
    return parts


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The preferred one of the state dicts of a file: an average before the weights it was averaged from."""
    return min(read_parts(path), key=lambda part: preference(".".join(part.where))).state


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


def _state_dicts(content: object, where: tuple[str, ...]) -> Iterator[Part]:
    if not isinstance(content, Mapping) or len(where) > DEPTH:
        return
    named = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if named:
        tensors = {re.sub(WRAPPED, "", key): value for key, value in named.items()}
        yield Part(where, tensors, wrapped=tensors.keys() != named.keys())
    for key, value in content.items():
        if isinstance(key, str) and not PASSED_BY.fullmatch(key.lower()):
            yield from _state_dicts(value, (*where, key))


def _describe(content: object) -> str:
    if isinstance(content, Mapping):
        keys = ", ".join(repr(str(key)) for key in list(content)[:5])
        return f"the keys {keys}" if keys else "an empty dictionary"
    return f"a {type(content).__name__}"


def _read_safetensors(file: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file, device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is no safetensors file, or was cut short: {error}.") from error


def _read_pickle(file: Path) -> object:
    _refuse_programs(file)
    try:
        with _allowing_plain_objects():
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises KeyError, EOFError, RuntimeError, ... on a file that is no checkpoint
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is not None:
            raise CheckpointError(
                f"{file} holds pickled code ({refused[1]}), which would run on loading, and was not loaded. If you "
                "trust the file, save its weights alone, in a Python session of its own:\n"
                f"{_saving_weights(file)}\nThen pass checkpoint={_beside(file)}."
            ) from error
        raise CheckpointError(
            f"{file} is no checkpoint, or was cut short. Expected .safetensors, or what torch.save wrote."
        ) from error


def _refuse_programs(file: Path) -> None:
    """Archives of torch's that hold a program: their weights come out only by loading all of it."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names:
        kind, load = "a TorchScript archive", f"torch.jit.load({str(file)!r}, map_location='cpu')"
    elif "archive_format" in names:
        kind, load = "a program that torch.export wrote", f"torch.export.load({str(file)!r})"
    else:
        return
    raise CheckpointError(
        f"{file} is {kind}: it holds code, which would run on loading, and was not loaded. If you trust the file, save "
        f"its weights alone, in a Python session of its own:\nimport torch\n"
        f"torch.save(dict({load}.state_dict()), {_beside(file)!r})\nThen pass checkpoint={_beside(file)}."
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
    """The key under which a pickled dictionary keeps its weights, read off the pickle's text without running it."""
    words: list[str] = []
    outermost = ""
    with suppress(Exception), zipfile.ZipFile(file) as archive:  # what cannot be read is no pickle of torch's
        pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        for opcode, value, _ in pickletools.genops(archive.read(pickled)):
            if opcode.name not in ("PROTO", "FRAME", "BINPUT", "MEMOIZE") and not outermost:
                outermost = opcode.name
            if isinstance(value, str):
                words.append(value)
    if outermost != "EMPTY_DICT":  # a module, or any other object
        return None
    return next((container for container in CONTAINERS if container in words), None)


@contextmanager
def _allowing_plain_objects() -> Iterator[None]:
    """Let through what training scripts file beside the weights and what runs no code: arguments, paths, numbers."""
    safe_globals = getattr(torch.serialization, "safe_globals", None)
    if safe_globals is None:  # torch 2.4
        yield
        return
    rebuild = np.float64(0).__reduce__()[0]  # its module has moved between versions of NumPy
    kinds = [type(np.dtype(name)) for name in ("float64", "float32", "int64")]
    paths = [type(pathlib.Path()), type(pathlib.PurePath())]
    with safe_globals([argparse.Namespace, np.dtype, rebuild, *kinds, *paths, torch.torch_version.TorchVersion]):
        yield
