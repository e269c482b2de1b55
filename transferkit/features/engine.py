"""Who runs the frozen pass: images in, rows of the feature bank out; nothing is computed twice.

Cost: one forward pass over the images that the bank does not hold yet, and 4 D bytes of disk for each. On a CPU each
worker thread decodes and runs its own small batches on one core: small convolutions scale better over batches than
within one, decoding overlaps with computing, and activations stay in the core's cache. On an accelerator the workers
only decode.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from transferkit.errors import BackboneError, OptionError
from transferkit.features.bank import FeatureBank, FeatureTable, Shelf
from transferkit.nn.backbone import Backbone, weights_digest
from transferkit.nn.model import normalise
from transferkit.nn.stages import evaluating
from transferkit.progress import track

__all__ = ["FrozenPass", "Shelves", "choose_device", "frozen_pass", "open_shelves"]

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


class Shelves(NamedTuple):
    """Where the rows of a backbone are kept. Moments lie apart: only a sample of the images has any, if that."""

    features: Shelf
    moments: Shelf | None


def open_shelves(bank: FeatureBank, backbone: Backbone, *, pooling: str, moments: bool = False) -> Shelves:
    """Where the rows of this backbone are kept: named by what makes them, not by what the backbone is called."""
    preprocessing = asdict(backbone.spec.preprocessing)
    preprocessing.pop("origin")
    origin = {
        "architecture": backbone.spec.architecture,
        "layers": _layers_digest(backbone.trunk),
        "weights": weights_digest(backbone.trunk),
        "preprocessing": preprocessing,
        "engine": ENGINE_VERSION,
    }
    places = {tap.stage: [tap.path, tap.layout] for tap in backbone.moment_taps}
    about = {"backbone": backbone.spec.name, "image_size": backbone.spec.preprocessing.size}
    features = bank.shelf({**origin, "pooling": pooling}, backbone.widths(pooling), about=about)
    if not moments:
        return Shelves(features, None)
    apart = {**origin, "pooling": "moments", "places": places}
    return Shelves(features, bank.shelf(apart, backbone.moment_widths(), about=about))


def _layers_digest(trunk: nn.Module) -> str:
    """Tells apart networks of equal weights: a stride or an activation has none."""
    listing = re.sub(r" at 0x[0-9a-f]+", "", repr(trunk))
    return hashlib.blake2b(listing.encode(), digest_size=16).hexdigest()


@contextmanager
def _worker_pool(workers: int, device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Threads that are all gone afterwards; on a CPU each computes on one core."""
    on_cpu = device.type == "cpu"
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=_use_one_thread if on_cpu else None)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if on_cpu:  # only now: a worker that starts late sets the number for the whole process
            torch.set_num_threads(before)


def _use_one_thread() -> None:
    torch.set_num_threads(1)


@contextmanager
def _placed(backbone: Backbone, device: torch.device) -> Iterator[Backbone]:
    """The backbone on the device and in evaluation mode; back home and in its own modes afterwards."""
    home = next((tensor.device for tensor in backbone.state_dict().values()), torch.device("cpu"))
    try:
        with evaluating(backbone):
            yield backbone.to(device).to(memory_format=torch.channels_last)
    finally:
        backbone.to(home)


@dataclass(frozen=True)
class FrozenPass:
    """What one pass leaves behind.

    Args:
        table: One row of features per image.
        moments: One row of moments per sampled image; None if there was no sample.
        computed: Images that the backbone really ran over.
    """

    table: FeatureTable
    moments: FeatureTable | None
    computed: int


class _Batch(NamedTuple):
    """Positions of images that run together, and whether their moments are wanted."""

    positions: npt.NDArray[np.int64]
    moments: bool


class _Rows(NamedTuple):
    """(n, D) features, and (n, M) moments; M is 0 where they are not wanted. Both float32."""

    features: npt.NDArray[np.float32]
    moments: npt.NDArray[np.float32]


