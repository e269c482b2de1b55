"""The feature bank: pooled stage outputs on disk, one row per image content, shared by all runs.

    FOLDER/v1/<shelf>/meta.json                  what the rows are: weights, preprocessing, pooling, columns
    FOLDER/v1/<shelf>/<segment>.ids              (n,) S32: content digest per row; its presence commits the segment
    FOLDER/v1/<shelf>/<segment>.rows             (n, D) float32

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

import numpy as np
import numpy.typing as npt

from transferkit.errors import CacheError

__all__ = ["DEFAULT_LIMIT", "FeatureBank", "FeatureTable", "Shelf", "ShelfInfo", "default_folder"]

FORMAT = "v1"
DEFAULT_LIMIT = 10 * 2**30
"""Bytes the bank may take before the shelves that were used least recently are dropped."""

SEGMENT_ROWS = 8192
"""Rows after which a segment is committed, so that a killed run keeps what it had computed so far."""

CHUNK_ROWS = 1024
"""Rows read at once: 17 MB at 4192 features."""

SPARE = 64 * 2**20
"""Bytes of disk left free for others."""

Ids = npt.NDArray[np.bytes_]


def default_folder() -> Path:
    """`$TRANSFERKIT_CACHE`, else the user's cache folder."""
    if given := os.environ.get("TRANSFERKIT_CACHE"):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "transferkit"


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn the operating system's errors into one that names the folder and the way out."""
    try:
        yield
    except CacheError:
        raise
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
    """

    def __init__(
        self,
        files: Sequence[Path],
        segments: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        blocks: Mapping[str, slice],
    ) -> None:
        self._files = list(files)
        self._segments = segments
        self._rows = rows
        self.blocks = dict(blocks)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def width(self) -> int:
        """D, all stages together."""
        return max(int(block.stop) for block in self.blocks.values())

    def take(self, indices: npt.NDArray[np.integer]) -> FeatureTable:
        """The same table for other rows, in the order given."""
        return FeatureTable(self._files, self._segments[indices], self._rows[indices], self.blocks)

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
                mapped = np.memmap(self._files[segment], dtype=np.float32, mode="r").reshape(-1, width)
                chunk[here] = mapped[rows[here]] if columns is None else mapped[rows[here]][:, columns]
            yield chunk

    def load(self, stages: Sequence[str]) -> npt.NDArray[np.float32]:
        """(N, D) float32 of some stages, in memory."""
        return np.concatenate(list(self.chunks(self.select(stages)[1])))


class Shelf:
    """The rows of one backbone, preprocessing and pooling.

    Args:
        folder: Where its files are.
        blocks: Stage name -> its columns.
    """

    def __init__(self, folder: Path, blocks: Mapping[str, slice]) -> None:
        self.folder = folder
        self.blocks = dict(blocks)
        self.width = max(block.stop for block in blocks.values())

    def _segments(self) -> list[Path]:
        return sorted(path.with_suffix(".rows") for path in self.folder.glob("*.ids"))

    def _index(self) -> tuple[list[Path], Ids, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        files, ids = [], []
        for rows in self._segments():
            found = np.fromfile(rows.with_suffix(".ids"), dtype="S32")
            if rows.exists() and rows.stat().st_size == len(found) * self.width * 4:
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
            return FeatureTable(files, segment[at], row[at], self.blocks)

    @contextmanager
    def writer(self) -> Iterator[_Writer]:
        """Append rows; what was appended is committed at the end, or in part every `SEGMENT_ROWS` rows.

        After an exception the segment in hand is removed and those committed before stay.
        """
        with _explained(self.folder):
            _sweep(self.folder)
            writer = _Writer(self.folder)
            try:
                yield writer
                writer.commit()
            finally:
                writer.discard()


class _Writer:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._partial: Path | None = None
        self._ids: list[Ids] = []

    def append(self, ids: Ids, rows: npt.NDArray[np.float32]) -> None:
        """Add (n,) ids and their (n, D) rows.

        Written with ordinary writes, never through a mapping: a full disk must raise, not kill the process.
        """
        with _explained(self._folder):
            if self._partial is None:
                name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}.partial"
                self._partial = self._folder / name
            with self._partial.open("ab") as file:
                file.write(np.ascontiguousarray(rows, dtype=np.float32).data)
            self._ids.append(ids.astype("S32"))
            if sum(len(part) for part in self._ids) >= SEGMENT_ROWS:
                self.commit()

    def commit(self) -> None:
        if self._partial is None:
            return
        segment = self._folder / uuid.uuid4().hex
        listing = self._partial.with_suffix(".ids-partial")
        try:
            np.concatenate(self._ids).tofile(listing)
            for path in (self._partial, listing):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            self._partial.replace(segment.with_suffix(".rows"))
            listing.replace(segment.with_suffix(".ids"))
        finally:
            listing.unlink(missing_ok=True)
        self._partial, self._ids = None, []

    def discard(self) -> None:
        if self._partial is not None:
            self._partial.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sweep(folder: Path) -> None:
    """Remove what killed runs on this machine left half-written."""
    for path in [*folder.glob("*.partial"), *folder.glob("*.ids-partial")]:
        host, _, rest = path.name.rpartition("-")[0].rpartition("-")
        if host == socket.gethostname() and rest.isdigit() and not _alive(int(rest)):
            path.unlink(missing_ok=True)
    committed = {path.stem for path in folder.glob("*.ids")}
    for path in folder.glob("*.rows"):
        # Rows without ids: killed between two renames. A minute's grace for a writer that is between them now.
        if path.stem not in committed and time.time() - path.stat().st_mtime > 60:
            path.unlink(missing_ok=True)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


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
        self.folder = default_folder() if folder is None else Path(folder).expanduser()
        self.limit = limit

    @property
    def _root(self) -> Path:
        return self.folder / FORMAT

    def shelf(self, description: Mapping[str, object], widths: Mapping[str, int]) -> Shelf:
        """The shelf for everything that fixes a row but the image itself.

        Args:
            description: What it is; its digest names the shelf.
            widths: Stage name -> width; rows hold the stages in this order.

        Raises:
            CacheError: If the folder cannot be made or written.
        """
        stops = np.cumsum(list(widths.values()))
        blocks = {
            name: slice(int(stop) - width, int(stop)) for (name, width), stop in zip(widths.items(), stops, strict=True)
        }
        meta = {**description, "columns": {name: [block.start, block.stop] for name, block in blocks.items()}}
        text = json.dumps(meta, indent=1, sort_keys=True, default=str)
        folder = self._root / hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        with _explained(self.folder):
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f"meta-{uuid.uuid4().hex}.tmp"
            try:
                partial.write_text(text, encoding="utf-8")
                partial.replace(folder / "meta.json")
            finally:
                partial.unlink(missing_ok=True)
        return Shelf(folder, blocks)

    def make_room(self, shelf: Shelf, rows: int) -> None:
        """See to it that `rows` more fit: under the limit, and on the disk.

        Raises:
            CacheError: If they cannot, even with all other shelves gone.
        """
        needed = rows * (shelf.width * 4 + 32)
        with _explained(self.folder):
            over = _size(self._root) + needed - self.limit
            for info in sorted(self.list_shelves(), key=lambda info: info.last_used):
                if over > 0 and info.name != shelf.folder.name:
                    self.clear(info.name)
                    over -= info.size
            free = shutil.disk_usage(self.folder).free - SPARE
        if over > 0:
            raise CacheError(
                f"The features of {rows} images take {needed / 2**20:,.0f} MB, which is over the feature bank's "
                f"limit of {self.limit / 2**20:,.0f} MB. Raise it with cache_limit=GIGABYTES."
            )
        if free < needed:
            raise CacheError(
                f"The features of {rows} images take {needed / 2**20:,.0f} MB, but only {max(free, 0) / 2**20:,.0f} MB "
                f"are free at {self.folder}. Free some space there, or choose another folder with cache=DIR."
            )

    def list_shelves(self) -> list[ShelfInfo]:
        """What is in the bank, most recently used first."""
        found = []
        for meta in sorted(self._root.glob("*/meta.json")):
            with suppress(FileNotFoundError, json.JSONDecodeError):
                described = json.loads(meta.read_text(encoding="utf-8"))
                images = sum(path.stat().st_size // 32 for path in meta.parent.glob("*.ids"))
                found.append(
                    ShelfInfo(
                        name=meta.parent.name,
                        backbone=str(described.get("backbone", "?")),
                        image_size=int(described.get("image_size", 0)),
                        pooling=str(described.get("pooling", "?")),
                        images=images,
                        size=_size(meta.parent),
                        last_used=meta.stat().st_mtime,
                    )
                )
        return sorted(found, key=lambda info: -info.last_used)

    def clear(self, name: str | None = None) -> int:
        """Remove one shelf, or all; returns the bytes that this frees."""
        chosen = [info for info in self.list_shelves() if name in (None, info.name)]
        for info in chosen:
            shutil.rmtree(self._root / info.name, ignore_errors=True)
        return sum(info.size for info in chosen)
