"""What an option is: a field with default, sentence and check; signatures, `--help` and docs are made of these."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, field, fields
from functools import partial
from numbers import Integral, Real
from typing import Any, TypeVar

from transferkit.core.errors import OptionError, problem_of

__all__ = ["check_values", "describe_options", "documented", "documents", "option", "value_problem"]

WIDTH = 112
"""Of docstrings, in characters."""

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def option(default: Any, help: str, *, check: Callable[[Any], object] | None = None) -> Any:
    """A field of an options class.

    A value that may be of several kinds is annotated `Any` and has a check: a union of kinds takes only values of
    exactly one of them from the command line, so that `float | str` refuses 10.

    Args:
        default: Its value unless given.
        help: The sentence that docstrings, --help and docs show.
        check: Raises if a value cannot be; None: its type alone is checked.
    """
    return field(default=default, metadata={"help": help, "check": check})


def describe_options(kind: type, *, names: Iterable[str] | None = None) -> list[tuple[str, str]]:
    """(name, sentence) of each option.

    Args:
        kind: An options class.
        names: Those that are wanted, in that order; None: all, in the order of the class.
    """
    sentences = {one.name: str(one.metadata["help"]) for one in fields(kind)}
    return [(name, sentences[name]) for name in (sentences if names is None else names) if name in sentences]


def documented(kind: type[T]) -> type[T]:
    """An options class with a line for each option in its docstring."""
    kind.__doc__ = f"{inspect.cleandoc(kind.__doc__ or '')}\n\nArgs:\n{_as_lines(describe_options(kind))}\n"
    return kind


def documents(kind: type) -> Callable[[F], F]:
    """A decorator: where a function's docstring says `{options}`, there is a line for each option that it takes."""

    def filled(function: F) -> F:
        names = inspect.signature(function).parameters
        lines = _as_lines(describe_options(kind, names=names))
        function.__doc__ = inspect.cleandoc(function.__doc__ or "").replace("    {options}", lines)
        return function

    return filled


def _as_lines(described: Iterable[tuple[str, str]]) -> str:
    wrap = textwrap.TextWrapper(width=WIDTH, initial_indent="    ", subsequent_indent="        ")
    return "\n".join(wrap.fill(f"{name}: {text}") for name, text in described)


def value_problem(one: Field[Any], value: object, *, name: str = "") -> str | None:
    """What is wrong with a value of an option; None if nothing is.

    Args:
        one: The option's field. Of its type, only numbers, flags and single names are checked.
        value: As it was given; NumPy's numbers are numbers.
        name: What messages call it; "" for the field's own name.

    Example:
        >>> from transferkit.options import PassOptions
        >>> value_problem(next(one for one in fields(PassOptions) if one.name == "seed"), "x")
        "seed must be a whole number, got 'x'."
    """
    if check := one.metadata.get("check"):
        error = problem_of(partial(check, value))
        return None if error is None else str(error)
    name, parts = name or one.name, str(one.type).split(" | ")
    if value is None and "None" in parts:
        return None
    kind = " | ".join(part for part in parts if part != "None")
    is_flag = type(value).__name__ in ("bool", "bool_")  # NumPy's too, which is not imported for it
    if kind == "bool" and not is_flag:
        return f"{name} must be true{', false or left out' if 'None' in parts else ' or false'}, got {value!r}."
    if kind == "int" and (is_flag or not isinstance(value, Integral)):
        return f"{name} must be a whole number, got {value!r}."
    if kind == "float" and (is_flag or not isinstance(value, Real)):
        return f"{name} must be a number, got {value!r}."
    if kind == "str" and (value is None or isinstance(value, (list, tuple, Mapping))):
        return f"{name} must be a single name, got {value!r}."
    return None


def check_values(options: Any) -> None:
    """Raise all that `value_problem` finds, at once."""
    found = (value_problem(one, getattr(options, one.name)) for one in fields(options))
    if problems := [problem for problem in found if problem is not None]:
        raise OptionError(" ".join(problems))
