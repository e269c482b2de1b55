"""A file inside a tar archive, read by its place: what an image in a shard is to the code that reads image files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

__all__ = ["ImageFile", "Member", "Members"]


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside an archive that is not compressed.

    Args:
        archive: The tar file.
        name: Its name there.
        offset: Of its first byte in the archive, >= 0.
        size: In bytes, >= 0.
    """

    archive: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def read_bytes(self) -> bytes:
        """Its content; shorter than `size` if the archive was cut off.

        Opened anew each time: an open file has one position, which threads and forked workers would share.

        Raises:
            OSError: The archive cannot be read.
        """
        with self.archive.open("rb", buffering=0) as file:
            file.seek(self.offset)
            return file.read(self.size)


ImageFile = Path | Member
"""An image as a file of its own, or inside an archive."""


class Members(Sequence[Member]):
    """Members of several archives, made when they are asked for: 24 bytes each and the names, however many there are.

    Args:
        archives: The tar files.
        within: (N,) int, index into `archives`.
        names: N names inside the archive.
        offsets, sizes: (N,) int, bytes.
    """

    def __init__(
        self,
        archives: Sequence[Path],
        within: npt.NDArray[np.integer[Any]],
        names: Sequence[str],
        offsets: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
    ) -> None:
        self._archives = tuple(archives)
        self._within, self._names, self._offsets, self._sizes = within, names, offsets, sizes

    def __len__(self) -> int:
        return len(self._within)

    @overload
    def __getitem__(self, index: int) -> Member: ...
    @overload
    def __getitem__(self, index: slice) -> Members: ...
    def __getitem__(self, index: int | slice) -> Member | Members:
        if isinstance(index, slice):
            parts = (self._within[index], self._names[index], self._offsets[index], self._sizes[index])
            return Members(self._archives, *parts)
        archive = self._archives[int(self._within[index])]
        return Member(archive, self._names[index], int(self._offsets[index]), int(self._sizes[index]))
