"""Pictures embedded in the page: JPEG bytes as data URIs."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from transferkit.records import Picture

__all__ = ["Tile", "make_tile"]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A picture, ready for an `<img>`."""

    source: str
    item: str


def make_tile(picture: Picture) -> Tile:
    """A picture as a data URI."""
    return Tile(source="data:image/jpeg;base64," + base64.b64encode(picture.jpeg).decode("ascii"), item=picture.item)
