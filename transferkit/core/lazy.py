"""Lazy imports: a package's names are loaded when first used, so importing the package is fast."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["attach"]


def attach(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package that loads some of its names lazily (PEP 562).

    The package imports the same names under `if TYPE_CHECKING:`, and assigns these functions under `if not
    TYPE_CHECKING:`, so that type checkers know every name and no other. A name must not be that of a submodule:
    importing the submodule would hide it.

    Args:
        package: Its `__name__`.
        homes: Name -> the module that defines it, relative to the package ("module", "norm.swap").

    Returns:
        A function from a name to its value, which it stores in the package, and one that lists `__all__`.

    Raises:
        AttributeError: By the first function, if there is no such name.

    Example:
        >>> load, _ = attach("transferkit", {"unknown_name": "core.errors"})
        >>> load("unknown_name").__module__
        'transferkit.core.errors'
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted(sys.modules[package].__all__)

    return __getattr__, __dir__
