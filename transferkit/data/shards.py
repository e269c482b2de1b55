"""Shards as a source: which paths are shards, and their images as a listing like that of a folder."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np

from transferkit.core.cache_folder import default_folder
from transferkit.core.errors import DataError, list_problems
from transferkit.core.paths import expand
from transferkit.data.class_names import NaturalKey, natural_key, order_names
from transferkit.data.formats import is_system_name
from transferkit.data.inspection import in_threads
from transferkit.data.inventory import FileListing, split_name
from transferkit.data.members import Members
from transferkit.data.phrases import first_names
from transferkit.data.scanning import AGAIN, scan_shard
from transferkit.data.shard_index import INDEX, ShardIndex, join_shards, read_index, write_index

__all__ = ["find_shards", "list_shards", "shard_members"]

EXTENSION = ".tar"

SCANS = "shards"
"""Folder in the cache for the indexes of shards that came without one."""

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def find_shards(data: str | Path) -> tuple[Path, ...]:
    """The shards that a path stands for, in natural order; none if it stands for something else.

    Args:
        data: A folder of tar files, maybe in folders train, val and test; a tar file; or a pattern of them, such as
            "train-{000000..000099}.tar" or "*-train-*.tar".

    Raises:
        DataError: It is a pattern that no file matches, or one in a range of numbers is missing.
    """
    path = expand(data)
    if path.is_dir():
        return _in_folder(path)
    if path.suffix.lower() != EXTENSION:
        return ()
    if path.exists():
        return (path,)
    return _matching(str(path)) if _RANGE.search(str(path)) or glob.has_magic(str(path)) else ()


def _in_folder(folder: Path) -> tuple[Path, ...]:
    """Shards of a folder; none if there are folders besides, which may be classes."""
    inside = [path for path in folder.iterdir() if not is_system_name(path.name)]
    folders = [path for path in inside if path.is_dir()]
    found = _tars(inside)
    if not folders:
        return found
    below = [_tars(path.iterdir()) for path in folders if split_name(path.name)]
    return tuple(chain(*below)) if not found and len(below) == len(folders) and all(below) else ()


def _tars(paths: Iterable[Path]) -> tuple[Path, ...]:
    found = [path for path in paths if path.suffix.lower() == EXTENSION and not is_system_name(path.name)]
    return tuple(sorted((path for path in found if path.is_file()), key=_by_name))


def _by_name(path: Path) -> NaturalKey:
    return natural_key(path.as_posix())


def _matching(pattern: str) -> tuple[Path, ...]:
    spelled = _spelled_out(pattern)
    found = [glob.glob(one) if glob.has_magic(one) else [one] * os.path.exists(one) for one in spelled]
    missing = [one for one, matches in zip(spelled, found, strict=True) if not matches]
    if missing and len(spelled) > 1:
        raise DataError(
            f"{len(missing)} of the {len(spelled)} shards in {pattern!r} do not exist: "
            f"{first_names([Path(one).name for one in missing])}. Write "
            "the range of those that do, or bring the others."
        )
    if missing:
        raise DataError(f"No shard matches the pattern {pattern!r}. Patterns are taken from {str(Path.cwd())!r}.")
    return tuple(sorted({Path(one) for one in chain(*found)}, key=_by_name))


def _spelled_out(pattern: str) -> list[str]:
    """Every name that a pattern with ranges of numbers stands for.

    Example:
        >>> _spelled_out("a-{08..10}.tar")
        ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    names = [
        f"{pattern[: found.start()]}{number:0{len(first)}d}{pattern[found.end() :]}"
        for number in range(int(first), int(last) + 1)
    ]
    return [spelled for name in names for spelled in _spelled_out(name)]


def list_shards(data: str | Path, shards: Sequence[Path], *, cache: Path | None = None) -> FileListing:
    """The images of shards, with class, split and group.

    Args:
        data: What the user named, for display.
        shards: From `find_shards`.
        cache: Folder where the index of shards without one is kept; None uses `default_folder()`.

    Raises:
        DataError: A shard cannot be read or is not the one of its index, there is no image, or one has no label.
    """
    index = _index_of(shards, cache)
    if not len(index):
        raise DataError(
            f"{_named(data)} hold no images. Expected KEY.jpg, or .png, ..., and KEY.cls or KEY.json with its class."
        )
    _check_labels(data, index)
    groups = _joined(index, "groups")
    return FileListing(
        kind="shards",
        origin=f"shards {data}",
        files=_members(shards, index),
        names=_joined(index, "names"),
        class_names=_joined(index, "labels"),
        classes=order_names(index.classes),
        splits=_joined(index, "splits"),
        # An image without a group belongs to none but its own.
        groups=[group or f"\0{row}" for row, group in enumerate(groups)] if any(groups) else None,
    )


