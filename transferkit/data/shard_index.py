"""The index of a set of shards: where every image is, its label, split and group; and the file that keeps it.

    SHARDS/shard-000000.tar      KEY.jpg and KEY.json {"label", "split", "group", "name"}, KEY a number
    SHARDS/index.json            this index: with it, opening reads no shard

`scanning` makes the index of shards that come without one.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError

__all__ = ["INDEX", "ShardIndex", "ShardSamples", "join_shards", "read_index", "write_index"]

INDEX = "index.json"

_KIND = "transferkit-shards"
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardSamples:
    """The images of one shard, in the order in which they lie there.

    Args:
        name: The shard's, relative to the folder of the index, "/" between folders.
        size: Of the shard, in bytes.
        keys: n names of image files in the shard.
        offsets, sizes: (n,) int64: of each image's first byte, and its number of bytes.
        names: n names for people: what the images were called before they were packed.
        labels: n class names; "" if there is none.
        splits: n of "train", "val", "test", or "" if unknown.
        groups: n names of what belongs together; "" if unknown.
    """

    name: str
    size: int
    keys: Sequence[str]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    names: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str]
    groups: Sequence[str]

    def __post_init__(self) -> None:
        parts = (self.keys, self.offsets, self.sizes, self.names, self.labels, self.splits, self.groups)
        if len({len(part) for part in parts}) != 1:
            raise ValueError(f"Columns of shard {self.name} differ in length: {[len(part) for part in parts]}.")
        inside = (self.offsets >= 0) & (self.sizes >= 0) & (self.offsets + self.sizes <= self.size)
        if not inside.all():
            key = self.keys[int(np.flatnonzero(~inside)[0])]
            raise ValueError(f"Image {key} of shard {self.name} lies outside its {self.size} bytes.")

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """All images of a set of shards.

    Args:
        shards: In order: images are numbered through all of them.
        classes: Names of all classes, those without an image included.
    """

    shards: tuple[ShardSamples, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return sum(map(len, self.shards))


def join_shards(shards: Sequence[ShardSamples], classes: Sequence[str] = ()) -> ShardIndex:
    """The index of these shards, with the classes that their labels name besides those given."""
    found = dict.fromkeys([*classes, *(label for shard in shards for label in shard.labels if label)])
    return ShardIndex(shards=tuple(shards), classes=tuple(found))


def write_index(index: ShardIndex, file: Path) -> None:
    """Write the index as JSON, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    plain = {
        "kind": _KIND,
        "schema": _SCHEMA,
        "classes": list(index.classes),
        "shards": [_to_plain(shard, index.classes) for shard in index.shards],
    }
    partial = file.with_name(f".{file.name}-{uuid.uuid4().hex}.tmp")
    try:
        partial.write_text(json.dumps(plain, separators=(",", ":")), encoding="ascii")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _to_plain(shard: ShardSamples, classes: Sequence[str]) -> dict[str, Any]:
    number = {name: at for at, name in enumerate(classes)}
    return {
        "name": shard.name,
        "bytes": shard.size,
        "keys": list(shard.keys),
        "offsets": shard.offsets.tolist(),
        "sizes": shard.sizes.tolist(),
        "names": list(shard.names),
        "labels": [number.get(label, -1) for label in shard.labels],
        "splits": list(shard.splits),
        "groups": list(shard.groups) if any(shard.groups) else None,
    }


def read_index(file: Path) -> ShardIndex | None:
    """The index in a file; None if the file is missing or something else.

    Raises:
        DataError: It is an index that is damaged or of a newer transferkit.
    """
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(plain, dict) or plain.get("kind") != _KIND:
        return None
    if plain.get("schema") != _SCHEMA:
        raise DataError(
            f"{file} is of another version of transferkit: its schema is {plain.get('schema')!r}, this one reads "
            f"{_SCHEMA}. Delete it: the shards are then read without it."
        )
    try:
        classes = tuple(str(name) for name in plain["classes"])
        return ShardIndex(shards=tuple(_from_plain(shard, classes) for shard in plain["shards"]), classes=classes)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{file} is damaged ({error}). Delete it: the shards are then read without it.") from error


def _from_plain(plain: Mapping[str, Any], classes: Sequence[str]) -> ShardSamples:
    return ShardSamples(
        name=str(plain["name"]),
        size=int(plain["bytes"]),
        keys=plain["keys"],
        offsets=np.array(plain["offsets"], dtype=np.int64),
        sizes=np.array(plain["sizes"], dtype=np.int64),
        names=plain["names"],
        labels=["" if label < 0 else classes[label] for label in plain["labels"]],
        splits=plain["splits"],
        groups=plain["groups"] or [""] * len(plain["keys"]),
    )
