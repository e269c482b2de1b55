"""The feature bank: pooled stage outputs on disk, one row per image content, shared by all runs.

    FOLDER/v1/<shelf>/meta.json                  the identity of the rows: weights, preprocessing, pooling, columns
    FOLDER/v1/<shelf>/<segment>.ids              (n,) S32: content digest per row; its presence commits the segment
    FOLDER/v1/<shelf>/<segment>.rows             (n, D) float32, or another of `DTYPES`
    FOLDER/v1/<shelf>/<process>.lease            a run that uses the shelf, which keeps it from being dropped

A shelf is named by the digest of its identity, which is everything but the image; a row by the digest of the image.
Shelves of one name that differ in their imprint (the network's output for fixed images) are numbered. Segments are
written under another name and renamed when complete, rows before ids, so that readers and other writers never see half
of one and a killed run leaves only a file that the next run removes.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transferkit.core.cache_folder import default_folder
from transferkit.core.errors import CacheError
from transferkit.core.paths import expand
from transferkit.features.identity import CLOSE, Imprint
from transferkit.features.leases import Lease, is_leased
from transferkit.features.shelf import Shelf, folder_size
from transferkit.features.tables import columns_of, explaining_os_errors

__all__ = [
    "DEFAULT_LIMIT",
    "FeatureBank",
    "ShelfInfo",
]


FORMAT = "v1"

DEFAULT_LIMIT = 10 * 2**30
"""Bytes the bank may take before the shelves that were used least recently are dropped."""

SPARE = 64 * 2**20
"""Bytes of disk left free for others."""


@dataclass(frozen=True)
class ShelfInfo:
    """A summary of one shelf: `transferkit cache` lists these."""

    name: str
    backbone: str
    image_size: int
    pooling: str
    images: int
    size: int
    last_used: float


def _read_meta(folder: Path) -> dict[str, object]:
    """The contents of meta.json; empty if it cannot be read."""
    try:
        described = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return described if isinstance(described, dict) else {}


def _write_meta(folder: Path, meta: Mapping[str, object], *, replace: bool) -> bool:
    """Write meta.json atomically; without `replace`, False if another process has written it already."""
    partial, target = folder / f"meta-{uuid.uuid4().hex}.tmp", folder / "meta.json"
    try:
        partial.write_text(json.dumps(meta, indent=1, sort_keys=True, default=str), encoding="utf-8")
        if not replace and hasattr(os, "link"):
            try:
                os.link(partial, target)
                return True
            except FileExistsError:
                return False
            except OSError:  # a file system without links: the check below leaves a gap of a moment
                if target.exists():
                    return False
        partial.replace(target)
        return True
    finally:
        partial.unlink(missing_ok=True)


def _read_imprint(folder: Path) -> Imprint | None:
    """(M, W); None if the shelf has none that can be read."""
    meta = _read_meta(folder)
    try:
        flat = np.frombuffer(base64.b64decode(str(meta["imprint"]), validate=True), dtype="<f8")
        return flat.reshape(int(str(meta["imprint_rows"])), -1)
    except (KeyError, ValueError):
        return None


def _is_close(kept: Imprint | None, imprint: Imprint, close: float) -> bool:
    """Whether two imprints are of one network: all rows equal up to rounding, relative to the size of each."""
    if kept is None or kept.shape != imprint.shape:
        return False
    finite = np.isfinite(kept)
    if not np.array_equal(np.where(finite, 0, kept), np.where(np.isfinite(imprint), 0, imprint), equal_nan=True):
        return False
    difference = np.abs(np.where(finite, kept, 0) - np.where(finite, imprint, 0))
    size = np.sqrt(np.mean(np.square(np.where(finite, kept, 0)), axis=1, keepdims=True))
    return bool(np.all(difference <= close * size))


def _describe(folder: Path) -> ShelfInfo:
    described, meta = _read_meta(folder), folder / "meta.json"
    side = described.get("image_size")
    return ShelfInfo(
        name=folder.name,
        backbone=str(described.get("backbone", "?")),
        image_size=side if isinstance(side, int) else 0,
        pooling=str(described.get("pooling", "?")),
        images=sum(path.stat().st_size // 32 for path in folder.glob("*.ids")),
        size=folder_size(folder),
        last_used=(meta if meta.exists() else folder).stat().st_mtime,
    )


class FeatureBank:
    """All shelves under one folder.

    Args:
        folder: Where; None is `default_folder()`. Created by the first write.
        limit: Bytes the whole bank may take.

    A bank holds a lease on the shelves opened through it for as long as it exists (a run has one bank), and a table on
    the shelf that it reads: these are not dropped to make room for others.

    Example:
        >>> import tempfile
        >>> bank = FeatureBank(tempfile.mkdtemp())
        >>> shelf = bank.shelf({"weights": "w"}, {"top": 2})
        >>> with shelf.writer() as writer:
        ...     writer.append(np.array([b"a", b"b"]), np.array([[1, 2], [3, 4]], dtype=np.float32))
        >>> shelf.table(np.array([b"b", b"a"])).load(["top"]).tolist()
        [[3.0, 4.0], [1.0, 2.0]]
    """

    def __init__(self, folder: str | Path | None = None, *, limit: int = DEFAULT_LIMIT) -> None:
        self.folder = default_folder() if folder is None else expand(folder)
        self.limit = limit
        self._leases: dict[str, Lease] = {}

    @property
    def _root(self) -> Path:
        return self.folder / FORMAT

    def shelf(
        self,
        identity: Mapping[str, object],
        widths: Mapping[str, int],
        *,
        about: Mapping[str, object] | None = None,
        dtype: str = "float32",
        imprint: Imprint | None = None,
        close: float = CLOSE,
    ) -> Shelf:
        """The shelf of rows of one identity; created if there is none.

        Args:
            identity: The names in it; their digest, and that of the widths, names the shelf. See `Identity`.
            widths: Stage name -> width; rows hold the stages in this order.
            about: Stored for people to read; no part of the identity.
            dtype: How rows are stored: one of `DTYPES`. Rows of another dtype are on another shelf.
            imprint: (M, W) output for fixed images. Rows of one digest with imprints that are not close to each other
                are on different shelves.
            close: Largest distance between imprints of one shelf, in units of their size.

        Raises:
            CacheError: If the folder cannot be made or written.
        """
        blocks = columns_of(widths)
        fixed = {**identity, "columns": {name: [block.start, block.stop] for name, block in blocks.items()}}
        if dtype != "float32":
            fixed["dtype"] = dtype
        digest = hashlib.blake2b(json.dumps(fixed, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()
        meta = {**(about or {}), **fixed}
        with explaining_os_errors(self.folder):
            if imprint is None:
                folder = self._root / digest
                folder.mkdir(parents=True, exist_ok=True)
                _write_meta(folder, meta, replace=True)
            else:
                folder = self._find_variant(digest, meta, imprint, close)
            return Shelf(folder, blocks, dtype, lease=self._hold(folder))

    def _find_variant(self, digest: str, meta: Mapping[str, object], imprint: Imprint, close: float) -> Path:
        """The folder of the shelf with this imprint; a new one if there is none.

        Processes that ask at the same time get the same one: the first to write its meta.json has created it.
        """
        for folder in sorted(self._root.glob(f"{digest}-*")):
            if _is_close(_read_imprint(folder), imprint, close):
                os.utime(folder / "meta.json")
                return folder
        text = base64.b64encode(np.ascontiguousarray(imprint, dtype="<f8").tobytes()).decode()
        for number in itertools.count():
            folder = self._root / f"{digest}-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            if _write_meta(folder, {**meta, "imprint": text, "imprint_rows": len(imprint)}, replace=False):
                return folder
            if _is_close(_read_imprint(folder), imprint, close):
                return folder
        raise AssertionError("itertools.count ended")

    def _hold(self, folder: Path) -> Lease:
        lease = self._leases.get(folder.name)
        if lease is None or not lease.exists:
            lease = self._leases[folder.name] = Lease(folder)
        return lease

    def make_room(self, *needs: tuple[Shelf, int]) -> None:
        """Make sure that this many more rows fit for each shelf: under the limit, and on the disk.

        The shelves used least recently are dropped for that, but none on which a run has a lease, this one or another.

        Raises:
            CacheError: If they do not fit even without all shelves that can be dropped.
        """
        needed = sum(rows * (shelf.row_bytes + 32) for shelf, rows in needs)
        images = max(rows for _, rows in needs)
        own = {shelf.folder.name for shelf, _ in needs}
        with explaining_os_errors(self.folder):
            droppable = [info for info in self.list_shelves() if info.name not in own and not self._is_held(info)]
            droppable_bytes = sum(info.size for info in droppable)
            over = folder_size(self._root) + needed - self.limit
            free = shutil.disk_usage(self.folder).free - SPARE
        if over > droppable_bytes:
            raise CacheError(
                f"The features of {images} more images bring those in use, by this run or by others that go on, to "
                f"{(over + self.limit - droppable_bytes) / 2**20:,.0f} MB, which is over the feature bank's "
                f"limit of {self.limit / 2**20:,.0f} MB. Raise it with cache_limit=GIGABYTES."
            )
        if needed > free + droppable_bytes:
            raise CacheError(
                f"The features of {images} images take {needed / 2**20:,.0f} MB, but only "
                f"{max(free, 0) / 2**20:,.0f} MB are free at {self.folder}. Free some space there, or choose another "
                "folder with cache=DIR."
            )
        short = max(over, needed - free)
        for info in sorted(droppable, key=lambda info: info.last_used):
            if short > 0 and not self._is_held(info):  # checked again: another run may have opened it meanwhile
                short -= self.clear(info.name)

    def _is_held(self, info: ShelfInfo) -> bool:
        return is_leased(self._root / info.name)

    def list_shelves(self) -> list[ShelfInfo]:
        """All shelves in the bank, most recently used first."""
        found = []
        with explaining_os_errors(self.folder):
            for folder in self._root.glob("*"):
                with suppress(FileNotFoundError):  # cleared meanwhile
                    if folder.is_dir():
                        found.append(_describe(folder))
        return sorted(found, key=lambda info: (-info.last_used, info.name))

    def shelf_folder(self, name: str) -> Path:
        """Where a shelf of that name is."""
        return self._root / name

    def clear(self, name: str | None = None) -> int:
        """Remove one shelf, or all; returns the number of bytes freed."""
        chosen = [info for info in self.list_shelves() if name in (None, info.name)]
        for info in chosen:
            shutil.rmtree(self._root / info.name, ignore_errors=True)
        return sum(info.size - folder_size(self._root / info.name) for info in chosen)
