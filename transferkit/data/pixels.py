"""Decoded pictures, stored for all epochs: in memory, in a file, or read again each time."""

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
"""Maximum bytes of pictures in memory: 30,000 of 109 px, or 5,400 of 256 px."""

DISK_RESERVE = 2**30
"""Bytes of disk space that a file leaves free."""


class PixelStore:
    """Pictures by position, decoded once and preprocessed for a checkpoint, except for normalisation.

    Worker processes share them: a forked one uses the same memory, any other gets a handle or the file's name.

    Args:
        data: The images.
        indices: (n,) int, indices of the images to store, in order.
        preprocessing: Their preprocessing; for augmentation `Augmentation.stored`.
        limit: Maximum bytes in memory; beyond, a memory-mapped temporary file is used.
        folder: Folder of that file; None uses the system's temporary folder. Without enough disk space, images are
            read each time they are accessed.
        progress: Whether to show a progress bar on a terminal.

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
        self._positions = np.arange(len(self._indices))  # positions that this store, or subset of one, contains
        self._parent: PixelStore | None = None
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
        def fill(row: int) -> None:
            rows[row] = self._read(row)

        positions = range(len(self))
        # A user's dataset may hold one open file, which two threads must not read at once.
        done: Iterable[None] = in_threads(fill, positions) if self._data.thread_safe else map(fill, positions)
        for _ in track(done, "reading images", total=len(self), enabled=progress):
            pass
        # As a tensor: torch's worker processes then share the memory instead of copying it.
        self._rows = torch.from_numpy(rows)

    def _read(self, row: int) -> npt.NDArray[Any]:
        index = int(self._indices[row])
        pixels = self._data.pixels(index, self._preprocessing)
        if pixels.shape != self.shape:
            raise DataError(
                f"{self._data.items[index]} has shape {pixels.shape}, the first image {self.shape}. Preprocessed "
                "tensors must have one shape for training; resize them in the dataset."
            )
        return pixels

    def _mapped(self, file: Path) -> npt.NDArray[Any]:
        return np.memmap(file, dtype=self._dtype, mode="r+", shape=(len(self._indices), *self.shape))

    def __len__(self) -> int:
        return len(self._positions)

    def __repr__(self) -> str:
        storage = {"memory": "in memory", "file": "in a file", "source": "read each time"}[self.where]
        return f"PixelStore({len(self)} pictures, {' x '.join(map(str, self.shape))}, {storage})"

    @property
    def nbytes(self) -> int:
        """Size of all its pictures in bytes."""
        return int(len(self) * np.prod(self.shape) * self._dtype.itemsize)

    @property
    def where(self) -> str:
        """Where pictures are stored: "memory", "file", or "source" if they are read each time."""
        if self._rows is None:
            return "source"
        return "memory" if self._file is None else "file"

    @property
    def shareable(self) -> bool:
        """Whether several processes may read at once; False if they would read a dataset that may hold an open file."""
        return self._rows is not None or self._data.thread_safe

    def __getitem__(self, position: int) -> torch.Tensor:
        """(3, H, W) uint8, or float32 if already normalised; read-only."""
        row = int(self._positions[position])
        return torch.from_numpy(self._read(row)) if self._rows is None else self._rows[row]

    def take(self, positions: npt.NDArray[np.int64]) -> PixelStore:
        """A subset of the pictures, in the given order, without copying."""
        part = object.__new__(PixelStore)
        part.__dict__.update(self.__dict__)
        part._positions = self._positions[positions]
        part._parent = self  # the file is deleted with the last subset
        return part

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be pickled with its content, and a source may not be picklable and is not needed.
        gone: dict[str, Any] = {"_parent": None} if self._rows is None else {"_parent": None, "_data": None}
        return {**self.__dict__, **gone, **({} if self._file is None else {"_rows": None})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._file is not None:
            self._rows = torch.from_numpy(self._mapped(self._file))


def _reserve(size: int, folder: Path) -> Path | None:
    """A file of that size with its blocks allocated: on a full disk, writing to the map would kill the process.

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
    # A forked worker that drops its copy must not delete the file that others use.
    if os.getpid() == owner:
        file.unlink(missing_ok=True)
