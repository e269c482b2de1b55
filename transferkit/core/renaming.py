"""Renamed arguments: passing the old name is an error that gives the new one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from transferkit.core.errors import OptionError

__all__ = ["RENAMED", "explain_renamed", "renamed"]

P = ParamSpec("P")
R = TypeVar("R")

RENAMED = {"tune": "unfreeze"}
"""Old name of an argument -> its name now."""

REASONS = {"tune": "tune stands for hyperparameter search now"}


def explain_renamed(name: str) -> str:
    """The error message for an old name.

    Example:
        >>> explain_renamed("tune")
        'tune= is called unfreeze= now (tune stands for hyperparameter search now). Write unfreeze= instead.'
    """
    return f"{name}= is called {RENAMED[name]}= now ({REASONS[name]}). Write {RENAMED[name]}= instead."


def renamed(function: Callable[P, R]) -> Callable[P, R]:
    """The function with old argument names rejected by an error that gives the new name; its signature is unchanged.

    Raises:
        OptionError: By the returned function, if an argument has an old name.
    """

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in RENAMED.keys() & kwargs.keys():
            raise OptionError(explain_renamed(name))
        return function(*args, **kwargs)

    return checked
