"""The feature bank: pooled stage outputs on disk, one row per image content, shared by all runs.

    FOLDER/v1/<shelf>/meta.json                  what the rows are: weights, preprocessing, pooling, columns
    FOLDER/v1/<shelf>/<segment>.ids              (n,) S32: content digest per row; its presence commits the segment
    FOLDER/v1/<shelf>/<segment>.rows             (n, D) float32, or what else the shelf keeps (`DTYPES`)
    FOLDER/v1/<shelf>/<process>.lease            a run that uses the shelf, which is then not dropped for others

A shelf is named by the digest of everything but the image; a row by the digest of the image. Shelves of one name that
differ in their imprint (what the network makes of fixed images) are numbered. Segments are written under another name
and renamed when complete, rows before ids, so that readers and other writers never see half of one and a killed run
leaves only a file that the next run sweeps away.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import shutil
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.cache_folder import default_folder
from transferkit.core.errors import CacheError
from transferkit.core.paths import expand
from transferkit.features.leases import STALE, Lease, age, is_abandoned, is_leased, name_file

__all__ = [
    "DEFAULT_LIMIT",
    "DTYPES",
    "FeatureBank",
    "FeatureTable",
    "OpenTable",
    "RowOverflowError",
    "Shelf",
    "ShelfInfo",
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

CLOSE = 1e-4
"""How far two imprints of the same network may lie apart, in units of their size. EfficientNet-Lite0's moves by 8e-6
with the number of threads, the memory layout or the library of kernels; one channel of one stage that is 1 % larger
moves it by 1e-2."""

Ids = npt.NDArray[np.bytes_]
Imprint = npt.NDArray[np.float64]

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
        lease: Keeps the shelf from being dropped while the table lives.
    """

    def __init__(
        self,
        files: Sequence[Path],
        segments: npt.NDArray[np.integer],
        rows: npt.NDArray[np.integer],
        blocks: Mapping[str, slice],
        dtype: str = "float32",
        *,
        lease: Lease | None = None,
    ) -> None:
        self._files = list(files)
        self._lease = lease
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
        return FeatureTable(
            self._files, self._segments[indices], self._rows[indices], self.blocks, self.dtype, lease=self._lease
        )

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
        if self._lease is not None:
            self._lease.renew()
        with _explained(file.parent):
            return np.memmap(file, dtype=DTYPES[self.dtype], mode="r").reshape(-1, self.width)

    def opened(self) -> OpenTable:
        """The same rows for random access."""
        mapped = [self._mapped(at) for at in range(len(self._files))]
        return OpenTable(mapped, self._segments, self._rows, self.dtype, lease=self._lease)

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
        lease: As for `FeatureTable`.
    """

    def __init__(
        self,
        mapped: Sequence[npt.NDArray[Any]],
        segments: npt.NDArray[np.integer],
        rows: npt.NDArray[np.integer],
        dtype: str,
        *,
        lease: Lease | None = None,
    ) -> None:
        self._mapped = mapped
        self._lease = lease
        self._segments = segments
        self._rows = rows
        self._dtype = dtype

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """(n, D) float32 of the rows at these positions, in this order."""
        if self._lease is not None:
            self._lease.renew()
        segments, rows = self._segments[indices], self._rows[indices]
        present = np.unique(segments)
        if len(present) == 1:
            return _unpacked(self._mapped[present[0]][rows], self._dtype)
        read = np.empty((len(rows), self._mapped[0].shape[1]), dtype=np.float32)
        for segment in present:
            here = segments == segment
            read[here] = _unpacked(self._mapped[segment][rows[here]], self._dtype)
        return read


class _Index(NamedTuple):
    """Where every row of a shelf is, in the order of the ids; of equal ids the first one written down comes first.

    Args:
        files: Segment files.
        ids: (N,) sorted.
        segments: (N,) int32 index into `files`.
        rows: (N,) int32 row inside the segment.
    """

    files: list[Path]
    ids: Ids
    segments: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]

    def find(self, ids: Ids) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """(n,) place of each id in the index, and (n,) whether it is there at all.

        Session up in sorted order: places far apart in memory would take ten times as long.
        """
        order = np.argsort(ids, kind="stable")
        place = np.empty(len(ids), dtype=np.int64)
        place[order] = np.searchsorted(self.ids, ids[order])
        found = place < len(self.ids)
        found[found] = self.ids[place[found]] == ids[found]
        return place, found


def _whole_segments(folder: Path, row_bytes: int) -> list[Path]:
    """Rows files that have as many rows as ids; others are passed over."""
    whole = []
    for listing in sorted(folder.glob("*.ids")):
        rows = listing.with_suffix(".rows")
        with suppress(FileNotFoundError):  # cleared meanwhile
            if rows.stat().st_size * 32 == listing.stat().st_size * row_bytes:
                whole.append(rows)
    return whole


def _read_index(segments: Sequence[Path]) -> _Index:
    """The index of these segments. At a million rows: a second, and 118 MB of which a third stays."""
    files, parts = [], []
    for rows in segments:
        with suppress(FileNotFoundError):  # cleared meanwhile
            parts.append(np.fromfile(rows.with_suffix(".ids"), dtype="S32"))
            files.append(rows)
    lengths = [len(part) for part in parts]
    ids = np.concatenate(parts) if parts else np.empty(0, dtype="S32")
    order = np.argsort(ids, kind="stable")
    within = np.repeat(np.arange(len(files), dtype=np.int32), lengths)[order]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return _Index(files, ids[order], within, (order - starts[within]).astype(np.int32))


class Shelf:
    """The rows of one backbone, preprocessing and pooling.

    Args:
        folder: Where its files are.
        blocks: Stage name -> its columns.
        dtype: What its rows are kept as: one of `DTYPES`.
        lease: The run's hold on it, kept by whoever opened the shelf; tables keep it as well.
    """

    def __init__(
        self, folder: Path, blocks: Mapping[str, slice], dtype: str = "float32", *, lease: Lease | None = None
    ) -> None:
        self.folder = folder
        self.blocks = dict(blocks)
        self.dtype = dtype
        self.width = max(block.stop for block in blocks.values())
        self._lease = None if lease is None else weakref.ref(lease)
        self._seen: set[Path] = set()
        self._read: _Index | None = None

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
                if path.suffix != ".lease":
                    changes.append(path.stat().st_mtime)
        return max(changes)

    def _index(self) -> _Index:
        """The index of what is here now; read again only where segments came or went."""
        segments = _whole_segments(self.folder, self.row_bytes)
        self._seen.update(segments)
        if self._read is None or self._read.files != segments:
            self._read = _read_index(segments)
        return self._read

    def missing(self, ids: Ids) -> npt.NDArray[np.int64]:
        """Positions in `ids` of images that are not here yet; of equal ones only the first."""
        unique, first = np.unique(ids, return_index=True)
        with _explained(self.folder):
            return np.sort(first[~self._index().find(unique)[1]])

    def table(self, ids: Ids) -> FeatureTable:
        """The rows of these images, in this order.

        Raises:
            CacheError: If some are not here: they were never written, or another process cleared the bank meanwhile.
        """
        with _explained(self.folder):
            index = self._index()
            place, found = index.find(ids)
            if not found.all():
                raise self._lost(int((~found).sum()), len(ids))
            (self.folder / "meta.json").touch()
            rows, lease = index.rows[place], self._held()
            return FeatureTable(index.files, index.segments[place], rows, self.blocks, self.dtype, lease=lease)

    def _held(self) -> Lease:
        """The lease of whoever opened the shelf, or a new one where that run is over."""
        lease = None if self._lease is None else self._lease()
        return Lease(self.folder) if lease is None or not lease.exists else lease

    def _lost(self, lost: int, of: int) -> CacheError:
        if all(path.exists() for path in self._seen):
            return CacheError(
                f"{lost} of {of} images are not in the feature bank at {self.folder}: nobody has computed them, and "
                "nothing was removed."
            )
        return CacheError(
            f"{lost} of {of} images are no longer in the feature bank at {self.folder}; was it cleared meanwhile? "
            "Run again."
        )

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        """Append rows; what was appended is committed at the end, or in part every `SEGMENT_ROWS` rows.

        After an exception the segment in hand is removed and those committed before stay.
        """
        _sweep(self.folder)
        writer = Writer(self.folder, self.width, self.dtype, seen=self._seen)
        try:
            yield writer  # outside `_explained`: an OSError raised in the block need not be the bank's
            writer.commit()
        finally:
            writer.discard()


class Writer:
    """Appends rows to a shelf.

    Args:
        folder: The shelf's.
        width: D, numbers per row.
        dtype: What rows are kept as.
        seen: Takes down the segments that are committed.
    """

    def __init__(self, folder: Path, width: int, dtype: str, *, seen: set[Path]) -> None:
        self._folder = folder
        self._width = width
        self._dtype = dtype
        self._seen = seen
        self._partial: Path | None = None
        self._ids: list[Ids] = []
        self._bytes = 0

    def append(self, ids: Ids, rows: npt.NDArray[np.float32]) -> None:
        """Add (n,) ids and their (n, D) rows.

        Written with ordinary writes, never through a mapping: a full disk must raise, not kill the process.

        Raises:
            ValueError: If there are more or fewer rows than ids, or they are wider or narrower than the shelf's.
            RowOverflowError: If a value is beyond what the shelf can keep; nothing of these rows is written then.
        """
        if rows.shape != (len(ids), self._width):
            raise ValueError(f"Expected rows of shape {(len(ids), self._width)} for {len(ids)} ids, got {rows.shape}.")
        packed = _packed(rows, self._dtype)
        with _explained(self._folder):
            mode = "r+b"  # not "ab": a file that was cleared meanwhile must not come back without its first rows
            if self._partial is None:
                self._partial, mode = self._folder / name_file("partial"), "xb"
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
        self._seen.add(rows)
        self._partial, self._ids, self._bytes = None, [], 0

    def discard(self) -> None:
        """Remove what is not committed; quietly, for another error may be on its way."""
        if self._partial is not None:
            with suppress(OSError):
                self._partial.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what killed runs left half-written, as far as that is allowed."""
    for pattern in ("*.partial", "*.ids-partial", "*.tmp"):
        for path in folder.glob(pattern):
            with suppress(OSError):  # another process sweeps as well, or the file is another person's
                if is_abandoned(path) or age(path) > STALE:
                    path.unlink()
    for path in folder.glob("*.lease"):
        with suppress(OSError):
            if is_abandoned(path):  # a run that lives may hold a shelf for weeks
                path.unlink()
    for path in folder.glob("*.rows"):
        with suppress(OSError):
            # Killed between two renames. The age is asked first: ids that are to come are there within the grace.
            if age(path) > GRACE and not path.with_suffix(".ids").exists():
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


