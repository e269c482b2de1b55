"""A thumbnail."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LARGE", "Picture"]

LARGE = 192
"""Long side in pixels of a picture that a person judges: 150 on a page, sharp on most screens."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A thumbnail for the report.

    Args:
        jpeg: The encoded picture.
        item: The file or row it shows.
    """

    jpeg: bytes
    item: str
