"""Class names: normalised spelling, natural order, and pairs that look like one class spelled twice."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable

__all__ = ["NaturalKey", "alike_names", "are_numbers", "natural_key", "normal_name", "order_names"]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", flags=re.IGNORECASE | re.ASCII)
_SEPARATORS = re.compile(r"(?<=[^\W_])[\s_-]+(?=[^\W_])")
_DIGITS = re.compile(r"([0-9]+)")

NaturalKey = tuple[tuple[tuple[int, int, str], ...], str]


def normal_name(name: str) -> str:
    """The name in composed Unicode (NFC), so that "é" is one class on every file system.

    Example:
        >>> normal_name("cafe\\u0301") == normal_name("caf\\u00e9")
        True
    """
    return unicodedata.normalize("NFC", name)


def natural_key(text: str) -> NaturalKey:
    """Sort key that puts "img2" before "img10"; the same on every file system.

    Example:
        >>> sorted(["b", "a10", "a2"], key=natural_key)
        ['a2', 'a10', 'b']
    """
    parts = _DIGITS.split(text)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in parts), text


def order_names(names: Iterable[str]) -> list[str]:
    """Distinct names in label order: by value if all are numbers, else in natural order (2 before 10).

    Example:
        >>> order_names(["10", "2", "-1"]), order_names(["b", "A", "a10", "a2"])
        (['-1', '2', '10'], ['A', 'a2', 'a10', 'b'])
    """
    distinct = set(names)
    if are_numbers(distinct):
        return sorted(distinct, key=lambda name: (float(name), name))
    return sorted(distinct, key=natural_key)


def are_numbers(names: Collection[str]) -> bool:
    """Whether every name is a finite decimal number.

    Example:
        >>> are_numbers(["1", "-2.5e3"]), are_numbers(["1", "nan"])
        (True, False)
    """
    return all(_NUMBER.fullmatch(name) for name in names)


def alike_names(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Sets of names that differ only in case, spacing or number format, in the order of the names.

    Example:
        >>> alike_names(["1", "Hot dog", "1.0", "hot_dog", "A", "A-"])
        [('1', '1.0'), ('Hot dog', 'hot_dog')]
    """
    alike: dict[str | float, list[str]] = {}
    for name in names:
        alike.setdefault(_likeness(name), []).append(name)
    return [tuple(same) for same in alike.values() if len(same) > 1]


def _likeness(name: str) -> str | float:
    visible = "".join(character for character in name if unicodedata.category(character) != "Cf")  # no zero-width space
    plain = unicodedata.normalize("NFKC", visible).strip()
    return float(plain) if _NUMBER.fullmatch(plain) else _SEPARATORS.sub(" ", plain.casefold())
