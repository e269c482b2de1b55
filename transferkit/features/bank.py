"""The feature bank: pooled stage outputs on disk, one row per image content, shared by all runs.

    FOLDER/v1/<shelf>/meta.json                  what the rows are: weights, preprocessing, pooling, columns
    FOLDER/v1/<shelf>/<segment>.ids              (n,) S32: content digest per row; its presence commits the segment
    FOLDER/v1/<shelf>/<segment>.rows             (n, D) float32, or what else the shelf keeps (`DTYPES`)

A shelf is named by the digest of everything but the image; a row by the digest of the image. Segments are written
under another name and renamed when complete, rows before ids, so that readers and other writers never see half of one
and a killed run leaves only a file that the next run sweeps away.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.errors import CacheError
from transferkit.paths import expand

__all__ = [
    "DEFAULT_LIMIT",
    "DTYPES",
    "FeatureBank",
    "FeatureTable",
    "OpenTable",
    "RowOverflowError",
    "Shelf",
    "ShelfInfo",
    "default_folder",
]

FORMAT = "v1"
DEFAULT_LIMIT = 10 * 2**30
"""Bytes the bank may take before the shelves that were used least recently are dropped."""

SEGMENT_ROWS = 8192
SEGMENT_BYTES = 2**28
"""Rows, or bytes of them, after which a segment is committed: a killed run keeps what it had computed so far."""

CHUNK_ROWS = 1024
"""Rows read at once: 17 MB at 4192 features."""

SPARE = 64 * 2**20
"""Bytes of disk left free for others."""

GRACE = 60
"""Seconds after which rows without ids cannot belong to a writer that is between its two renames."""

STALE = 24 * 3600
"""Seconds after which a half-written file is nobody's, even if its process cannot be asked."""

Ids = npt.NDArray[np.bytes_]

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
}
"""What the rows of a shelf can be kept as -> how numpy holds that; the upper half of a float32 has no type there."""


BEYOND_FLOAT16 = 65520
"""The least value that rounds to infinity."""


class RowOverflowError(OverflowError):
    """A value is beyond what a shelf can keep."""