class _Pass:
    """One backbone on one device, turning stacks of pixels into rows."""

    def __init__(self, backbone: Backbone, device: torch.device, pooling: str) -> None:
        self._backbone = backbone
        self._device = device
        self._pooling = pooling

    def rows(self, pixels: npt.NDArray[Any], moments: bool = False) -> _Rows:
        """(n, 3, H, W) uint8 or normalised float32 -> rows."""
        try:
            pooled, rows = self._run(pixels, moments)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise BackboneError(
                f"{self._backbone.spec.name} failed on images of shape {pixels.shape[1:]}: {error}. "
                "Try another image_size."
            ) from error
        if not np.isfinite(rows.features).all():
            broken = next(name for name, part in pooled.items() if not bool(torch.isfinite(part).all()))
            raise BackboneError(
                f"Stage {broken!r} of {self._backbone.spec.name} gives values that are not finite. "
                "Are the weights intact, and is the preprocessing the checkpoint's own?"
            )
        return rows

    def _run(self, pixels: npt.NDArray[Any], moments: bool) -> tuple[dict[str, torch.Tensor], _Rows]:
        stack = torch.from_numpy(pixels).to(self._device, non_blocking=True)
        # no_grad, not inference_mode: what is cached may be trained on later.
        with torch.no_grad():
            images = normalise(stack, self._backbone.spec.preprocessing).contiguous(memory_format=torch.channels_last)
            if not moments:
                pooled = self._backbone.pooled_stages(images, pooling=self._pooling)
                return pooled, _Rows(_joined(pooled), np.empty((len(pixels), 0), dtype=np.float32))
            with self._backbone.recording_moments() as recorded:
                pooled = self._backbone.pooled_stages(images, pooling=self._pooling)
            return pooled, _Rows(_joined(pooled), _joined(recorded))

    def rows_within_memory(self, pixels: npt.NDArray[Any], moments: bool = False) -> _Rows:
        """The same, in halves for as long as the device runs out of memory.

        Raises:
            BackboneError: If not even one image fits.
        """
        try:
            return self.rows(pixels, moments)
        except torch.cuda.OutOfMemoryError as error:
            if len(pixels) == 1:
                raise BackboneError(
                    f"{self._backbone.spec.name} runs out of memory on {self._device} with a single image of shape "
                    f"{pixels.shape[1:]}. Choose a smaller image_size or backbone, or device=cpu."
                ) from error
        # Outside `except`: while the error lives, its traceback holds on to the activations that did not fit.
        torch.cuda.empty_cache()
        half = len(pixels) // 2
        parts = [self.rows_within_memory(part, moments) for part in (pixels[:half], pixels[half:])]
        return _Rows(*(np.concatenate(kind) for kind in zip(*parts, strict=True)))


def _joined(stages: Mapping[str, torch.Tensor]) -> npt.NDArray[np.float32]:
    return torch.cat([part.float() for part in stages.values()], dim=1).cpu().numpy()


