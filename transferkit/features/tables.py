"""Rows of a shelf in the order of given images: memory-mapped, read a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import CacheError
from transferkit.features.leases import Lease

__all__ = [
    "BEYOND_FLOAT16",
    "CHUNK_ROWS",
    "DTYPES",
    "FeatureTable",
    "Ids",
    "OpenTable",
    "RowOverflowError",
    "columns_of",
    "explaining_os_errors",
    "pack_rows",
    "unpack_rows",
]


CHUNK_ROWS = 1024
"""Rows read at once: 17 MB at 4192 features."""

Ids = npt.NDArray[np.bytes_]

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
}
"""How rows can be stored -> the numpy type that holds them; numpy has no bfloat16, the upper half of a float32."""

BEYOND_FLOAT16 = 65520
"""The smallest value that float16 rounds to infinity."""


class RowOverflowError(OverflowError):
    """A value is out of the range of a shelf's dtype."""


def columns_of(widths: Mapping[str, int]) -> dict[str, slice]:
    """Stage name -> its columns in rows that hold the stages side by side, in this order.

    Example:
        >>> columns_of({"early": 3, "top": 2})
        {'early': slice(0, 3, None), 'top': slice(3, 5, None)}
    """
    stops = accumulate(widths.values())
    return {name: slice(stop - width, stop) for (name, width), stop in zip(widths.items(), stops, strict=True)}


def pack_rows(rows: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    """float32 rows as they are stored.

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


def unpack_rows(rows: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    """Stored rows -> float32."""
    kept = torch.from_numpy(rows)
    return (kept.view(torch.bfloat16) if dtype == "bfloat16" else kept).float().numpy()


@contextmanager
def explaining_os_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the operating system into a CacheError that names the folder and the remedy."""
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


class FeatureTable:
    """Rows of a shelf in a given order, read chunk by chunk; nothing stays in memory.

    Args:
        segments: (N,) index into `files`.
        rows: (N,) row inside the segment.
        files: Segment files.
        blocks: Stage name -> its columns.
        dtype: How the rows are stored; they are read as float32.
        lease: Keeps the shelf from being dropped while the table exists.
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
                chunk[here] = unpack_rows(stored, self.dtype)
                del mapped
            yield chunk

    def _mapped(self, segment: int) -> npt.NDArray[Any]:
        """(n, D) as they are stored on disk."""
        file = self._files[segment]
        if self._lease is not None:
            self._lease.renew()
        with explaining_os_errors(file.parent):
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
    """Rows for random access: their files stay mapped, even if the bank is cleared.

    Args:
        mapped: Segments, (n, D) each.
        segments: (N,) index into `mapped`.
        rows: (N,) row inside the segment.
        dtype: How the rows are stored.
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
            return unpack_rows(self._mapped[present[0]][rows], self._dtype)
        read = np.empty((len(rows), self._mapped[0].shape[1]), dtype=np.float32)
        for segment in present:
            here = segments == segment
            read[here] = unpack_rows(self._mapped[segment][rows[here]], self._dtype)
        return read
