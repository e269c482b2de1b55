"""Frozen dataclasses to JSON and back, by their type hints: nothing is ever unpickled."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

__all__ = ["from_json", "to_json"]

T = TypeVar("T")


def to_json(value: Any, *, leave_out: frozenset[str] = frozenset()) -> Any:
    """Plain dicts, lists, strings and numbers of a dataclass tree.

    Args:
        value: A dataclass, or anything inside one.
        leave_out: Field names of the outermost dataclass to leave out.

    Example:
        >>> from transferkit.records import StageSpec
        >>> to_json(StageSpec(name="top", channels=8, stride=None))
        {'name': 'top', 'channels': 8, 'stride': None}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.name not in leave_out]
        return {name: to_json(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def from_json(cls: type[T], plain: Mapping[str, Any]) -> T:
    """The dataclass that `to_json` converted to `plain`; unknown fields are ignored.

    Example:
        >>> from transferkit.records import StageSpec
        >>> from_json(StageSpec, {"name": "top", "channels": 8, "stride": None}).channels
        8
    """
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = _hints(cls)  # type: ignore[arg-type]
    return cls(**{name: _restore(hints[name], value) for name, value in plain.items() if name in known})


def _is_record(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


@functools.cache
def _required(cls: type) -> frozenset[str]:
    """Names of the fields without a default."""
    missing = dataclasses.MISSING
    return frozenset(
        field.name for field in dataclasses.fields(cls) if field.default is missing and field.default_factory is missing
    )


def _restore(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value is None:
        return None
    if origin in (typing.Union, types.UnionType):
        for inner in arguments:
            if isinstance(value, Mapping) and _is_record(inner) and _required(inner) <= value.keys():
                return _restore(inner, value)
        return _restore(next(inner for inner in arguments if inner is not type(None)), value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_json(hint, value)
    if origin is tuple:
        inner = arguments[0]
        return tuple(_restore(inner, part) for part in value)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: _restore(arguments[1], inner) for key, inner in value.items()}
    return value