def _batches(positions: npt.NDArray[np.int64], size: int, *, moments: bool) -> list[_Batch]:
    return [_Batch(positions[start : start + size], moments) for start in range(0, len(positions), size)]


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
    sample: npt.NDArray[np.int64] | None = None,
    pooling: str = "avg+max",
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> FrozenPass:
    """Run the backbone over every image that the bank does not hold, and return all rows.

    Args:
        backbone: Run in evaluation mode and without gradients; left as it was.
        read: Index -> (3, H, W) uint8 pixels, or float32 that is normalised already. Called from worker threads.
        content_ids: (N,) S32, one per image; equal ids are computed once.
        bank: Where rows are kept.
        sample: Positions of images whose moments are wanted as well (see `Backbone.recording_moments`).
        pooling: "avg" or "avg+max".
        device: "auto", "cpu", "cuda", ...
        batch_size: Images at once; None fits it to the device.
        workers: Threads; None takes one per core. 1 if `read` must not be called concurrently.
        progress: Show a bar on a terminal.

    Returns:
        N rows of features in the order of `content_ids`, the moments of the sample in its order, and how many images
        ran now.

    Raises:
        CacheError: If the bank cannot be written.
        BackboneError: If a feature is not finite, or the network cannot take these images.
    """
    shelves = open_shelves(bank, backbone, pooling=pooling, moments=sample is not None)
    missing, unmeasured = _missing(shelves, content_ids, sample)
    rest = np.setdiff1d(missing, unmeasured)
    if len(unmeasured) or len(rest):
        chosen = choose_device(device)
        needs = [(shelves.features, len(missing)), (shelves.moments, len(unmeasured))]
        bank.make_room(*((shelf, rows) for shelf, rows in needs if shelf is not None))
        if batch_size is None:
            batch_size = _fitting_batch(backbone, chosen)
        _compute(
            backbone,
            read,
            content_ids,
            # One pass: the sample gives features and moments at once, the rest features alone.
            [*_batches(unmeasured, batch_size, moments=True), *_batches(rest, batch_size, moments=False)],
            missing,
            shelves=shelves,
            pooling=pooling,
            device=chosen,
            workers=(os.cpu_count() or 1) if workers is None else workers,
            progress=progress,
        )
    moments = None if shelves.moments is None or sample is None else shelves.moments.table(content_ids[sample])
    return FrozenPass(shelves.features.table(content_ids), moments, len(unmeasured) + len(rest))


def _missing(
    shelves: Shelves, content_ids: npt.NDArray[np.bytes_], sample: npt.NDArray[np.int64] | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions of images without features, and of sampled ones without moments; of equal images the first."""
    missing = shelves.features.missing(content_ids)
    if shelves.moments is None or sample is None:
        return missing, np.empty(0, dtype=np.int64)
    _, first, inverse = np.unique(content_ids, return_index=True, return_inverse=True)
    unmeasured = sample[shelves.moments.missing(content_ids[sample])]
    return missing, np.sort(first[inverse.reshape(-1)[unmeasured]])


def _fitting_batch(backbone: Backbone, device: torch.device) -> int:
    pixels = CPU_PIXELS if device.type == "cpu" else DEVICE_PIXELS
    return max(4, pixels // backbone.spec.preprocessing.size**2)


def _compute(
    backbone: Backbone,
    read: Read,
    content_ids: npt.NDArray[np.bytes_],
    batches: Sequence[_Batch],
    missing: npt.NDArray[np.int64],
    *,
    shelves: Shelves,
    pooling: str,
    device: torch.device,
    workers: int,
    progress: bool,
) -> None:
    """Run the batches; features go to their shelf for the positions in `missing`, moments to theirs."""
    on_cpu = device.type == "cpu"
    label = f"frozen pass, {backbone.spec.architecture}"
    with (
        _placed(backbone, device) as placed,
        _worker_pool(workers, device) as pool,
        shelves.features.writer() as features,
        nullcontext() if shelves.moments is None else shelves.moments.writer() as moments,
    ):
        frozen = _Pass(placed, device, pooling)

        def load(batch: _Batch) -> npt.NDArray[Any]:
            return np.stack([read(int(index)) for index in batch.positions])

        def work(batch: _Batch) -> Any:
            return frozen.rows(load(batch), batch.moments) if on_cpu else load(batch)

        results = _ordered(pool, work, batches, ahead=2 * workers)
        for batch, result in zip(track(batches, label, enabled=progress), results, strict=True):
            rows = result if on_cpu else frozen.rows_within_memory(result, batch.moments)
            new = np.isin(batch.positions, missing)
            if new.any():
                features.append(content_ids[batch.positions[new]], rows.features[new])
            if batch.moments and moments is not None:
                moments.append(content_ids[batch.positions], rows.moments)
