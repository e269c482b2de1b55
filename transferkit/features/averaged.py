"""The row-by-row mean of several feature tables, one per view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError
from transferkit.features.tables import FeatureTable, OpenTable

__all__ = ["AveragedTable", "average_tables"]


def average_tables(tables: Sequence[FeatureTable]) -> FeatureTable:
    """The row-by-row mean of tables of the same images and stages; of a single table, that table.

    Raises:
        OptionError: If there are no tables, or they differ in rows or columns.
    """
    if len(tables) == 1:
        return tables[0]
    return AveragedTable(tables)


class AveragedTable(FeatureTable):
    """The row-by-row mean of several tables, read in chunks; nothing is kept in memory.

    Args:
        tables: Of the same images and stages, one per view.
    """

    def __init__(self, tables: Sequence[FeatureTable]) -> None:
        layouts = {(len(table), *sorted((n, b.start, b.stop) for n, b in table.blocks.items())) for table in tables}
        if len(layouts) != 1:
            raise OptionError("Tables that are averaged must have the same rows and columns.")
        self._tables = tuple(tables)
        self.blocks = dict(tables[0].blocks)
        self.dtype = "float32"

    def __len__(self) -> int:
        return len(self._tables[0])

    def take(self, indices: npt.NDArray[np.integer]) -> AveragedTable:
        """The same table for other rows, in the order given."""
        return AveragedTable([table.take(indices) for table in self._tables])

    def chunks(self, columns: npt.NDArray[np.int64] | None = None) -> Iterator[npt.NDArray[np.float32]]:
        """(n, D) float32 chunks, in order; with `columns`, only those."""
        for chunks in zip(*(table.chunks(columns) for table in self._tables), strict=True):
            yield _mean(chunks)

    def opened(self) -> OpenTable:
        """The same rows for random access."""
        return _OpenAverage([table.opened() for table in self._tables])


class _OpenAverage(OpenTable):
    def __init__(self, opened: Sequence[OpenTable]) -> None:
        self._opened = tuple(opened)

    def __len__(self) -> int:
        return len(self._opened[0])

    def read(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        return _mean([table.read(indices) for table in self._opened])


def _mean(parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Sum in the order of the views into one array: reproducible bits, and no copy per view."""
    total = np.array(parts[0], dtype=np.float32)
    for part in parts[1:]:
        total += part
    total /= np.float32(len(parts))
    return total
