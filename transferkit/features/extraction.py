"""The frozen pass: images in, rows of the feature bank out; nothing is computed twice, whatever extracts it.

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
from transferkit.core.errors import BackboneError, CacheError, OptionError
from transferkit.core.progress import track
from transferkit.features.bank import FeatureBank
from transferkit.features.engines.torch import stage_extractor
from transferkit.features.extractor import FEATURES, Extractor, Rows
from transferkit.features.identity import Identity, probe_inputs
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
    "open_shelves",
    "run_extractor",
]

PATIENCE = 300.0
"""Seconds without a new row after which the processes that should compute it are considered dead."""

PAUSE = 0.2
"""Seconds between two checks of the bank for rows of other processes."""

PACE_ROUNDS = 5
"""Rounds that are timed at most; the fastest counts: other load on the machine only slows the others."""

PACE_SECONDS = 0.3
"""Seconds after which no further round begins."""

Read = Callable[[int], npt.NDArray[Any]]


def choose_device(device: str) -> torch.device:
    """ "auto" is CUDA, else MPS, else the CPU; any other name is a device of torch.

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
        if reason.startswith("Expected one of"):  # torch names 22 kinds of device here
            reason = "such a device is unknown. Known are cpu, cuda, cuda:1 and mps."
        raise OptionError(
            f"The device {device!r} cannot be used here: {reason} Use device=auto or device=cpu."
        ) from error
    return chosen


@contextmanager
def _worker_pool(workers: int, *, on_one_core_each: bool) -> Iterator[ThreadPoolExecutor]:
    """Threads that have all ended afterwards."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=_use_one_thread if on_one_core_each else None)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if on_one_core_each:  # only now: a worker that starts late sets the number for the whole process
            torch.set_num_threads(before)


def _use_one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class FrozenPass:
    """The rows of one pass.

    Args:
        table: One row of features per image.
        moments: One row of moments per sampled image; None if there was no sample.
        computed: Images that the backbone ran over; the others were in the bank.
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
    """Images that lack the same kinds of rows run together: one pass computes all that an image lacks."""
    positions = np.unique(np.concatenate([need.positions for need in needs.values()]))
    lacking = np.stack([np.isin(positions, need.positions) for need in needs.values()], axis=1)
    batches = []
    for pattern in np.unique(lacking, axis=0)[::-1]:
        wanted = frozenset(kind for kind, lacks in zip(needs, pattern, strict=True) if lacks)
        alike = positions[(lacking == pattern).all(axis=1)]
        batches += [_Batch(alike[start : start + size], wanted) for start in range(0, len(alike), size)]
    return batches


def _ordered(pool: ThreadPoolExecutor, work: Callable[[Any], Any], batches: Sequence[Any], ahead: int) -> Iterator[Any]:
    """Results in order; at most `ahead` batches are running or waiting to be used, so that memory stays constant."""
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
    extractor = stage_extractor(backbone, pooling=pooling, moments=sample is not None, device=choose_device(device))
    return run_extractor(
        extractor,
        read,
        content_ids,
        bank=bank,
        sample=sample,
        batch_size=batch_size,
        workers=workers,
        label=f"frozen pass, {backbone.spec.architecture}" if progress else None,
    )


def run_extractor(
    extractor: Extractor,
    read: Read,
    content_ids: npt.NDArray[np.bytes_],
    *,
    bank: FeatureBank,
    sample: npt.NDArray[np.int64] | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    label: str | None = None,
) -> FrozenPass:
    """Run an extractor of "features", and of "moments" if there is a sample, over what the bank lacks.

    Args:
        extractor: What computes the rows.
        read, content_ids, bank, sample, workers: As for `frozen_pass`.
        batch_size: Images at once; None is the extractor's own.
        label: Of the bar on a terminal; None shows none.

    Raises:
        CacheError, BackboneError: As for `frozen_pass`.
    """
    shelves = open_shelves(bank, extractor.identity())
    needs = {"features": Need(shelves["features"], shelves["features"].missing(content_ids))}
    if sample is not None:
        needs["moments"] = Need(shelves["moments"], _unmeasured(shelves["moments"], content_ids, sample))
    computed = fill_shelves(
        extractor, read, content_ids, needs, bank=bank, batch_size=batch_size, workers=workers, label=label
    )
    moments = None if sample is None else shelves["moments"].table(content_ids[sample])
    return FrozenPass(shelves["features"].table(content_ids), moments, computed)


def open_shelves(bank: FeatureBank, identities: Mapping[str, Identity]) -> dict[str, Shelf]:
    """Kind of rows -> the shelf that its identity names. Kinds lie apart: not every image has rows of each."""
    return {
        kind: bank.shelf(
            identity.names,
            identity.widths,
            about=identity.about,
            dtype=identity.dtype,
            imprint=identity.imprint,
            close=identity.close,
        )
        for kind, identity in identities.items()
    }


