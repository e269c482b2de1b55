"""Packing image files into shards: their bytes as they are, with label, split, group and name beside each."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transferkit.core.errors import DataError, OptionError, RunFolderError
from transferkit.core.paths import check_folder
from transferkit.core.progress import track
from transferkit.data.formats import EXTENSIONS
from transferkit.data.headers import open_header, read_bytes
from transferkit.data.image_errors import ImageError
from transferkit.data.inventory import FileListing
from transferkit.data.shard_index import INDEX, ShardIndex, ShardSamples, join_shards, read_index, write_index

__all__ = ["SHARD_MEGABYTES", "check_shard_folder", "pack_shards"]

SHARD_MEGABYTES = 256.0
"""Size of a shard: large enough to be read at a disk's or network's full speed, small enough to be copied again."""

_DIGITS = 9
"""Of a key: numbers of equal length sort the same as text and as numbers."""


def check_shard_folder(out: Path) -> None:
    """Raise unless shards can be packed into a folder: a new one, or an empty one.

    Raises:
        RunFolderError: It is a file, is not writable, or holds something.
    """
    check_folder(out)
    if not out.is_dir() or not any(out.iterdir()):
        return
    kept = read_index(out / INDEX)
    what = "files of something else" if kept is None else f"{len(kept.shards)} shards with {len(kept):,} images"
    raise RunFolderError(f"{out} holds {what}. Choose another folder with out=DIR, or delete it first.")


def pack_shards(
    listing: FileListing, out: Path, *, megabytes: float = SHARD_MEGABYTES, progress: bool = True
) -> ShardIndex:
    """Copy images into shards in the order of the listing; the folder appears when all is written.

    Args:
        listing: From `list_source`.
        out: A folder that does not exist or is empty.
        megabytes: Size at which a shard is closed, > 0; the last one may be smaller.
        progress: Whether to show a progress bar.

    Returns:
        The index, which lies in the folder as well.

    Raises:
        OptionError: The size is not positive.
        RunFolderError: The folder holds something, or cannot be written.
        DataError: An image cannot be read. Damaged ones can: they are packed as they are, and found when shards are
            opened.

    Example:
        >>> from transferkit.data import list_source
        >>> index = pack_shards(list_source("photos"), Path("shards"), megabytes=64)  # doctest: +SKIP
    """
    if not megabytes > 0:
        raise OptionError(f"size must be > 0 megabytes, got {megabytes!r}.")
    check_shard_folder(out)
    _check_apart(listing, out)
    work = out.parent / f".{out.name}-{uuid.uuid4().hex}.tmp"
    try:
        work.mkdir(parents=True)
        samples = _samples(listing)
        shown = track(samples, "packing images", total=len(listing.files), enabled=progress)
        index = join_shards(list(_write_shards(shown, work, limit=megabytes * 1e6)), listing.classes)
        write_index(index, work / INDEX)
        with suppress(FileNotFoundError):
            out.rmdir()
        work.rename(out)
    except OSError as error:
        if isinstance(error, RunFolderError):
            raise
        raise RunFolderError(
            f"{out} cannot be written: {error.strerror}. Free some space, or choose another folder with out=DIR."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return index


def _check_apart(listing: FileListing, out: Path) -> None:
    """Raise if the shards would lie in the folder that they are made of, where they would look like a class."""
    apart = Path(os.path.abspath(out))
    folders = {Path(os.path.abspath(file)) for file in listing.files if isinstance(file, Path)}
    if listing.kind == "folder" and apart.is_relative_to(os.path.commonpath(folders)):
        raise RunFolderError(
            f"{out} lies inside the folder of images, where it would be a class. Choose another out=DIR."
        )


class _ToPack(NamedTuple):
    """An image as it is read, and what KEY.json says of it."""

    encoded: bytes
    extension: str
    told: dict[str, str]


class _Packed(NamedTuple):
    """An image that was written: its file in the shard, the place of its bytes, and what KEY.json says of it."""

    key: str
    offset: int
    size: int
    told: dict[str, str]


def _samples(listing: FileListing) -> Iterator[_ToPack]:
    groups = listing.groups or [""] * len(listing.files)
    columns = (listing.files, listing.names, listing.class_names, listing.splits, groups)
    for file, name, label, split, group in zip(*columns, strict=True):
        try:
            encoded = read_bytes(file)
        except ImageError as error:
            raise DataError(f"{error} Nothing was packed. Bring it back, or take it off the list.") from error
        told = {"name": name, "label": label, "split": split, "group": group if group[:1] != "\0" else ""}
        yield _ToPack(encoded, _extension(name, encoded), {key: value for key, value in told.items() if value})


def _extension(name: str, encoded: bytes) -> str:
    """The file's extension if it is an image's, else that of its format: other readers of shards go by it."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in EXTENSIONS:
        return suffix[1:]
    with suppress(ImageError):
        image = open_header(encoded, name=name, max_pixels=2**62)
        if f".{(image.format or '').lower()}" in EXTENSIONS:
            return str(image.format).lower()
    return "jpg"


def _write_shards(samples: Iterator[_ToPack], folder: Path, *, limit: float) -> Iterator[ShardSamples]:
    """Write shards until the samples end, each closed when it is as large as the limit."""
    packed, number = 0, 0
    waiting = next(samples, None)
    while waiting is not None:
        rows: list[_Packed] = []
        file = folder / f"shard-{number:06d}.tar"
        with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
            while waiting is not None and (not rows or tar.offset < limit):
                key = f"{packed:0{_DIGITS}d}"
                image = f"{key}.{waiting.extension}"
                offset = _add(tar, image, waiting.encoded)
                rows.append(_Packed(image, offset, len(waiting.encoded), waiting.told))
                _add(tar, f"{key}.json", json.dumps(waiting.told).encode("ascii"))
                packed += 1
                waiting = next(samples, None)
        yield _described(file, rows)
        number += 1


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a file; returns the offset of its first byte."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    offset = tar.offset + tarfile.BLOCKSIZE  # behind its header, which is one block for names as short as these
    tar.addfile(info, io.BytesIO(content))
    tar.members = []  # type: ignore[attr-defined]  # else it keeps every header
    return offset


def _described(file: Path, rows: Sequence[_Packed]) -> ShardSamples:
    def column(name: str) -> list[str]:
        return [row.told.get(name, "") for row in rows]

    return ShardSamples(
        name=file.name,
        size=file.stat().st_size,
        keys=[row.key for row in rows],
        offsets=np.array([row.offset for row in rows], dtype=np.int64),
        sizes=np.array([row.size for row in rows], dtype=np.int64),
        names=column("name"),
        labels=column("label"),
        splits=column("split"),
        groups=column("group"),
    )
