"""A named collection with helpful errors, in which strategies, measures and normalisation kinds are registered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from transferkit.core.errors import OptionError, unknown_name

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Name -> object: filled by a decorator, read like a dict.

    Args:
        kind: What the entries are, in the singular; it appears in the errors.

    Example:
        >>> greetings = Registry("greeting")
        >>> @greetings.register("hello")
        ... def hello():
        ...     return "hello"
        >>> greetings["hello"]()
        'hello'
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers an object under `name`; each name can be registered once."""
        if name in self._entries:
            raise OptionError(f"The {self._kind} {name!r} is registered already.")

        def add(entry: T) -> T:
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise OptionError(unknown_name(self._kind, name, self._entries))
        return self._entries[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The entry, or `default`: `Mapping.get` would raise the error above, as it expects KeyError."""
        return self._entries.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
