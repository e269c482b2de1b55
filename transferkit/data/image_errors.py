"""What can be wrong with an image file, and the error that says so."""

from __future__ import annotations

from transferkit.core.errors import DataError

__all__ = ["FAULTS", "ImageError"]

FAULTS = {
    "missing": "there is no such file",
    "zero_byte": "the file is empty (0 bytes)",
    "unreadable": "not an image that can be read",
    "truncated": "cut off or damaged: the header reads, the pixels do not",
    "oversized": "more pixels than max_pixels allows",
}
"""Fault kind -> what it means."""


class ImageError(DataError):
    """An image cannot be decoded.

    Args:
        kind: A key of `FAULTS`.
        name: The file, for people.
        detail: What is known beyond the kind.
        size: Width and height in pixels, if they are known.
    """

    def __init__(self, kind: str, name: str, detail: str = "", *, size: tuple[int, int] = (0, 0)) -> None:
        super().__init__(f"{name}: {FAULTS[kind]}{f' ({detail})' if detail else ''}.")
        self.kind = kind
        self.detail = detail
        self.size = size
