"""The frozen pass: images in, rows of the feature bank out; nothing is computed twice, whatever extracts it.

Cost: one forward pass over the images that the bank does not hold yet, and 4 D bytes of disk for each. On a CPU each
worker thread decodes and runs its own small batches on one core: small convolutions scale better over batches than
within one, decoding overlaps with computing, and activations stay in the core's cache. On an accelerator the workers
only decode.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from transferkit.core.distributed import local_rank_and_world_size
from transferkit.core.errors import BackboneError, CacheError
from transferkit.core.progress import track
from transferkit.features.bank import FeatureBank
from transferkit.features.device import choose_device
from transferkit.features.engines import CHECKED, Engines, stage_extractor
from transferkit.features.extractor import Extractor, Rows
from transferkit.features.identity import Identity
from transferkit.features.shelf import Shelf, Writer
from transferkit.features.tables import FeatureTable
from transferkit.features.workers import default_workers, in_order, worker_pool
from transferkit.nn.backbone import Backbone

__all__ = [
    "FrozenPass",
    "Need",
    "fill_shelves",
    "frozen_pass",
    "open_shelves",
    "run_extractor",
]

PATIENCE = 300.0
"""Seconds without a new row after which the processes that should compute it are considered dead."""

PAUSE = 0.2
"""Seconds between two checks of the bank for rows of other processes."""

Read = Callable[[int], npt.NDArray[Any]]

SpeedUp = Callable[[npt.NDArray[Any], int, Collection[frozenset[str]]], Extractor]
"""(some of the images, how many there are, sets of kinds of rows wanted together) -> what computes them."""


@dataclass(frozen=True)
class FrozenPass:
    """The rows of one pass.

    Args:
        table: One row of features per image.
        moments: One row of moments per sampled image; None if there was no sample.
        computed: Images that the backbone ran over; the others were in the bank.
        worker_seconds: "reading" images and "computing" rows -> seconds of all workers in this process; empty if
            nothing was computed.
    """

    table: FeatureTable
    moments: FeatureTable | None
    computed: int
    worker_seconds: Mapping[str, float] = field(default_factory=dict)


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


class _Loaded(NamedTuple):
    """A batch that has been read, the kinds of rows that it lacks, and the seconds that reading took."""

    pixels: npt.NDArray[Any]
    wanted: frozenset[str]
    seconds: float


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
    one_reader: bool = False,
    engines: Engines | None = None,
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
        workers: Threads; None takes one per core.
        one_reader: `read` is called by one thread only, as it cannot be called concurrently.
        engines: What else may compute the rows; None: only the network as it is.
        progress: Show a bar on a terminal.

    Returns:
        N rows of features in the order of `content_ids`, the moments of the sample in its order, and how many images
        ran now.

    Raises:
        CacheError: If the bank cannot be written.
        BackboneError: If a feature is not finite, or the network cannot take these images.
    """
    extractor = stage_extractor(backbone, pooling=pooling, moments=sample is not None, device=choose_device(device))
    workers = default_workers() if workers is None else workers

    def speed_up(first: npt.NDArray[Any], images: int, kinds: Collection[frozenset[str]]) -> Extractor:
        assert engines is not None
        return engines.extractor(extractor, first, images=images, kinds=kinds, pooling=pooling, workers=workers)

    return run_extractor(
        extractor,
        read,
        content_ids,
        bank=bank,
        sample=sample,
        batch_size=batch_size,
        workers=workers,
        one_reader=one_reader,
        identities=None if engines is None else engines.identity(extractor),
        speed_up=None if engines is None else speed_up,
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
    one_reader: bool = False,
    identities: Mapping[str, Identity] | None = None,
    speed_up: SpeedUp | None = None,
    label: str | None = None,
) -> FrozenPass:
    """Run an extractor of "features", and of "moments" if there is a sample, over what the bank lacks.

    Args:
        extractor: What computes the rows.
        read, content_ids, bank, sample, workers, one_reader: As for `frozen_pass`.
        batch_size: Images at once; None is the extractor's own.
        identities: The extractor's; None asks it.
        speed_up: Gives another extractor of the same rows, if there is anything to compute.
        label: Of the bar on a terminal; None shows none.

    Raises:
        CacheError, BackboneError: As for `frozen_pass`.
    """
    shelves = open_shelves(bank, extractor.identity() if identities is None else identities)
    needs = {"features": Need(shelves["features"], shelves["features"].missing(content_ids))}
    if sample is not None:
        needs["moments"] = Need(shelves["moments"], _unmeasured(shelves["moments"], content_ids, sample))
    spent: dict[str, float] = {}
    computed = fill_shelves(
        extractor,
        read,
        content_ids,
        needs,
        bank=bank,
        batch_size=batch_size,
        workers=workers,
        one_reader=one_reader,
        speed_up=speed_up,
        label=label,
        seconds=spent,
    )
    moments = None if sample is None else shelves["moments"].table(content_ids[sample])
    return FrozenPass(shelves["features"].table(content_ids), moments, computed, spent)


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


