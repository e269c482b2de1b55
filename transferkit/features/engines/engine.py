"""What an engine is: another way to compute a backbone's rows, for images of one shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from transferkit.core.errors import MissingDependencyError
from transferkit.core.registry import Registry
from transferkit.features.engines.torch import TorchExtractor
from transferkit.features.extractor import Rows
from transferkit.features.forward import features_and_moments, joined
from transferkit.features.identity import Identity
from transferkit.features.workers import default_workers
from transferkit.nn.backbone import Backbone
from transferkit.nn.model import normalise

__all__ = [
    "ENGINES",
    "Engine",
    "EngineExtractor",
    "EngineJob",
    "JoinedRows",
    "Run",
    "in_fixed_batches",
    "is_installed",
    "require",
]

Run = Callable[[npt.NDArray[Any]], Rows]
"""Pixels -> rows of the kinds that it was opened for; any number of threads may call it at once."""


@dataclass(frozen=True, eq=False)
class EngineJob:
    """What an engine is to compute.

    Args:
        backbone: On the device, in evaluation mode, simplified for inference at the size of the images.
        pooling: "avg" or "avg+max".
        kinds: Of rows, in order.
        pixels: (n, 3, H, W) images of the shape and type that will come, as many as will mostly come at once.
        device: Where the backbone is.
        workers: Threads that will call at the same time.
    """

    backbone: Backbone
    pooling: str
    kinds: tuple[str, ...]
    pixels: npt.NDArray[Any]
    device: torch.device
    workers: int

    @property
    def threads(self) -> int:
        """Threads that each worker may use: this process's cores, shared out."""
        return max(1, default_workers() // self.workers)


@dataclass(frozen=True)
class Engine:
    """A way to compute rows.

    Args:
        open: Makes a function of pixels for a job; raises any exception if it cannot.
        packages: That must be installed.
        extra: Of this package that installs them.
        automatic: Whether it is tried without being asked for, on a CPU.
    """

    open: Callable[[EngineJob], Run]
    packages: tuple[str, ...] = ()
    extra: str = ""
    automatic: bool = False


ENGINES: Registry[Engine] = Registry("engine")


def is_installed(name: str) -> bool:
    """Whether the packages that an engine needs can be imported."""
    return all(find_spec(package) is not None for package in ENGINES[name].packages)


def require(name: str) -> None:
    """Check that an engine can be used here.

    Raises:
        OptionError: If there is no such engine.
        MissingDependencyError: If a package of it is not installed.
    """
    engine = ENGINES[name]
    if not is_installed(name):
        raise MissingDependencyError(
            f"engine={name} needs more packages: pip install 'transferkit[{engine.extra}]'. Without them use "
            "engine=torch, or engine=auto, which takes what is installed."
        )


class JoinedRows(nn.Module):
    """Pixels in, rows out, in one module that can be traced.

    Args:
        job: The backbone, and the kinds of rows.

    Shape:
        (n, 3, H, W) uint8, or float32 that is normalised already -> one (n, D) float32 per kind.
    """

    def __init__(self, job: EngineJob) -> None:
        super().__init__()
        self.backbone = job.backbone
        self._kinds = job.kinds
        self._compute = features_and_moments(job.backbone, job.pooling)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One tensor per kind."""
        images = normalise(pixels, self.backbone.spec.preprocessing)
        blocks = self._compute(images, frozenset(self._kinds))
        return tuple(joined(blocks[kind]) for kind in self._kinds)


def in_fixed_batches(job: EngineJob, compute: Callable[[npt.NDArray[Any]], Sequence[npt.NDArray[np.float32]]]) -> Run:
    """A `Run` by something that takes batches of one size only: networks may fix it when they are traced.

    Args:
        job: As many images as its pixels are a batch.
        compute: (n, 3, H, W) of exactly that size -> (n, D) for each kind of the job.
    """
    size = len(job.pixels)

    def run(pixels: npt.NDArray[Any]) -> Rows:
        parts = [compute(_filled(pixels[start : start + size], size)) for start in range(0, len(pixels), size)]
        return {kind: np.concatenate([part[at] for part in parts])[: len(pixels)] for at, kind in enumerate(job.kinds)}

    return run


def _filled(pixels: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """So many images: the last one is repeated."""
    if len(pixels) == size:
        return pixels
    return np.concatenate([pixels, np.repeat(pixels[-1:], size - len(pixels), axis=0)])


class EngineExtractor:
    """An `Extractor` whose rows an engine computes for images of one shape.

    Args:
        reference: Has the identity of the rows, and computes those of images of another shape.
        runs: Kinds of rows -> what computes them.
        shape: (3, H, W) of the images that those take.
        batch_size: Images at once.
    """

    def __init__(
        self,
        reference: TorchExtractor,
        runs: Mapping[frozenset[str], Run],
        *,
        shape: tuple[int, ...],
        batch_size: int | None = None,
    ) -> None:
        self._reference = reference
        self._runs = dict(runs)
        self._shape = shape
        self._batch_size = batch_size

    @property
    def name(self) -> str:
        """The backbone's."""
        return self._reference.name

    @property
    def batch_size(self) -> int:
        """The one that was fastest, else the reference's."""
        return self._batch_size or self._reference.batch_size

    @property
    def is_threaded(self) -> bool:
        """On a CPU."""
        return self._reference.is_threaded

    def identity(self) -> Mapping[str, Identity]:
        """The reference's: the engine's rows are the same but for the last bits."""
        return self._reference.identity()

    def ready(self) -> AbstractContextManager[object]:
        """The reference is ready inside the block."""
        return self._reference.ready()

    def extract(self, pixels: npt.NDArray[Any], kinds: frozenset[str]) -> Rows:
        """Rows of these kinds."""
        run = self._runs.get(kinds)
        if run is None or pixels.shape[1:] != self._shape:
            return self._reference.extract(pixels, kinds)
        return run(np.ascontiguousarray(pixels))