def _write_meta(folder: Path, meta: Mapping[str, object], *, replace: bool) -> bool:
    """Write what the shelf is, in one go; without `replace`, False where somebody has done so already."""
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
    """Whether two imprints are of one network: all rows equal but for rounding, each in units of its own size."""
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
        size=_size(folder),
        last_used=(meta if meta.exists() else folder).stat().st_mtime,
    )


class FeatureBank:
    """All shelves under one folder.

    Args:
        folder: Where; None takes `default_folder()`. Made when first written to.
        limit: Bytes the whole bank may take.

    Shelves that were opened through a bank are held for as long as it lives (a run has one bank), and those that a
    table reads from for as long as that lives: they are not dropped to make room for others.

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
        description: Mapping[str, object],
        widths: Mapping[str, int],
        *,
        about: Mapping[str, object] | None = None,
        dtype: str = "float32",
        imprint: Imprint | None = None,
        close: float = CLOSE,
    ) -> Shelf:
        """The shelf for everything that fixes a row but the image itself.

        Args:
            description: What it is; its digest names the shelf.
            widths: Stage name -> width; rows hold the stages in this order.
            about: Kept with it for people; the same rows under another name are the same shelf.
            dtype: What rows are kept as: one of `DTYPES`. Rows of another dtype lie on another shelf.
            imprint: (M, W) what makes the rows, told by what it makes of fixed inputs. Shelves of one description whose
                imprints are not close to each other are different shelves.
            close: How far imprints may lie apart, in units of their size, and still be of one shelf.

        Raises:
            CacheError: If the folder cannot be made or written.
        """
        stops = np.cumsum(list(widths.values()))
        blocks = {
            name: slice(int(stop) - width, int(stop)) for (name, width), stop in zip(widths.items(), stops, strict=True)
        }
        fixed = {**description, "columns": {name: [block.start, block.stop] for name, block in blocks.items()}}
        if dtype != "float32":
            fixed["dtype"] = dtype
        digest = hashlib.blake2b(json.dumps(fixed, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()
        meta = {**(about or {}), **fixed}
        with _explained(self.folder):
            if imprint is None:
                folder = self._root / digest
                folder.mkdir(parents=True, exist_ok=True)
                _write_meta(folder, meta, replace=True)
            else:
                folder = self._find_variant(digest, meta, imprint, close)
            return Shelf(folder, blocks, dtype, lease=self._hold(folder))

    def _find_variant(self, digest: str, meta: Mapping[str, object], imprint: Imprint, close: float) -> Path:
        """The folder of the shelf with this imprint; a new one if there is none.

        Processes that come at the same time meet at the same one: whoever writes its meta.json first has made it.
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
        """See to it that for each shelf so many more rows fit: under the limit, and on the disk.

        The shelves used least recently are dropped for that, but none that a run holds, this one or another.

        Raises:
            CacheError: If they cannot, even with all shelves gone that nobody holds.
        """
        needed = sum(rows * (shelf.row_bytes + 32) for shelf, rows in needs)
        images = max(rows for _, rows in needs)
        own = {shelf.folder.name for shelf, _ in needs}
        with _explained(self.folder):
            free_to_go = [info for info in self.list_shelves() if info.name not in own and not self._is_held(info)]
            spendable = sum(info.size for info in free_to_go)
            over = _size(self._root) + needed - self.limit
            free = shutil.disk_usage(self.folder).free - SPARE
        if over > spendable:
            raise CacheError(
                f"The features of {images} more images bring those in use, by this run or by others that go on, to "
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
        for info in sorted(free_to_go, key=lambda info: info.last_used):
            if short > 0 and not self._is_held(info):  # asked again: somebody may have come meanwhile
                short -= self.clear(info.name)

    def _is_held(self, info: ShelfInfo) -> bool:
        return is_leased(self._root / info.name)

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