def shard_members(shards: Sequence[Path], *, cache: Path | None = None) -> Members:
    """The images of shards, whether they have labels or not; `cache` as for `list_shards`."""
    return _members(shards, _index_of(shards, cache))


def _named(data: str | Path) -> str:
    return f"The shards {str(data)!r}"


def _joined(index: ShardIndex, column: str) -> list[str]:
    return [value for shard in index.shards for value in getattr(shard, column)]


def _members(shards: Sequence[Path], index: ShardIndex) -> Members:
    counts = [len(shard) for shard in index.shards]
    offsets, sizes = (
        np.concatenate([getattr(shard, column) for shard in index.shards]) for column in ("offsets", "sizes")
    )
    within = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return Members(shards, within, _joined(index, "keys"), offsets, sizes)


def _check_labels(data: str | Path, index: ShardIndex) -> None:
    lacking = [f"{shard.name}/{key}" for shard in index.shards
               for key, label in zip(shard.keys, shard.labels, strict=True) if not label.strip()]  # fmt: skip
    if lacking:
        raise DataError(
            f"{_named(data)} have {len(lacking)} of {len(index)} images without a label: {first_names(lacking)}. Each "
            'needs its class in KEY.cls, or in KEY.json as {"label": ...}, beside the image. If the tar file holds a '
            "folder for each class, unpack it, and pass the folder, or pack that with transferkit shard data.root=DIR "
            "out=SHARDS."
        )


def _index_of(shards: Sequence[Path], cache: Path | None) -> ShardIndex:
    """The index beside the shards, or one that is made of their headers now or was before."""
    folder = Path(os.path.commonpath([shard.parent for shard in shards]))
    kept = read_index(folder / INDEX)
    if kept is None:
        return _scanned(shards, folder, default_folder() if cache is None else cache)
    known = {shard.name: shard for shard in kept.shards}
    wanted = {shard.relative_to(folder).as_posix(): shard for shard in shards}
    remedy = f"Bring it as it was packed; or delete {folder / INDEX} if it is right as it is."
    problems = [f"{name} is not in the index" for name in wanted if name not in known]
    if set(shards) == set(_in_folder(folder)):
        problems += [f"{name} is missing" for name in known if name not in wanted]
    for name, file in wanted.items():
        if name in known and (size := file.stat().st_size) != known[name].size:
            problems.append(f"{name} has {size:,} bytes, expected {known[name].size:,}")
    if problems:
        raise DataError(list_problems(f"Shards in {folder} are not those of their index. {remedy}", problems))
    return ShardIndex(shards=tuple(known[name] for name in wanted), classes=kept.classes)


def _scanned(shards: Sequence[Path], folder: Path, cache: Path) -> ShardIndex:
    """The index of shards that have none, from the cache if they have not changed."""
    signs = [[os.path.abspath(shard), *_signature(shard)] for shard in shards]
    digest = hashlib.blake2b(json.dumps(signs).encode("utf-8"), digest_size=16).hexdigest()
    file = cache / SCANS / f"{digest}.json"
    with suppress(DataError):  # a damaged one is made again
        if (kept := read_index(file)) is not None:
            return kept
    names = [shard.relative_to(folder).as_posix() for shard in shards]
    index = join_shards(list(in_threads(lambda pair: scan_shard(*pair), list(zip(shards, names, strict=True)))))
    with suppress(OSError):  # the next run reads the headers again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_index(index, file)
    return index


def _signature(shard: Path) -> tuple[int, int]:
    try:
        found = shard.stat()
    except OSError as error:
        raise DataError(f"Shard {shard} cannot be read: {error.strerror}. {AGAIN}") from error
    return found.st_size, found.st_mtime_ns
