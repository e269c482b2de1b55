"""Who runs the frozen pass: images in, rows of the feature bank out; nothing is computed twice.

Cost: one forward pass over the images that the bank does not hold yet, and 4 D bytes of disk for each. On a CPU each
worker thread decodes and runs its own small batches on one core: small convolutions scale better over batches than
within one, decoding overlaps with computing, and activations stay in the core's cache. On an accelerator the workers
only decode.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.distributed import local_rank_and_world_size
from transferkit.core.errors import CacheError, OptionError
from transferkit.core.progress import track
from transferkit.features.bank import FeatureBank
from transferkit.features.forward import FEATURES, Compute, Forward, Rows, check_shape, features_and_moments, placed_on
from transferkit.features.opening import Shelves, open_shelves, probe_outputs
from transferkit.features.shelf import Shelf, Writer
from transferkit.features.tables import FeatureTable
from transferkit.nn.backbone import Backbone

__all__ = [
    "FrozenPass",
    "Need",
    "choose_device",
    "fill_shelves",
    "frozen_pass",
    "image_seconds",
]


CPU_PIXELS = 160_000
"""Pixels per batch and core: 16 images of 96 px. Beyond it activations fall out of the cache
(scripts/bench_features.py shows images per second over batch sizes)."""

DEVICE_PIXELS = 256 * 224 * 224
"""Pixels per batch on an accelerator; halved when memory runs out."""

PATIENCE = 300.0
"""Seconds without a new row after which the processes that should make it are taken for dead."""

PAUSE = 0.2
"""Seconds between two looks into the bank."""

PACE_ROUNDS = 5
"""Rounds that are timed at most; the fastest counts: what else a shared machine does only adds to the others."""

PACE_SECONDS = 0.3
"""Seconds after which no further round begins."""

Read = Callable[[int], npt.NDArray[Any]]


def choose_device(device: str) -> torch.device:
    """ "auto" takes CUDA, else MPS, else the CPU; any other name is taken as it is.

    Raises:
        OptionError: If there is no such device here.
    """
    if device == "auto":
        if torch.cuda.is_available():
            rank = int(os.environ.get("LOCAL_RANK") or 0)  # of processes on one machine each has its own
            return torch.device("cuda", rank) if 0 < rank < torch.cuda.device_count() else torch.device("cuda")
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


@dataclass(frozen=True)
class Need:
    """Rows of one kind that are to be computed.

    Args:
        shelf: Where they go.
        positions: Of the images that lack them; of equal images the first.
    """

    shelf: Shelf
    positions: npt.NDArray[np.int64]


class _Batch(NamedTuple):
    """Positions of images that run together, and the kinds of rows that they lack."""

    positions: npt.NDArray[np.int64]
    wanted: frozenset[str]


def _batches(needs: Mapping[str, Need], size: int) -> list[_Batch]:
    """Images that lack the same kinds of rows run together: one pass gives all that is wanted of an image."""
    positions = np.unique(np.concatenate([need.positions for need in needs.values()]))
    lacking = np.stack([np.isin(positions, need.positions) for need in needs.values()], axis=1)
    batches = []
    for pattern in np.unique(lacking, axis=0)[::-1]:
        wanted = frozenset(kind for kind, lacks in zip(needs, pattern, strict=True) if lacks)
        alike = positions[(lacking == pattern).all(axis=1)]
        batches += [_Batch(alike[start : start + size], wanted) for start in range(0, len(alike), size)]
    return batches


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
    chosen = choose_device(device)
    shelves = open_shelves(bank, backbone, pooling=pooling, moments=sample is not None, device=chosen)
    missing, unmeasured = _missing(shelves, content_ids, sample)
    needs = {"features": Need(shelves.features, missing)}
    if shelves.moments is not None:
        needs["moments"] = Need(shelves.moments, unmeasured)
    computed = fill_shelves(
        backbone,
        features_and_moments(backbone, pooling),
        read,
        content_ids,
        needs,
        bank=bank,
        device=device,
        batch_size=batch_size,
        workers=workers,
        label=f"frozen pass, {backbone.spec.architecture}" if progress else None,
    )
    moments = None if shelves.moments is None or sample is None else shelves.moments.table(content_ids[sample])
    return FrozenPass(shelves.features.table(content_ids), moments, computed)


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


def _usual_workers() -> int:
    """One per core, where several processes share the machine of its share."""
    return max(1, (os.cpu_count() or 1) // local_rank_and_world_size()[1])


def _fitting_batch(backbone: Backbone, device: torch.device) -> int:
    pixels = CPU_PIXELS if device.type == "cpu" else DEVICE_PIXELS
    return max(4, pixels // backbone.spec.preprocessing.size**2)


def fill_shelves(
    backbone: Backbone,
    compute: Compute,
    read: Read,
    content_ids: npt.NDArray[np.bytes_],
    needs: Mapping[str, Need],
    *,
    bank: FeatureBank,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    label: str | None = None,
) -> int:
    """Compute what shelves lack. A pass over images, once for all kinds of rows that are needed of them.

    Args:
        backbone: Run in evaluation mode and without gradients; left as it was.
        compute: Makes rows of a batch, with this backbone.
        read, content_ids, bank, device, batch_size, workers: As for `frozen_pass`.
        needs: Kind of rows -> what is lacking.
        label: Of the bar on a terminal; None shows none.

    Returns:
        Images that the backbone ran over, in this process or in one of those started with it on this machine: they
        share the images out among them.

    Raises:
        CacheError: If the bank cannot be written, or another process fails to deliver.
        BackboneError: If a value is not finite, or the network cannot take these images.
        RowOverflowError: If a value is beyond what its shelf can keep.
    """
    if not any(len(need.positions) for need in needs.values()):
        return 0
    chosen = choose_device(device)
    bank.make_room(*((need.shelf, len(need.positions)) for need in needs.values()))
    mine = _shared_out(needs)
    batches = _batches(mine, _fitting_batch(backbone, chosen) if batch_size is None else batch_size)
    workers = _usual_workers() if workers is None else workers
    with (
        placed_on(backbone, chosen) as placed,
        _worker_pool(workers, chosen) as pool,
        _writers(mine) as writers,
    ):
        steps = track(batches, label or "", enabled=label is not None)
        results = _run_all(Forward(placed, chosen, compute), read, batches, pool, workers, on_cpu=chosen.type == "cpu")
        for batch, rows in zip(steps, results, strict=True):
            for kind in batch.wanted:
                check_shape(backbone, {kind: rows[kind].shape}, len(batch.positions), needs[kind].shelf.width)
                writers[kind].append(content_ids[batch.positions], rows[kind])
    _await_others(needs, content_ids)
    return len(np.unique(np.concatenate([need.positions for need in needs.values()])))


def _shared_out(needs: Mapping[str, Need]) -> dict[str, Need]:
    """What of it is for this process to compute, where several were started together on this machine.

    Which process computes an image depends on its position alone: a process that comes late, and finds rows of the
    others in the bank already, leaves out the same ones.
    """
    rank, world = local_rank_and_world_size()
    return {kind: Need(need.shelf, need.positions[need.positions % world == rank]) for kind, need in needs.items()}


def _await_others(needs: Mapping[str, Need], content_ids: npt.NDArray[np.bytes_]) -> None:
    """Come back when the other processes' rows are in the bank as well.

    Raises:
        CacheError: If nothing has come for `PATIENCE` seconds.
    """
    rank, world = local_rank_and_world_size()
    began = time.time()
    for need in needs.values():
        wanted = content_ids[need.positions]
        while world > 1 and (missing := len(need.shelf.missing(wanted))):
            if time.time() - max(began, need.shelf.last_change) > PATIENCE:
                raise CacheError(
                    f"Process {rank} of {world} waited {PATIENCE:.0f} s for {missing} images' features that others "
                    f"were to put into {need.shelf.folder}. Look for errors of theirs; all must use the same cache=DIR "
                    "and the same settings."
                )
            time.sleep(PAUSE)


@contextmanager
def _writers(needs: Mapping[str, Need]) -> Iterator[dict[str, Writer]]:
    """One per shelf; what they hold is committed at the end, or thrown away after an exception."""
    with ExitStack() as stack:
        yield {kind: stack.enter_context(need.shelf.writer()) for kind, need in needs.items()}


def _run_all(
    frozen: Forward, read: Read, batches: Sequence[_Batch], pool: ThreadPoolExecutor, workers: int, *, on_cpu: bool
) -> Iterator[Rows]:
    """The rows of each batch, in order. On an accelerator workers only read: the device runs one batch at a time."""

    def load(batch: _Batch) -> npt.NDArray[Any]:
        return np.stack([read(int(index)) for index in batch.positions])

    def work(batch: _Batch) -> Any:
        return frozen.rows(load(batch), batch.wanted) if on_cpu else load(batch)

    for batch, result in zip(batches, _ordered(pool, work, batches, ahead=2 * workers), strict=True):
        yield result if on_cpu else frozen.rows_within_memory(result, batch.wanted)


def image_seconds(
    backbone: Backbone, *, pooling: str = "avg+max", device: str = "auto", workers: int | None = None
) -> float:
    """Seconds that an image takes in the frozen pass on this machine, all workers together; decoding left out.

    The same work is timed whatever the bank holds: batches of fixed images, of the size and on as many workers as in a
    pass, after one round to warm up. The fastest round counts. Costs half a second, or two rounds where these take
    longer.

    Args:
        backbone: Run in evaluation mode and without gradients; left as it was.
        pooling: "avg" or "avg+max".
        device: "auto", "cpu", "cuda", ...
        workers: Threads; None takes one per core.

    Returns:
        Seconds, > 0.
    """
    chosen = choose_device(device)
    on_cpu = chosen.type == "cpu"
    pixels = probe_outputs(backbone, _fitting_batch(backbone, chosen))
    workers = (_usual_workers() if workers is None else workers) if on_cpu else 1
    with placed_on(backbone, chosen) as placed, _worker_pool(workers, chosen) as pool:
        frozen = Forward(placed, chosen, features_and_moments(backbone, pooling))

        def round_of_batches() -> float:
            began = time.perf_counter()
            if on_cpu:
                list(pool.map(lambda _: frozen.rows(pixels, FEATURES), range(workers)))
            else:
                frozen.rows_within_memory(pixels, FEATURES)
            return time.perf_counter() - began

        round_of_batches()  # threads, memory and kernels are there from now on
        seconds = [round_of_batches()]
        while len(seconds) < PACE_ROUNDS and sum(seconds) < PACE_SECONDS:
            seconds.append(round_of_batches())
    return min(seconds) / (workers * len(pixels))
