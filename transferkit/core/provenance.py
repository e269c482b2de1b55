"""What is needed to reproduce a run: the call with its settings, seed, package versions, machine."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from transferkit.core.paths import expand
from transferkit.core.serialization import to_json

__all__ = [
    "WORKING_FOLDER",
    "absolute_path",
    "describe_settings",
    "differing_settings",
    "environment",
    "installed_version",
    "processor",
    "quote_call",
]

ALWAYS_QUOTED = ("seed",)
"""Arguments that a quoted call includes even where they have their default."""

NOT_QUOTED = ("command",)

NO_SETTINGS = frozenset({"command", "progress", "out", "overwrite", "resume", "evaluate", "cache", "cache_limit"})
"""Arguments that affect neither the model nor the record about it."""

PATH_SETTINGS = frozenset({"data", "root", "labels", "checkpoint", "source", "attributes", "unlabelled"})
"""Arguments that may be paths, and are then compared as absolute paths."""

PACKAGES = ("transferkit", "torch", "torchvision", "timm", "pytorch-lightning", "scikit-learn", "numpy", "pillow")


WORKING_FOLDER = "working folder"
"""Key in a run's environment: the folder that relative paths in its command are relative to."""


def processor() -> str:
    """The processor's name with its family, which names like "AMD EPYC" leave open; or at least its kind."""
    known = dict[str, str]()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                known.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    if "model name" in known:
        family = f", family {known['cpu family']}" if "cpu family" in known else ""
        return f"{known['model name']}{family}"
    return platform.processor() or platform.machine()


def installed_version(package: str) -> str:
    """Of a distribution, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def environment(*, seed: int, device: str) -> dict[str, str | int]:
    """Package versions, machine and seed of this run, as a flat dict."""
    return {
        **{package: installed_version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "device": device,
        "seed": seed,
    }


def quote_call(function: Callable[..., Any], arguments: Mapping[str, Any], *, home: str = "transferkit") -> str:
    """The Python call that reproduces a run: all arguments that differ from their default, and the seed.

    Objects that have no literal (a module, a dataset) are shown as placeholders in angle brackets, with a comment; a
    second object of the same type is numbered.

    Args:
        function: One of transferkit's public functions.
        arguments: Name -> value, for every argument of it.
        home: The module that people import it from.

    Example:
        >>> def rank(models, data, *, image_size=None, seed=0): ...
        >>> quote_call(rank, {"models": ["a", nn], "data": Path("d"), "image_size": 32, "seed": 0})  # doctest: +SKIP
        "transferkit.rank(['a', <Linear>], 'd', image_size=32, seed=0)  # replace <Linear> with your own object"
    """
    parts: list[str] = []
    stand_ins: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        value = arguments[name]
        if name in NOT_QUOTED or (name not in ALWAYS_QUOTED and _is_default(value, parameter.default)):
            continue
        text = _expression(value, stand_ins)
        parts.append(f"{name}={text}" if parameter.kind is parameter.KEYWORD_ONLY else text)
    call = f"{home}.{function.__name__}({', '.join(parts)})"
    if not stand_ins:
        return call
    yours = "your own objects" if len(stand_ins) > 1 else "your own object"
    return f"{call}  # replace {' and '.join(stand_ins)} with {yours}"


def _is_default(value: Any, default: Any) -> bool:
    if value is default or (isinstance(value, Mapping) and not value and default is None):
        return True
    return type(value) in (str, int, float, bool) and type(value) is type(default) and bool(value == default)


def _expression(value: Any, stand_ins: dict[str, Any]) -> str:
    """A Python expression for a value; objects without one are added to the stand-ins."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Path):
        return repr(str(value))
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    if value is None or isinstance(value, (str, int, float, bool)):
        return repr(value)
    if _is_device(value):
        return repr(str(value))
    if isinstance(value, Mapping):
        pairs = [f"{_expression(key, stand_ins)}: {_expression(inner, stand_ins)}" for key, inner in value.items()]
        return f"{{{', '.join(pairs)}}}"
    if type(value) in (list, tuple):
        inner = [_expression(part, stand_ins) for part in value]
        if isinstance(value, list):
            return f"[{', '.join(inner)}]"
        return f"({inner[0]},)" if len(inner) == 1 else f"({', '.join(inner)})"
    if dataclasses.is_dataclass(value) and type(value).__module__.startswith("transferkit.records."):
        return f"transferkit.{type(value).__name__}({', '.join(_changed_fields(value, stand_ins))})"
    return _stand_in(value, stand_ins)


def _stand_in(value: Any, stand_ins: dict[str, Any]) -> str:
    """The placeholder in angle brackets of an object: the same one for the same object."""
    kind = type(value).__name__
    for number in itertools.count(1):
        name = f"<{kind}>" if number == 1 else f"<{kind} {number}>"
        if stand_ins.setdefault(name, value) is value:
            return name
    raise AssertionError("itertools.count never ends")


def _is_device(value: Any) -> bool:
    """Whether it is a torch.device, which its string represents; torch may not be loaded yet."""
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].device)


def _changed_fields(record: Any, stand_ins: dict[str, Any]) -> Iterator[str]:
    """name=value for the fields of a dataclass that differ from their default."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if value != default:
            yield f"{field.name}={_expression(value, stand_ins)}"


def describe_settings(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> JSON value of the arguments that identify a run: two runs that agree in them are the same run.

    Args:
        function: The function that they are arguments of.
        arguments: Name -> value, for every argument of it.
    """
    names = [name for name in inspect.signature(function).parameters if name not in NO_SETTINGS]
    return {name: _plain(arguments[name], is_path=name in PATH_SETTINGS) for name in names}


def _plain(value: Any, *, is_path: bool = False) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (str, Path)):
        return absolute_path(value) if is_path else str(value)
    if value is None or isinstance(value, (int, float, bool)):
        return value
    if _is_device(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()} or None
    if type(value) in (list, tuple):
        return [_plain(inner) for inner in value]
    if dataclasses.is_dataclass(value) and type(value).__module__.startswith("transferkit.records."):
        return _plain(to_json(value))
    return {STAND_IN: type(value).__name__}


def absolute_path(value: str | Path) -> str:
    """A path that exists, made absolute; any other text unchanged."""
    found = expand(value)
    return os.path.abspath(found) if found.exists() else str(value)


STAND_IN = "object"
"""Key under which settings store the type of an object that JSON cannot hold."""


def differing_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the settings in which two runs differ, among those recorded for both.

    Example:
        >>> differing_settings({"seed": 0, "stage": None}, {"seed": 1, "stage": None, "added later": 3})
        ['seed']
    """
    return [name for name in one if name in other and one[name] != other[name]]
