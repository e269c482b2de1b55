"""Arguments that had another name in an earlier version: whoever writes the old one is told the new one."""

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
    """The sentence for an old name.

    Example:
        >>> explain_renamed("tune")
        'tune= is called unfreeze= now (tune stands for hyperparameter search now). Write unfreeze= instead.'
    """
    return f"{name}= is called {RENAMED[name]}= now ({REASONS[name]}). Write {RENAMED[name]}= instead."


def renamed(function: Callable[P, R]) -> Callable[P, R]:
    """A function that refuses old names of its arguments with a sentence; its signature stays as it is.

    Raises:
        OptionError: By the function, if an argument has an old name.
    """

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in RENAMED.keys() & kwargs.keys():
            raise OptionError(explain_renamed(name))
        return function(*args, **kwargs)

    return checked
