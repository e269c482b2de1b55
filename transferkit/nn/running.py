"""A finished classifier on one device, run by any number of threads, within the memory that there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import DataError
from transferkit.core.locks import SharedLock
from transferkit.nn.heads import Blend
from transferkit.nn.model import PICTURE_AXES, TransferModel, mean_over_views, predictions_of
from transferkit.nn.replicas import Replicas
from transferkit.nn.shared_stages import share_stages
from transferkit.records import Preprocessing

__all__ = [
    "Classifier",
    "PlacedClassifier",
    "in_batches",
    "in_halves",
    "is_out_of_memory",
    "logits_of",
    "replicas_of",
    "tracing",
    "without_tracing",
]

Classifier = TransferModel | Blend
"""A finished model: one network, or several whose logits are added."""

BATCH = 32
"""Pictures that run at once, each view of an image counting as one. Fixed, because another batch size can change the
last bit of a convolution: predictions are bit-equal after a round trip through a run folder."""

EXHAUSTED = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
"""Parts of the messages of CUDA and MPS, the CPU, and cuBLAS when memory runs out."""

_torch = SharedLock()


def without_tracing() -> AbstractContextManager[None]:
    """Inside the block no thread traces, see `tracing`. Threads run networks together; one must not enter it twice."""
    return _torch.shared()


def tracing() -> AbstractContextManager[None]:
    """Inside the block no other thread runs a network.

    While `torch.export` traces, oneDNN is off and `nn.Module.__call__` is another function for the whole process: a
    network that another thread runs meanwhile gives other bits, or fails.
    """
    return _torch.exclusive()


def replicas_of(model: Classifier) -> Replicas[Classifier]:
    """Copies to predict with; members of a blend share the stages that are equal in all."""
    return Replicas(model, prepare=_prepare)


def _prepare(model: Classifier) -> Classifier:
    with without_tracing(), torch.no_grad():
        return share_stages(model)


class PlacedClassifier:
    """A finished model on one device: a `PixelClassifier`, which any number of threads may call at once.

    Args:
        replicas: Of the model, which is neither moved nor switched to another mode.
        device: Where to compute.
    """

    def __init__(self, replicas: Replicas[Classifier], device: torch.device) -> None:
        self._replicas = replicas
        self._device = device

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names, in the order of the probabilities."""
        return self._replicas.model.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become pixels."""
        return self._replicas.model.preprocessing

    @property
    def task(self) -> str:
        """What the outputs are: "single_label", "multi_label" or "regression"."""
        return self._replicas.model.task

    @property
    def thresholds(self) -> tuple[float, ...]:
        """K probabilities from which on labels are given; empty for 0.5."""
        return self._replicas.model.thresholds

    def probabilities(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """(N, K) float32, rows sum to 1; of labels, each with its own probability; of a regression, numbers.

        Args:
            pixels: (N, 3, H, W), or (N, V, 3, H, W) with the views that are averaged; uint8, or float32 that is
                normalised already.

        Raises:
            DataError: The pixels have another shape or type.
        """
        return predictions_of(self.logits(pixels), self.task).numpy()

    def logits(self, pixels: npt.NDArray[Any]) -> torch.Tensor:
        """The same before the softmax: (N, K) float32 on the CPU."""
        _check_pixels(pixels)
        with self._replicas.on(self._device) as model:
            rows = [_logits(model, batch, self._device) for batch in _split(pixels)]
        return torch.cat(rows) if rows else torch.empty(0, len(self.classes))


def _check_pixels(pixels: npt.NDArray[Any]) -> None:
    if pixels.ndim in (PICTURE_AXES, PICTURE_AXES + 1) and pixels.shape[-3] == 3 and pixels.dtype in ("u1", "f4"):
        return
    raise DataError(
        "Expected prepared pixels, (N, 3, H, W) or (N, V, 3, H, W), uint8 or normalised float32, got "
        f"{pixels.shape} {pixels.dtype}. predict(images) prepares images itself."
    )


def logits_of(model: Classifier, pictures: Iterable[npt.NDArray[Any]], *, device: torch.device) -> torch.Tensor:
    """(N, K) float32 logits on the CPU.

    Args:
        model: Run in evaluation mode, as a copy that shares its weights; left as it is.
        pictures: N of (3, S, S), or of (V, 3, S, S) with the views that are averaged; uint8, or float32 that is
            normalised already.
        device: Where to compute.
    """
    placed = PlacedClassifier(replicas_of(model), device)
    rows = [placed.logits(batch) for batch in in_batches(pictures)]
    return torch.cat(rows) if rows else torch.empty(0, len(model.classes))


def _logits(model: Classifier, pixels: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    writable = np.require(pixels, requirements=["C", "W"])  # which torch asks of arrays that it shares

    def run(part: slice) -> torch.Tensor:
        images = model.normalise(torch.from_numpy(writable[part]).to(device))
        return mean_over_views(classify, images).float().cpu()

    def classify(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(images.contiguous(memory_format=torch.channels_last))
        return logits

    with without_tracing(), torch.no_grad():
        return in_halves(run, len(pixels))


def _batch_size(shape: tuple[int, ...]) -> int:
    """Images that run at once, from the shape of one: its views run together, and memory does not grow with them."""
    return max(1, BATCH // math.prod(shape[:-3]))


def _split(pixels: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    size = _batch_size(pixels.shape[1:])
    for start in range(0, len(pixels), size):
        yield pixels[start : start + size]


def in_batches(pictures: Iterable[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    """Stacks of the pictures, in order, as many in each as run at once.

    Args:
        pictures: (3, H, W) or (V, 3, H, W) each; read only as far as the stack in hand needs.
    """
    batch: list[npt.NDArray[Any]] = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) >= _batch_size(picture.shape):
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def in_halves(run: Callable[[slice], torch.Tensor], n: int) -> torch.Tensor:
    """The output of `run` for n images, computed in halves for as long as memory runs out.

    Args:
        run: Slice of the images -> (m, ...), a row each, which must not depend on the other images of the slice.
        n: Images, >= 1.

    Raises:
        RuntimeError: If not even one image fits.

    Example:
        >>> in_halves(lambda part: torch.arange(6)[part], 6).tolist()
        [0, 1, 2, 3, 4, 5]
    """
    return torch.cat(list(_halved(run, 0, n)))


def _halved(run: Callable[[slice], torch.Tensor], start: int, stop: int) -> Iterator[torch.Tensor]:
    try:
        rows = run(slice(start, stop))
    except RuntimeError as error:
        if stop - start == 1 or not is_out_of_memory(error):
            raise
    else:
        yield rows
        return
    # Outside `except`: while the error lives, its traceback holds on to the activations that did not fit.
    torch.cuda.empty_cache()
    middle = (start + stop) // 2
    yield from _halved(run, start, middle)
    yield from _halved(run, middle, stop)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the error says that a device, or the machine, had no memory left.

    Example:
        >>> is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
        True
    """
    message = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(part in message for part in EXHAUSTED)
