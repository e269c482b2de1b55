"""Counts and lists of names, as the findings of the audit write them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["MOST_NAMES", "counted", "first_names", "quoted"]

MOST_NAMES = 5
"""Names that a finding lists."""


def counted(number: int, noun: str) -> str:
    """A number with its noun in the singular or plural.

    Example:
        >>> counted(1, "class"), counted(2, "class"), counted(0, "copy")
        ('1 class', '2 classes', '0 copies')
    """
    plural = noun[:-1] + "ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def first_names(items: Sequence[str]) -> str:
    """At most `MOST_NAMES` of some names, and the number of the others.

    Example:
        >>> first_names("abcdefg")
        'a, b, c, d, e, and 2 more'
    """
    more = f", and {len(items) - MOST_NAMES} more" if len(items) > MOST_NAMES else ""
    return ", ".join(items[:MOST_NAMES]) + more


def quoted(names: Sequence[str]) -> str:
    """Names in quotation marks.

    Example:
        >>> quoted(["cat", "dog"])
        "'cat', 'dog'"
    """
    return ", ".join(repr(name) for name in names)
