"""Decoded pictures, kept for as many epochs as there are: in memory, in a file, or read again each time."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import DataError
from transferkit.core.progress import track
from transferkit.data.inspection import in_threads
from transferkit.data.opened import Data
from transferkit.records import Preprocessing

__all__ = ["MEMORY_LIMIT", "PixelStore"]

MEMORY_LIMIT = 2**30
"""Bytes up to which pictures are kept in memory: 30,000 of 109 px, or 5,400 of 256 px."""

DISK_RESERVE = 2**30
"""Bytes that a file leaves free on its disk."""


class PixelStore:
    """Pictures by their position, decoded once and prepared for a checkpoint, but for normalisation.

    Worker processes share them: a forked one sees the same memory, any other gets a handle, of a file its name.

    Args:
        data: Where the images come from.
        indices: (n,) int, which of them, in order.
        preprocessing: What is done to them; for augmentation `Augmentation.stored`.
        limit: Bytes up to which they are kept in memory; beyond, in a temporary file, mapped into memory.
        folder: Where that file goes; None takes the system's temporary folder. Without room for it, images are read
            each time they are asked for.
        progress: Whether to show a bar, if on a terminal.

    Attributes:
        where: "memory", "file" or "source".
        shape: (3, H, W) of every picture.

    Raises:
        DataError: An image was changed or removed since the audit, or preprocessed tensors differ in shape.

    Example:
        >>> from transferkit.data import open_data
        >>> wants = Preprocessing(size=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
        >>> store = PixelStore(open_data("builtin/digits"), np.arange(5), wants)
        >>> store, store[4].shape, store[4].dtype
        (PixelStore(5 pictures, 3 x 16 x 16, in memory), torch.Size([3, 16, 16]), torch.uint8)
    """

    def __init__(
        self,
        data: Data,
        indices: npt.NDArray[np.int64],
        preprocessing: Preprocessing,
        *,
        limit: int = MEMORY_LIMIT,
        folder: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        self._data = data
        self._indices = np.asarray(indices, dtype=np.int64)
        self._places = np.arange(len(self._indices))  # which of them this store, or part of one, shows
        self._whole: PixelStore | None = None
        self._preprocessing = preprocessing
        self._file: Path | None = None
        self._rows: torch.Tensor | None = None
        self.shape: tuple[int, int, int] = self._find_shape()
        self._dtype: np.dtype[Any] = np.dtype(np.float32 if data.normalised else np.uint8)
        if self.nbytes <= limit:
            self._keep(np.empty((len(self), *self.shape), self._dtype), progress=progress)
        elif (file := _reserve(self.nbytes, Path(tempfile.gettempdir() if folder is None else folder))) is not None:
            self._file = file
            weakref.finalize(self, _remove, file, os.getpid())
            self._keep(self._mapped(file), progress=progress)

    def _find_shape(self) -> tuple[int, int, int]:
        size = self._preprocessing.size
        if not self._data.normalised or len(self) == 0:
            return 3, size, size
        channels, height, width = self._data.pixels(int(self._indices[0]), self._preprocessing).shape
        return channels, height, width

    def _keep(self, rows: npt.NDArray[Any], *, progress: bool) -> None:
        def fill(place: int) -> None:
            rows[place] = self._read(place)

        places = range(len(self))
        # A dataset of the user's may hold one open file, which two threads must not read at once.
        done: Iterable[None] = in_threads(fill, places) if self._data.thread_safe else map(fill, places)
        for _ in track(done, "reading images", total=len(self), enabled=progress):
            pass
        # As a tensor: torch's worker processes then share the memory instead of copying it.
        self._rows = torch.from_numpy(rows)

    def _read(self, place: int) -> npt.NDArray[Any]:
        index = int(self._indices[place])
        pixels = self._data.pixels(index, self._preprocessing)
        if pixels.shape != self.shape:
            raise DataError(
                f"{self._data.items[index]} has shape {pixels.shape}, the first image {self.shape}. Preprocessed "
                "tensors must be of one shape to be trained on; resize them in the dataset."
            )
        return pixels

    def _mapped(self, file: Path) -> npt.NDArray[Any]:
        return np.memmap(file, dtype=self._dtype, mode="r+", shape=(len(self._indices), *self.shape))

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        place = {"memory": "in memory", "file": "in a file", "source": "read each time"}[self.where]
        return f"PixelStore({len(self)} pictures, {' x '.join(map(str, self.shape))}, {place})"

    @property
    def nbytes(self) -> int:
        """Bytes that all its pictures take."""
        return int(len(self) * np.prod(self.shape) * self._dtype.itemsize)

    @property
    def where(self) -> str:
        """Where pictures are kept: "memory", "file", or "source" if nowhere."""
        if self._rows is None:
            return "source"
        return "memory" if self._file is None else "file"

    @property
    def shareable(self) -> bool:
        """Whether several processes may read at once; not so where each reads a dataset that may hold an open file."""
        return self._rows is not None or self._data.thread_safe

    def __getitem__(self, position: int) -> torch.Tensor:
        """(3, H, W) uint8, or float32 that is normalised already; not to be written to."""
        place = int(self._places[position])
        return torch.from_numpy(self._read(place)) if self._rows is None else self._rows[place]

    def take(self, positions: npt.NDArray[np.int64]) -> PixelStore:
        """Some of the pictures, in that order; nothing is copied."""
        part = object.__new__(PixelStore)
        part.__dict__.update(self.__dict__)
        part._places = self._places[positions]
        part._whole = self  # the file goes when the last part has gone
        return part

    def __getstate__(self) -> dict[str, Any]:
        # A map would travel as what is in it, and a source that is not needed may not travel at all.
        gone: dict[str, Any] = {"_whole": None} if self._rows is None else {"_whole": None, "_data": None}
        return {**self.__dict__, **gone, **({} if self._file is None else {"_rows": None})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._file is not None:
            self._rows = torch.from_numpy(self._mapped(self._file))


def _reserve(size: int, folder: Path) -> Path | None:
    """A file of that size, its blocks taken: on a full disk, writing to the map would kill the process.

    None if there is no room.
    """
    if shutil.disk_usage(folder).free < size + DISK_RESERVE:
        return None
    handle, name = tempfile.mkstemp(prefix="transferkit-", suffix=".pixels", dir=folder)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        else:
            os.truncate(handle, size)
    except OSError:
        os.unlink(name)
        return None
    finally:
        os.close(handle)
    return Path(name)


def _remove(file: Path, owner: int) -> None:
    # A forked worker that lets go of its copy must leave the file to the others.
    if os.getpid() == owner:
        file.unlink(missing_ok=True)
