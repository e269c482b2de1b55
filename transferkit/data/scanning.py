"""The images of a shard that has no index, found in its headers: webdataset's convention, read with `tarfile`.

A sample is what shares a name up to the first dot of its last part, and lies together: KEY.jpg and KEY.cls or KEY.json.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from transferkit.core.errors import DataError
from transferkit.core.file_kinds import kind_of, read_head
from transferkit.data.class_names import normal_name
from transferkit.data.formats import EXTENSIONS
from transferkit.data.inventory import UNSPLIT, split_name
from transferkit.data.shard_index import ShardSamples

__all__ = ["scan_shard", "split_in_name"]

_BLOCK = 512
"""Bytes that a tar file is made of."""

_LABEL_KEYS = ("label", "class", "cls")
"""Where KEY.json may hold the class, the likeliest first."""

_WORD = re.compile(r"[^\W\d_]+")

AGAIN = "Copy or download it again."


@dataclass
class _Sample:
    """What shares a key."""

    key: str
    image: tarfile.TarInfo | None = None
    label: str = ""
    told: dict[str, Any] = field(default_factory=dict)


def split_in_name(name: str) -> str:
    """The split that a word in a shard's name means; "" if none or several do.

    Example:
        >>> split_in_name("imagenet-train-{000000}.tar"), split_in_name("val/0001.tar"), split_in_name("a.tar")
        ('train', 'val', '')
    """
    found = {split for word in _WORD.findall(name) if (split := split_name(word)) is not None}
    return found.pop() if len(found) == 1 else UNSPLIT


def scan_shard(file: Path, name: str) -> ShardSamples:
    """The images of a shard.

    Args:
        file: The tar file.
        name: What the index calls it; a word in it that means a split counts for images that name none.

    Raises:
        DataError: It is no tar file, compressed, cut off, or a sample in it cannot be understood.
    """
    size = _size(file)
    split, columns = split_in_name(name), _Columns()
    try:
        with tarfile.open(file, "r:") as tar:
            for sample in _samples(tar, file):
                if sample.image is not None:
                    columns.add(sample, sample.image, default_split=split, shard=name)
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise DataError(_unreadable(file, error)) from error
    except OSError as error:
        raise DataError(f"Shard {file} cannot be read: {error.strerror or error}.") from error
    _check_end(file, end)
    return ShardSamples(
        name=name,
        size=size,
        offsets=np.array(columns.offsets, dtype=np.int64),
        sizes=np.array(columns.sizes, dtype=np.int64),
        keys=columns.keys,
        names=columns.names,
        labels=columns.labels,
        splits=columns.splits,
        groups=columns.groups,
    )


@dataclass
class _Columns:
    keys: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    def add(self, sample: _Sample, image: tarfile.TarInfo, *, default_split: str, shard: str) -> None:
        told = sample.told
        self.keys.append(image.name)
        self.offsets.append(image.offset_data)
        self.sizes.append(image.size)
        self.names.append(str(told.get("name") or f"{shard}/{image.name}"))
        self.labels.append(normal_name(_told_label(told) or sample.label))
        self.splits.append(split_name(str(told.get("split") or "")) or default_split)
        self.groups.append("" if told.get("group") is None else str(told["group"]))


def _size(file: Path) -> int:
    """Bytes of a shard that begins like a tar file."""
    try:
        size = file.stat().st_size
        head = read_head(file)
    except OSError as error:
        raise DataError(f"Shard {file} cannot be read: {error.strerror}.") from error
    if not size:
        raise DataError(f"Shard {file} is empty (0 bytes). {AGAIN}")
    if (kind := kind_of(head)) is not None:
        raise DataError(f"Shard {file} is {kind.name}. {kind.remedy}; images are read at their place in the tar file.")
    return size


def _unreadable(file: Path, error: Exception) -> str:
    return f"Shard {file} is not a whole tar file: {error}. {AGAIN}"


def _check_end(file: Path, end: int) -> None:
    """Raise unless the mark of a tar file's end follows: a file cut off between two images ends like a shorter one."""
    with file.open("rb") as stream:
        stream.seek(end)
        if stream.read(_BLOCK) != bytes(_BLOCK):
            raise DataError(f"Shard {file} ends without the mark of a tar file's end, so it was cut off. {AGAIN}")


def _samples(tar: tarfile.TarFile, file: Path) -> Iterator[_Sample]:
    """Samples in order; files that belong to none are skipped."""
    seen: set[str] = set()
    sample: _Sample | None = None
    for info in tar:
        tar.members = []  # type: ignore[attr-defined]  # else it keeps every header
        found = _key_and_extension(info.name) if info.isfile() else None
        if found is None:
            continue
        key, extension = found
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            if key in seen:
                raise DataError(
                    f"Shard {file} has two samples with the key {key!r}. Files of a sample must lie together under a "
                    "key of their own: pack the images again, with a number as the key."
                )
            seen.add(key)
            sample = _Sample(key)
        _read_into(sample, info, extension, tar, file)
    if sample is not None:
        yield sample


def _key_and_extension(name: str) -> tuple[str, str] | None:
    """Key and lower-case extension, cut at the first dot of the last part, as webdataset does; None for hidden files.

    Example:
        >>> _key_and_extension("./a.b/cat 1.Seg.PNG"), _key_and_extension("a/.hidden")
        (('a.b/cat 1', 'seg.png'), None)
    """
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, dot, extension = last.partition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem and dot and extension else None


def _read_into(sample: _Sample, info: tarfile.TarInfo, extension: str, tar: tarfile.TarFile, file: Path) -> None:
    """Add a file to the sample that it belongs to."""
    if f".{extension.rpartition('.')[2]}" in EXTENSIONS:
        if sample.image is not None:
            raise DataError(
                f"Sample {sample.key!r} of shard {file} has two images, {sample.image.name} and {info.name}; expected "
                "one. Pack the one to classify alone, or give each a key of its own."
            )
        sample.image = info
    elif extension in ("cls", "json"):
        stream = tar.extractfile(info)
        assert stream is not None  # of a file
        content = _text(stream, info.name, file)
        if extension == "cls":
            sample.label = content.strip()
        else:
            sample.told = _parsed(content, info.name, file)


def _text(stream: IO[bytes], name: str, file: Path) -> str:
    try:
        return stream.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} of shard {file} is not text in UTF-8. Pack it again as UTF-8.") from error


def _parsed(content: str, name: str, file: Path) -> dict[str, Any]:
    try:
        told = json.loads(content)
    except ValueError as error:
        raise DataError(f"{name} of shard {file} is not JSON: {error}. Pack it again.") from error
    return told if isinstance(told, dict) else {"label": told}


def _told_label(told: Mapping[str, Any]) -> str:
    found = next((told[key] for key in _LABEL_KEYS if told.get(key) is not None), "")
    return "" if isinstance(found, (dict, list)) else str(found)