def _packed(rows: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    """float32 rows as they are kept.

    Raises:
        RowOverflowError: If a finite value is beyond the type's range.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if dtype == "float32":
        return rows
    # torch converts some 20 times faster than numpy.
    if dtype == "bfloat16":
        return torch.from_numpy(rows).bfloat16().view(torch.uint16).numpy()
    largest = np.abs(rows).max(initial=0)
    if not largest < BEYOND_FLOAT16:
        largest = np.abs(rows[np.isfinite(rows)]).max(initial=0)
        if largest >= BEYOND_FLOAT16:
            raise RowOverflowError(f"float16 holds values up to 65504, got {largest:.4g}")
    return torch.from_numpy(rows).half().numpy()


def _unpacked(rows: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    """Rows as they are kept -> float32."""
    kept = torch.from_numpy(rows)
    return (kept.view(torch.bfloat16) if dtype == "bfloat16" else kept).float().numpy()


def default_folder() -> Path:
    """`$TRANSFERKIT_CACHE`, else the user's cache folder."""
    if given := os.environ.get("TRANSFERKIT_CACHE"):
        return expand(given)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand(base) / "transferkit"


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn the operating system's errors into one that names the folder and the way out."""
    try:
        yield
    except CacheError:
        raise
    except FileNotFoundError as error:
        raise CacheError(
            f"Files of the feature bank at {folder} are gone; was it cleared meanwhile? Run again. "
            "Or choose another folder with cache=DIR."
        ) from error
    except OSError as error:
        raise CacheError(
            f"The feature bank at {folder} cannot be used: {error.strerror or error}. "
            "Free some space there, or choose another folder with cache=DIR."
        ) from error


@dataclass(frozen=True)
class ShelfInfo:
    """One shelf, for people: `transferkit cache` lists these."""

    name: str
    backbone: str
    image_size: int
    pooling: str
    images: int
    size: int
    last_used: float


class FeatureTable:
    """Rows of a shelf in the order asked for, read chunk by chunk; nothing stays in memory.

    Args:
        shelf: Where the rows are.
        segments: (N,) index into `files`.
        rows: (N,) row inside the segment.
        files: Segment files.
        blocks: Stage name -> its columns.
        dtype: What the rows are kept as; they are read as float32.
    """

    def __init__(
        self,
        files: Sequence[Path],
        segments: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        blocks: Mapping[str, slice],
        dtype: str = "float32",
    ) -> None:
        self._files = list(files)
        self._segments = segments
        self._rows = rows
        self.blocks = dict(blocks)
        self.dtype = dtype

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def width(self) -> int:
        """D, all stages together."""
        return max(int(block.stop) for block in self.blocks.values())

    def take(self, indices: npt.NDArray[np.integer]) -> FeatureTable:
        """The same table for other rows, in the order given."""
        return FeatureTable(self._files, self._segments[indices], self._rows[indices], self.blocks, self.dtype)

    def select(self, stages: Sequence[str]) -> tuple[dict[str, slice], npt.NDArray[np.int64]]:
        """Stage -> its columns once only `stages` are read, and the columns of the table that these are."""
        blocks, columns, start = {}, [], 0
        for stage in stages:
            block = self.blocks[stage]
            blocks[stage] = slice(start, start + block.stop - block.start)
            columns.append(np.arange(block.start, block.stop))
            start = blocks[stage].stop
        return blocks, np.concatenate(columns)

    def chunks(self, columns: npt.NDArray[np.int64] | None = None) -> Iterator[npt.NDArray[np.float32]]:
        """(n, D) float32 chunks, in order; with `columns`, only those."""
        width = self.width
        for start in range(0, len(self), CHUNK_ROWS):
            span = slice(start, start + CHUNK_ROWS)
            segments, rows = self._segments[span], self._rows[span]
            chunk = np.empty((len(rows), width if columns is None else len(columns)), dtype=np.float32)
            for segment in np.unique(segments):
                here = np.flatnonzero(segments == segment)
                # Mapped anew for each chunk: pages of a mapping that stays open count as this process's memory.
                mapped = self._mapped(segment)
                stored = mapped[rows[here]] if columns is None else mapped[rows[here]][:, columns]
                chunk[here] = _unpacked(stored, self.dtype)
                del mapped
            yield chunk

    def _mapped(self, segment: int) -> npt.NDArray[Any]:
        """(n, D) as they are kept, on disk."""
        file = self._files[segment]
        with _explained(file.parent):
            return np.memmap(file, dtype=DTYPES[self.dtype], mode="r").reshape(-1, self.width)

    def opened(self) -> OpenTable:
        """The same rows for random access."""
        return OpenTable([self._mapped(at) for at in range(len(self._files))], self._segments, self._rows, self.dtype)

    def load(self, stages: Sequence[str]) -> npt.NDArray[np.float32]:
        """(N, D) float32 of some stages, in memory."""
        _, columns = self.select(stages)
        loaded = np.empty((len(self), len(columns)), dtype=np.float32)
        start = 0
        for chunk in self.chunks(columns):
            loaded[start : start + len(chunk)] = chunk
            start += len(chunk)
        return loaded


class OpenTable:
    """Rows in any order, again and again: their files stay mapped, which clearing the bank does not undo.

    Args:
        mapped: Segments, (n, D) each.
        segments: (N,) index into `mapped`.
        rows: (N,) row inside the segment.
        dtype: What the rows are kept as.
    """

    def __init__(
        self,
        mapped: Sequence[npt.NDArray[Any]],
        segments: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        dtype: str,
    ) -> None:
        self._mapped = mapped
        self._segments = segments
        self._rows = rows
        self._dtype = dtype

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """(n, D) float32 of the rows at these positions, in this order."""
        segments, rows = self._segments[indices], self._rows[indices]
        present = np.unique(segments)
        if len(present) == 1:
            return _unpacked(self._mapped[present[0]][rows], self._dtype)
        read = np.empty((len(rows), self._mapped[0].shape[1]), dtype=np.float32)
        for segment in present:
            here = segments == segment
            read[here] = _unpacked(self._mapped[segment][rows[here]], self._dtype)
        return read


class Shelf:
    """The rows of one backbone, preprocessing and pooling.

    Args:
        folder: Where its files are.
        blocks: Stage name -> its columns.
        dtype: What its rows are kept as: one of `DTYPES`.
    """

    def __init__(self, folder: Path, blocks: Mapping[str, slice], dtype: str = "float32") -> None:
        self.folder = folder
        self.blocks = dict(blocks)
        self.dtype = dtype
        self.width = max(block.stop for block in blocks.values())

    @property
    def row_bytes(self) -> int:
        """What a row takes on disk."""
        return self.width * DTYPES[self.dtype].itemsize

    @property
    def last_change(self) -> float:
        """When somebody last wrote a row, in seconds since the epoch; 0 if nobody has."""
        changes = [0.0]
        for path in self.folder.glob("*"):
            with suppress(FileNotFoundError):  # renamed meanwhile
                changes.append(path.stat().st_mtime)
        return max(changes)

    def _index(self) -> tuple[list[Path], Ids, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        files, ids = [], []
        for listing in sorted(self.folder.glob("*.ids")):
            rows = listing.with_suffix(".rows")
            with suppress(FileNotFoundError):  # cleared meanwhile
                found = np.fromfile(listing, dtype="S32")
                if rows.stat().st_size == len(found) * self.row_bytes:
                    files.append(rows)
                    ids.append(found)
        lengths = [len(found) for found in ids]
        every = np.concatenate(ids) if ids else np.empty(0, dtype="S32")
        segment = np.repeat(np.arange(len(files)), lengths)
        row = np.concatenate([np.arange(length) for length in lengths]) if lengths else np.empty(0, dtype=np.int64)
        return files, every, segment, row

    def missing(self, ids: Ids) -> npt.NDArray[np.int64]:
        """Positions in `ids` of images that are not here yet; of equal ones only the first."""
        unique, first = np.unique(ids, return_index=True)
        with _explained(self.folder):
            return np.sort(first[~np.isin(unique, self._index()[1])])

    def table(self, ids: Ids) -> FeatureTable:
        """The rows of these images, in this order.

        Raises:
            CacheError: If some are not here (another process cleared the bank meanwhile).
        """
        with _explained(self.folder):
            files, every, segment, row = self._index()
            order = np.argsort(every, kind="stable")
            place = np.searchsorted(every[order], ids)
            found = place < len(every)
            found[found] = every[order[place[found]]] == ids[found]
            if not found.all():
                raise CacheError(
                    f"{int((~found).sum())} of {len(ids)} images are no longer in the feature bank at {self.folder}; "
                    "was it cleared meanwhile? Run again."
                )
            at = order[place]
            (self.folder / "meta.json").touch()
            return FeatureTable(files, segment[at], row[at], self.blocks, self.dtype)

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        """Append rows; what was appended is committed at the end, or in part every `SEGMENT_ROWS` rows.

        After an exception the segment in hand is removed and those committed before stay.
        """
        _sweep(self.folder)
        writer = Writer(self.folder, self.dtype)
        try:
            yield writer  # outside `_explained`: an OSError raised in the block need not be the bank's
            writer.commit()
        finally:
            writer.discard()


class Writer:
    def __init__(self, folder: Path, dtype: str) -> None:
        self._folder = folder
        self._dtype = dtype
        self._partial: Path | None = None
        self._ids: list[Ids] = []
        self._bytes = 0

    def append(self, ids: Ids, rows: npt.NDArray[np.float32]) -> None:
        """Add (n,) ids and their (n, D) rows.

        Written with ordinary writes, never through a mapping: a full disk must raise, not kill the process.

        Raises:
            RowOverflowError: If a value is beyond what the shelf can keep; nothing of these rows is written then.
        """
        packed = _packed(rows, self._dtype)
        with _explained(self._folder):
            mode = "r+b"  # not "ab": a file that was cleared meanwhile must not come back without its first rows
            if self._partial is None:
                name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}.partial"
                self._partial, mode = self._folder / name, "xb"
            with self._partial.open(mode) as file:
                file.seek(0, os.SEEK_END)
                file.write(packed.data)
        self._ids.append(ids.astype("S32"))
        self._bytes += packed.nbytes
        if self._bytes >= SEGMENT_BYTES or sum(len(part) for part in self._ids) >= SEGMENT_ROWS:
            self.commit()

    def commit(self) -> None:
        """Make a segment of the rows in hand: all of them, or none after an exception."""
        if self._partial is None:
            return
        rows = self._folder / f"{uuid.uuid4().hex}.rows"
        ids = rows.with_suffix(".ids")
        listing = self._partial.with_suffix(".ids-partial")
        with _explained(self._folder):
            try:
                # Not `tofile`: its errors say how many items were written, not that the disk is full.
                listing.write_bytes(np.concatenate(self._ids).tobytes())
                for path in (self._partial, listing):
                    with path.open("r+b") as file:
                        os.fsync(file.fileno())
                os.utime(self._partial)  # `GRACE` runs from here, not from before a slow fsync
                self._partial.replace(rows)
                listing.replace(ids)
            finally:
                listing.unlink(missing_ok=True)
                if not ids.exists():
                    rows.unlink(missing_ok=True)
        self._partial, self._ids, self._bytes = None, [], 0

    def discard(self) -> None:
        """Remove what is not committed; quietly, for another error may be on its way."""
        if self._partial is not None:
            with suppress(OSError):
                self._partial.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if os.name == "nt":
        return True  # os.kill(pid, 0) would send it a Ctrl-C; `STALE` has to do
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _abandoned(partial: Path) -> bool:
    """Whether the process of this machine that the file is named after is dead."""
    host, _, pid = partial.stem.rpartition("-")[0].rpartition("-")
    return host == socket.gethostname() and pid.isdigit() and not _alive(int(pid))


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _sweep(folder: Path) -> None:
    """Remove what killed runs left half-written, as far as that is allowed."""
    for pattern in ("*.partial", "*.ids-partial", "*.tmp"):
        for path in folder.glob(pattern):
            with suppress(OSError):  # another process sweeps as well, or the file is another person's
                if _abandoned(path) or _age(path) > STALE:
                    path.unlink()
    for path in folder.glob("*.rows"):
        with suppress(OSError):
            # Killed between two renames. The age is asked first: ids that are to come are there within the grace.
            if _age(path) > GRACE and not path.with_suffix(".ids").exists():
                path.unlink()


def _size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _read_meta(folder: Path) -> dict[str, object]:
    """What the shelf says of itself; empty if that cannot be read."""
    try:
        described = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return described if isinstance(described, dict) else {}


def _describe(folder: Path) -> ShelfInfo:
    described, meta = _read_meta(folder), folder / "meta.json"
    side = described.get("image_size")
    return ShelfInfo(
        name=folder.name,
        backbone=str(described.get("backbone", "?")),
        image_size=side if isinstance(side, int) else 0,
        pooling=str(described.get("pooling", "?")),
        images=sum(path.stat().st_size // 32 for path in folder.glob("*.ids")),
        size=_size(folder),
        last_used=(meta if meta.exists() else folder).stat().st_mtime,
    )


class FeatureBank:
    """All shelves under one folder.

    Args:
        folder: Where; None takes `default_folder()`. Made when first written to.
        limit: Bytes the whole bank may take.

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

    @property
    def _root(self) -> Path:
        return self.folder / FORMAT

    def shelf(
        self,
        description: Mapping[str, object],
        widths: Mapping[str, int],
        *,
        about: Mapping[str, object] | None = None,
        dtype: str = "float32",
    ) -> Shelf:
        """The shelf for everything that fixes a row but the image itself.

        Args:
            description: What it is; its digest names the shelf.
            widths: Stage name -> width; rows hold the stages in this order.
            about: Kept with it for people; the same rows under another name are the same shelf.
            dtype: What rows are kept as: one of `DTYPES`. Rows of another dtype lie on another shelf.

        Raises:
            CacheError: If the folder cannot be made or written.
        """
        stops = np.cumsum(list(widths.values()))
        blocks = {
            name: slice(int(stop) - width, int(stop)) for (name, width), stop in zip(widths.items(), stops, strict=True)
        }
        fixed = {**description, "columns": {name: [block.start, block.stop] for name, block in blocks.items()}}
        if dtype != "float32":  # older shelves, which know of nothing else, keep their names
            fixed["dtype"] = dtype
        digest = hashlib.blake2b(json.dumps(fixed, sort_keys=True, default=str).encode(), digest_size=12)
        folder = self._root / digest.hexdigest()
        text = json.dumps({**(about or {}), **fixed}, indent=1, sort_keys=True, default=str)
        with _explained(self.folder):
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f"meta-{uuid.uuid4().hex}.tmp"
            try:
                partial.write_text(text, encoding="utf-8")
                partial.replace(folder / "meta.json")
            finally:
                partial.unlink(missing_ok=True)
        return Shelf(folder, blocks, dtype)

    def make_room(self, *needs: tuple[Shelf, int]) -> None:
        """See to it that for each shelf so many more rows fit: under the limit, and on the disk.

        Raises:
            CacheError: If they cannot, even with all other shelves gone.
        """
        needed = sum(rows * (shelf.row_bytes + 32) for shelf, rows in needs)
        images = max(rows for _, rows in needs)
        own = {shelf.folder.name for shelf, _ in needs}
        with _explained(self.folder):
            others = [info for info in self.list_shelves() if info.name not in own]
            spendable = sum(info.size for info in others)
            over = _size(self._root) + needed - self.limit
            free = shutil.disk_usage(self.folder).free - SPARE
        if over > spendable:
            raise CacheError(
                f"The features of {images} more images bring this backbone's to "
                f"{(over + self.limit - spendable) / 2**20:,.0f} MB, which is over the feature bank's "
                f"limit of {self.limit / 2**20:,.0f} MB. Raise it with cache_limit=GIGABYTES."
            )
        if needed > free + spendable:
            raise CacheError(
                f"The features of {images} images take {needed / 2**20:,.0f} MB, but only "
                f"{max(free, 0) / 2**20:,.0f} MB are free at {self.folder}. Free some space there, or choose another "
                "folder with cache=DIR."
            )
        short = max(over, needed - free)
        for info in sorted(others, key=lambda info: info.last_used):
            if short > 0:
                short -= self.clear(info.name)

    def list_shelves(self) -> list[ShelfInfo]:
        """What is in the bank, most recently used first."""
        found = []
        with _explained(self.folder):
            for folder in self._root.glob("*"):
                with suppress(FileNotFoundError):  # cleared meanwhile
                    if folder.is_dir():
                        found.append(_describe(folder))
        return sorted(found, key=lambda info: (-info.last_used, info.name))

    def clear(self, name: str | None = None) -> int:
        """Remove one shelf, or all; returns the bytes that this frees."""
        chosen = [info for info in self.list_shelves() if name in (None, info.name)]
        for info in chosen:
            shutil.rmtree(self._root / info.name, ignore_errors=True)
        return sum(info.size - _size(self._root / info.name) for info in chosen)
