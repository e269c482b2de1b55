"""Who runs the frozen pass: images in, rows of the feature bank out; nothing is computed twice.

Cost: one forward pass over the images that the bank does not hold yet, and 4 D bytes of disk for each. On a CPU each
worker thread decodes and runs its own small batches on one core: small convolutions scale better over batches than
within one, decoding overlaps with computing, and activations stay in the core's cache. On an accelerator the workers
only decode.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.errors import BackboneError, OptionError, TransferkitError
from transferkit.features.bank import FeatureBank, FeatureTable, Shelf
from transferkit.nn.backbone import Backbone
from transferkit.nn.model import normalise
from transferkit.progress import track

__all__ = ["choose_device", "frozen_pass", "open_shelf"]

ENGINE_VERSION = 1
"""Raised whenever the same image and weights would give other features than before."""

CPU_PIXELS = 160_000
"""Pixels per batch and core: 16 images of 96 px. Beyond it activations fall out of the cache
(scripts/bench_features.py shows images per second over batch sizes)."""

DEVICE_PIXELS = 256 * 224 * 224
"""Pixels per batch on an accelerator; halved when memory runs out."""

Read = Callable[[int], npt.NDArray[Any]]


def choose_device(device: str) -> torch.device:
    """ "auto" takes CUDA, else MPS, else the CPU; any other name is taken as it is.

    Raises:
        OptionError: If there is no such device here.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise OptionError(
            f"The device {device!r} cannot be used here: {reason} Use device=auto or device=cpu."
        ) from error
    return chosen


def open_shelf(bank: FeatureBank, backbone: Backbone, *, pooling: str) -> Shelf:
    """Where the features of this backbone are kept: named by weights, preprocessing, pooling and engine."""
    preprocessing = asdict(backbone.spec.preprocessing)
    preprocessing.pop("origin")
    return bank.shelf(
        {
            "backbone": backbone.spec.name,
            "architecture": backbone.spec.architecture,
            "weights": backbone.spec.weights_id,
            "preprocessing": preprocessing,
            "image_size": backbone.spec.preprocessing.size,
            "pooling": pooling,
            "engine": ENGINE_VERSION,
        },
        backbone.widths(pooling),
    )


@contextmanager
def _one_thread_each(device: torch.device) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if device.type == "cpu":
            torch.set_num_threads(before)


def _use_one_thread() -> None:
    torch.set_num_threads(1)


class _Pass:
    """One backbone on one device, turning stacks of pixels into rows."""

    def __init__(self, backbone: Backbone, device: torch.device, pooling: str) -> None:
        self._backbone = backbone
        self._device = device
        self._pooling = pooling

    def rows(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """(n, 3, H, W) uint8 or normalised float32 -> (n, D) float32."""
        stack = torch.from_numpy(pixels).to(self._device, non_blocking=True)
        # no_grad, not inference_mode: what is cached may be trained on later.
        with torch.no_grad():
            images = normalise(stack, self._backbone.spec.preprocessing).contiguous(memory_format=torch.channels_last)
            pooled = self._backbone.pooled_stages(images, pooling=self._pooling)
            rows = torch.cat([part.float() for part in pooled.values()], dim=1).cpu().numpy()
        if not np.isfinite(rows).all():
            broken = next(name for name, part in pooled.items() if not bool(torch.isfinite(part).all()))
            raise BackboneError(
                f"Stage {broken!r} of {self._backbone.spec.name} gives values that are not finite. "
                "Are the weights intact, and is the preprocessing the checkpoint's own?"
            )
        rows = rows.astype(np.float32, copy=False)
        return rows

    def rows_within_memory(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The same, in halves for as long as the device runs out of memory."""
        try:
            return self.rows(pixels)
        except torch.OutOfMemoryError:
            if len(pixels) == 1:
                raise
            torch.cuda.empty_cache()
            half = len(pixels) // 2
            return np.concatenate([self.rows_within_memory(pixels[:half]), self.rows_within_memory(pixels[half:])])


def _batches(positions: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def _ordered(pool: ThreadPoolExecutor, work: Callable[[Any], Any], batches: Sequence[Any], ahead: int) -> Iterator[Any]:
    """Results in order, with no more than `ahead` batches begun and not yet taken: memory stays flat."""
    waiting: deque[Future[Any]] = deque()
    for batch in batches:
        waiting.append(pool.submit(work, batch))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def frozen_pass(
    backbone: Backbone,
    read: Read,
    content_ids: npt.NDArray[np.bytes_],
    *,
    bank: FeatureBank,
    pooling: str = "avg+max",
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[FeatureTable, int]:
    """Run the backbone over every image that the bank does not hold, and return all rows.

    Args:
        backbone: Frozen: evaluation mode, no gradients.
        read: Index -> (3, H, W) uint8 pixels, or float32 that is normalised already. Called from worker threads.
        content_ids: (N,) S32, one per image; equal ids are computed once.
        bank: Where rows are kept.
        pooling: "avg" or "avg+max".
        device: "auto", "cpu", "cuda", ...
        batch_size: Images at once; None fits it to the device.
        workers: Threads; None takes one per core. 1 if `read` must not be called concurrently.
        progress: Show a bar on a terminal.

    Returns:
        The table of N rows, in the order of `content_ids`, and how many of them were computed now.

    Raises:
        CacheError: If the bank cannot be written.
        BackboneError: If a feature is not finite, or the network cannot take these images.
    """
    shelf = open_shelf(bank, backbone, pooling=pooling)
    missing = shelf.missing(content_ids)
    if len(missing):
        bank.make_room(shelf, len(missing))
        _compute(
            backbone,
            read,
            content_ids,
            missing,
            shelf=shelf,
            pooling=pooling,
            device=choose_device(device),
            batch_size=batch_size,
            workers=workers or os.cpu_count() or 1,
            progress=progress,
        )
    return shelf.table(content_ids), len(missing)


def _compute(
    backbone: Backbone,
    read: Read,
    content_ids: npt.NDArray[np.bytes_],
    missing: npt.NDArray[np.int64],
    *,
    shelf: Shelf,
    pooling: str,
    device: torch.device,
    batch_size: int | None,
    workers: int,
    progress: bool,
) -> None:
    on_cpu = device.type == "cpu"
    side = backbone.spec.preprocessing.size
    budget = CPU_PIXELS if on_cpu else DEVICE_PIXELS
    batches = _batches(missing, batch_size or max(4, budget // side**2))
    placed = backbone.eval().to(device).to(memory_format=torch.channels_last)
    frozen = _Pass(placed, device, pooling)

    def load(batch: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        return np.stack([read(int(index)) for index in batch])

    def work(batch: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        return frozen.rows(load(batch)) if on_cpu else load(batch)

    pool = ThreadPoolExecutor(workers, initializer=_use_one_thread if on_cpu else None)
    label = f"frozen pass, {backbone.spec.architecture}"
    try:
        with _one_thread_each(device), shelf.writer() as writer:
            results = _ordered(pool, work, batches, ahead=2 * workers)
            for batch, result in zip(track(batches, label, enabled=progress), results, strict=True):
                writer.append(content_ids[batch], result if on_cpu else frozen.rows_within_memory(result))
    except TransferkitError:
        raise
    except RuntimeError as error:
        raise BackboneError(
            f"{backbone.spec.name} failed on images of {side} px: {error}. Try another image_size."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        backbone.to("cpu")