def _unmeasured(
    moments: Shelf, content_ids: npt.NDArray[np.bytes_], sample: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Positions of sampled images without moments; of equal images the first."""
    _, first, inverse = np.unique(content_ids, return_index=True, return_inverse=True)
    lacking = sample[moments.missing(content_ids[sample])]
    return np.sort(first[inverse.reshape(-1)[lacking]])


def _usual_workers() -> int:
    """One per core, where several processes share the machine of its share."""
    return max(1, (os.cpu_count() or 1) // local_rank_and_world_size()[1])


def fill_shelves(
    extractor: Extractor,
    read: Read,
    content_ids: npt.NDArray[np.bytes_],
    needs: Mapping[str, Need],
    *,
    bank: FeatureBank,
    batch_size: int | None = None,
    workers: int | None = None,
    label: str | None = None,
) -> int:
    """Compute the rows that shelves lack: one pass over the images, whatever kinds of rows they lack.

    Args:
        extractor: What computes the rows.
        read, content_ids, bank, batch_size, workers, label: As for `run_extractor`.
        needs: Kind of rows -> what is lacking.

    Returns:
        Images that the extractor ran over, in this process or in another that was started with it on this machine; they
        divide the images among themselves.

    Raises:
        CacheError: If the bank cannot be written, or another process does not deliver its rows.
        BackboneError: If a value is not finite, or the network cannot take these images.
        RowOverflowError: If a value is beyond what its shelf can keep.
    """
    if not any(len(need.positions) for need in needs.values()):
        return 0
    bank.make_room(*((need.shelf, len(need.positions)) for need in needs.values()))
    own = _own_share(needs)
    batches = _batches(own, extractor.batch_size if batch_size is None else batch_size)
    workers = _usual_workers() if workers is None else workers
    with (
        extractor.ready(),
        _worker_pool(workers, on_one_core_each=extractor.is_threaded) as pool,
        _writers(own) as writers,
    ):
        steps = track(batches, label or "", enabled=label is not None)
        results = _run_all(extractor, read, batches, pool, workers)
        for batch, rows in zip(steps, results, strict=True):
            for kind in batch.wanted:
                _check_finite(rows[kind], own[kind].shelf, extractor.name)
                writers[kind].append(content_ids[batch.positions], rows[kind])
    _await_others(needs, content_ids)
    return len(np.unique(np.concatenate([need.positions for need in needs.values()])))


def _check_finite(rows: npt.NDArray[np.float32], shelf: Shelf, name: str) -> None:
    if np.isfinite(rows).all():
        return
    stage = next(stage for stage, block in shelf.blocks.items() if not np.isfinite(rows[:, block]).all())
    raise BackboneError(
        f"Stage {stage!r} of {name} gives values that are not finite. Are the weights intact, and is the preprocessing "
        "the checkpoint's own?"
    )


def _own_share(needs: Mapping[str, Need]) -> dict[str, Need]:
    """The part that this process computes, where several were started together on this machine.

    Which process computes an image depends on its position alone: a process that starts late, and finds rows of the
    others in the bank already, leaves out the same ones.
    """
    rank, world = local_rank_and_world_size()
    return {kind: Need(need.shelf, need.positions[need.positions % world == rank]) for kind, need in needs.items()}


def _await_others(needs: Mapping[str, Need], content_ids: npt.NDArray[np.bytes_]) -> None:
    """Wait until the other processes' rows are in the bank as well.

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
    """One per shelf; rows are committed at the end, or discarded after an exception."""
    with ExitStack() as stack:
        yield {kind: stack.enter_context(need.shelf.writer()) for kind, need in needs.items()}


def _run_all(
    extractor: Extractor, read: Read, batches: Sequence[_Batch], pool: ThreadPoolExecutor, workers: int
) -> Iterator[Rows]:
    """The rows of each batch, in order."""

    def load(batch: _Batch) -> npt.NDArray[Any]:
        return np.stack([read(int(index)) for index in batch.positions])

    def extract(batch: _Batch) -> Rows:
        return extractor.extract(load(batch), batch.wanted)

    if extractor.is_threaded:
        yield from _ordered(pool, extract, batches, ahead=2 * workers)
        return
    for batch, pixels in zip(batches, _ordered(pool, load, batches, ahead=2 * workers), strict=True):
        yield extractor.extract(pixels, batch.wanted)


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
    extractor = stage_extractor(backbone, pooling=pooling, device=choose_device(device))
    in_threads = extractor.is_threaded
    pixels = probe_inputs(backbone.spec.preprocessing, extractor.batch_size)
    workers = (_usual_workers() if workers is None else workers) if in_threads else 1
    with extractor.ready(), _worker_pool(workers, on_one_core_each=in_threads) as pool:

        def round_of_batches() -> float:
            began = time.perf_counter()
            if in_threads:
                list(pool.map(lambda _: extractor.extract(pixels, FEATURES), range(workers)))
            else:
                extractor.extract(pixels, FEATURES)
            return time.perf_counter() - began

        round_of_batches()  # starts threads, allocates memory, loads kernels
        seconds = [round_of_batches()]
        while len(seconds) < PACE_ROUNDS and sum(seconds) < PACE_SECONDS:
            seconds.append(round_of_batches())
    return min(seconds) / (workers * len(pixels))