def fill_shelves(
    extractor: Extractor,
    read: Read,
    content_ids: npt.NDArray[np.bytes_],
    needs: Mapping[str, Need],
    *,
    bank: FeatureBank,
    batch_size: int | None = None,
    workers: int | None = None,
    one_reader: bool = False,
    speed_up: SpeedUp | None = None,
    divided: bool = True,
    label: str | None = None,
    seconds: dict[str, float] | None = None,
) -> int:
    """Compute the rows that shelves lack: one pass over the images, whatever kinds of rows they lack.

    Args:
        extractor: What computes the rows.
        read, content_ids, bank, batch_size, workers, one_reader, speed_up, label: As for `run_extractor`.
        needs: Kind of rows -> what is lacking.
        divided: Whether processes that were started together on this machine divide it among themselves and wait for
            each other; False computes all of it in this one.
        seconds: Gets what workers spent "reading" and "computing".

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
    own = _own_share(needs) if divided else needs
    if speed_up is not None:
        extractor, read = _sped_up(extractor, speed_up, read, own)
    batches = _batches(own, extractor.batch_size if batch_size is None else batch_size)
    workers = default_workers() if workers is None else workers
    with extractor.ready(), _writers(own) as writers:
        steps = track(batches, label or "", enabled=label is not None)
        spent = {} if seconds is None else seconds
        results = _run_all(extractor, read, batches, spent, workers=workers, readers=1 if one_reader else workers)
        with closing(results):  # after an error too: its threads would live on until it is collected, in any thread
            for batch, rows in zip(steps, results, strict=True):
                for kind in batch.wanted:
                    _check_finite(rows[kind], own[kind].shelf, extractor.name)
                    writers[kind].append(content_ids[batch.positions], rows[kind])
    if divided:
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


def _sped_up(extractor: Extractor, speed_up: SpeedUp, read: Read, needs: Mapping[str, Need]) -> tuple[Extractor, Read]:
    """Another extractor for the images that this process computes; and `read`, for which the first few are kept."""
    batches = _batches(needs, CHECKED)
    if not batches:
        return extractor, read
    kept = {int(position): read(int(position)) for position in batches[0].positions}
    images = sum(len(batch.positions) for batch in batches)
    extractor = speed_up(np.stack(list(kept.values())), images, {batch.wanted for batch in batches})

    def read_once(index: int) -> npt.NDArray[Any]:
        pixels = kept.pop(index, None)
        return read(index) if pixels is None else pixels

    return extractor, read_once


def _run_all(
    extractor: Extractor,
    read: Read,
    batches: Sequence[_Batch],
    spent: dict[str, float],
    *,
    workers: int,
    readers: int,
) -> Generator[Rows, None, None]:
    """The rows of each batch, in order; what workers `spent` is added up.

    Reading and computing are one step of a worker if both may run in several threads; else the readers work ahead.
    """

    def load(batch: _Batch) -> _Loaded:
        began = time.perf_counter()
        pixels = np.stack([read(int(index)) for index in batch.positions])
        return _Loaded(pixels, batch.wanted, time.perf_counter() - began)

    def extract(loaded: _Loaded) -> tuple[Rows, float, float]:
        began = time.perf_counter()
        rows = extractor.extract(loaded.pixels, loaded.wanted)
        return rows, loaded.seconds, time.perf_counter() - began

    with worker_pool(workers, on_one_core_each=extractor.is_threaded) as pool, ExitStack() as stack:
        done: Iterable[tuple[Rows, float, float]]
        if extractor.is_threaded and readers == workers:
            done = in_order(pool, lambda batch: extract(load(batch)), batches, ahead=2 * workers)
        else:
            reading = stack.enter_context(worker_pool(readers, on_one_core_each=False))
            loaded = in_order(reading, load, batches, ahead=2 * workers)
            in_threads = extractor.is_threaded
            done = in_order(pool, extract, loaded, ahead=2 * workers) if in_threads else map(extract, loaded)
        for rows, reading_seconds, computing_seconds in done:
            spent["reading"] = spent.get("reading", 0.0) + reading_seconds
            spent["computing"] = spent.get("computing", 0.0) + computing_seconds
            yield rows
