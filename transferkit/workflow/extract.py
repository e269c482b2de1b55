"""The frozen pass of many processes: each puts the features of its own range of the images into the feature bank.

Nothing is known of the data as a whole, and no process waits for another: images are listed, inspected, run and
committed some thousand at a time, so memory does not grow with their number. The bank is the meeting place: its parts
are files that one process wrote, merged by their lists of content ids; whoever comes later finds what is there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import nn

from transferkit.core.distributed import launched_rank_and_world_size
from transferkit.core.errors import DataError, OptionError
from transferkit.core.progress import track
from transferkit.core.random import seed_everything
from transferkit.data import list_source
from transferkit.data.inventory import FileListing, FileReader
from transferkit.data.remembered import inspect_files
from transferkit.data.sources import is_builtin
from transferkit.features import Engines, Extractor, FeatureBank, TorchExtractor, choose_device
from transferkit.features.engines import stage_extractor
from transferkit.features.extraction import Need, fill_shelves, open_shelves
from transferkit.features.shelf import Shelf
from transferkit.features.tables import Ids
from transferkit.features.workers import default_workers
from transferkit.nn import Backbone
from transferkit.options import PassOptions
from transferkit.records import Preprocessing
from transferkit.workflow.checks import check_pass
from transferkit.workflow.session import open_backbone, open_bank
from transferkit.workflow.source_similarity import SAMPLE
from transferkit.workflow.views import apply_views, ask_views

__all__ = ["Extraction", "extract_features", "own_range"]

PART = 4096
"""Images that are committed together: what a killed process has to compute again, at most."""

LEAST_TRAINED = 0.5
"""Share of the images that are trained on, at least: similarity is measured on a sample of those."""


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What one process did.

    Args:
        rank, world: Which of how many it was.
        start, stop: Its images in the order of the listing, `stop` not among them.
        images: Number of images in all.
        computed: Its images that ran now; the others were in the bank. Copies run once if they are neighbours.
        unusable: Its images that cannot be used; the audit of analyze and adapt says which and why.
        shelves: Names of the bank's shelves that hold the features.
        seconds: Wall-clock time.
    """

    rank: int
    world: int
    start: int
    stop: int
    images: int
    computed: int
    unusable: int
    shelves: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        return (
            f"rank {self.rank} of {self.world}: {self.stop - self.start:,} of {self.images:,} images, "
            f"{self.computed:,} computed now in {self.seconds:,.0f} s"
            + (f", {self.unusable:,} cannot be used" if self.unusable else "")
        )


def own_range(images: int, rank: int, world: int) -> tuple[int, int]:
    """First image of a process, and the one behind its last: ranges of all ranks join without gap or overlap.

    Whole ranges of neighbours, not every `world`-th image: shards are read from front to back, each by as few
    processes as can be, and no process has more than one image more than another, whatever the size of shards.

    Example:
        >>> [own_range(10, rank, 3) for rank in range(3)]
        [(0, 3), (3, 6), (6, 10)]
    """
    return images * rank // world, images * (rank + 1) // world


def extract_features(
    model: str | nn.Module,
    data: str | Path,
    options: PassOptions | None = None,
    *,
    rank: int | None = None,
    world: int | None = None,
) -> Extraction:
    """Put the features of this process's images into the bank, where analyze, rank and adapt find them.

    A process that was killed is started again as it was: it goes on with what is missing. Another number of processes
    may go on as well.

    Args:
        model: As for `analyze`.
        data: Shards, a folder or a manifest.
        options: Those of `analyze`, for the same features; None for the defaults.
        rank, world: Which of how many processes this is; None: the environment's RANK and WORLD_SIZE, else 0 of 1.

    Raises:
        OptionError: Rank and number of processes do not fit each other, or the data is no files.
        DataError: The images cannot be listed, or are deeper than 8 bits.
        CacheError: The bank cannot be written, or is full.
        TransferkitError: Another of its kinds.

    Example:
        >>> done = extract_features("packaged/tf_efficientnet_lite0", "shards", rank=0, world=2)  # doctest: +SKIP
        >>> done.computed  # doctest: +SKIP
        100000
    """
    began = time.perf_counter()
    options = PassOptions() if options is None else options
    check_pass(options)
    rank, world = _checked(rank, world)
    bank = open_bank(options)
    listing = _listed(data, options, bank)
    start, stop = own_range(len(listing.files), rank, world)
    seed_everything(options.seed)
    passes = _ViewPasses(open_backbone(model, options), options, bank, images=stop - start)
    sample = _SmallestIds(_sample_size(world))
    computed = usable = 0
    parts = _inspected(listing, start, stop, options, bank)
    label = f"extracting, rank {rank} of {world}"
    for part in track(parts, label, total=-(-(stop - start) // PART), enabled=options.progress):
        usable += len(part.rows)
        sample.add(part)
        computed += passes.fill(part, "features")
    passes.fill(sample.part(listing), "moments")
    return Extraction(
        rank=rank,
        world=world,
        start=start,
        stop=stop,
        images=len(listing.files),
        computed=computed,
        unusable=stop - start - usable,
        shelves=passes.shelves,
        seconds=time.perf_counter() - began,
    )


def _checked(rank: int | None, world: int | None) -> tuple[int, int]:
    if rank is None and world is None:
        return launched_rank_and_world_size()
    if rank is None or world is None or not 0 <= rank < world:
        raise OptionError(f"rank must be in [0, world), and both be given or neither, got {rank!r} of {world!r}.")
    return rank, world


def _listed(data: Any, options: PassOptions, bank: FeatureBank) -> FileListing:
    if not isinstance(data, (str, Path)) or is_builtin(data):
        raise OptionError(
            f"Extraction is divided by files: expected shards, a folder or a manifest, got {data!r}. Of other data "
            "analyze extracts the features."
        )
    return list_source(data, root=options.root, columns=options.columns, cache=bank.folder)


@dataclass(frozen=True, eq=False)
class _Part:
    """Images that run together.

    Args:
        listing: Where they are from.
        rows: (n,) int64 in the listing, of those that can be used.
        ids: (n,) S32 content ids.
        max_pixels: As in `decode`.
    """

    listing: FileListing
    rows: npt.NDArray[np.int64]
    ids: npt.NDArray[np.bytes_]
    max_pixels: int

    def read(self, index: int, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
        """The picture of the image at `rows[index]` in a geometry."""
        file = self.listing.files[int(self.rows[index])]
        return FileReader([file], max_pixels=self.max_pixels).pixels(0, preprocessing)


def _inspected(listing: FileListing, start: int, stop: int, options: PassOptions, bank: FeatureBank) -> Iterator[_Part]:
    """The usable images, part by part; inspections go into the audit's cache, so that no process does them again."""
    found = inspect_files(listing.files[start:stop], max_pixels=options.max_pixels, folder=bank.folder)
    given = options.preprocessing is not None and options.preprocessing.value_range is not None
    for first in range(start, stop, PART):
        inspections = list(islice(found, min(PART, stop - first)))
        good = [at for at, one in enumerate(inspections) if not one.fault]
        deep = next((at for at in good if inspections[at].sketch is not None), None)
        if deep is not None and not given:
            raise DataError(
                f"{listing.files[first + deep]} is deeper than 8 bits: its black and white are measured over all "
                "training images, which no part knows. Run analyze, which measures them, or convert to 8 bits."
            )
        ids = np.array([inspections[at].content_id for at in good], dtype="S32")
        yield _Part(listing, first + np.array(good, dtype=np.int64), ids, options.max_pixels)


def _sample_size(world: int) -> int:
    """How many of its images with the smallest content ids a process must know, so that all together know the sample.

    The share of each among the smallest is binomial: four standard deviations more are enough.
    """
    share = SAMPLE / LEAST_TRAINED / world
    return math.ceil(share + 4 * math.sqrt(share)) + 1


class _SmallestIds:
    """The images with the smallest content ids so far: `choose_sample` takes these to measure similarity on."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows = np.empty(0, dtype=np.int64)
        self._ids = np.empty(0, dtype="S32")
        self._max_pixels = 0

    def add(self, part: _Part) -> None:
        """Take those of a part into account."""
        ids, rows = np.concatenate([self._ids, part.ids]), np.concatenate([self._rows, part.rows])
        self._ids, first = (column[: self._size] for column in np.unique(ids, return_index=True))
        self._rows, self._max_pixels = rows[first], part.max_pixels

    def part(self, listing: FileListing) -> _Part:
        """They as images that run together."""
        return _Part(listing, self._rows, self._ids, self._max_pixels)


class _ViewPass(NamedTuple):
    """One view: its preprocessing, what computes it, kind of rows -> shelf, and which of some ids it lacks."""

    preprocessing: Preprocessing
    extractor: TorchExtractor
    shelves: Mapping[str, Shelf]
    missing: Mapping[str, Callable[[Ids], npt.NDArray[np.int64]]]


class _ViewPasses:
    """The network in each view that is wanted, with the shelves that its rows go to.

    Args:
        backbone, options, bank: As `open_session` has them.
        images: How many this process has: room for them is made before the first.
    """

    def __init__(self, backbone: Backbone, options: PassOptions, bank: FeatureBank, *, images: int) -> None:
        self._bank, self._options = bank, options
        self._engines = Engines(options.engine, folder=bank.folder)
        self._workers = default_workers()
        asked = ask_views(options.geometry, options.views)
        own = backbone.spec.preprocessing
        wanted = apply_views(own, asked.start, asked.views or (asked.start,), mirror=asked.mirror)
        self._passes = [self._opened(backbone.with_preprocessing(view)) for view in wanted.each_view]
        shelves = [one.shelves["features"] for one in self._passes]
        bank.make_room(*((shelf, max(0, images - shelf.images)) for shelf in shelves))

    @property
    def shelves(self) -> tuple[str, ...]:
        """Names of the shelves that hold features."""
        return tuple(one.shelves["features"].folder.name for one in self._passes)

    def _opened(self, backbone: Backbone) -> _ViewPass:
        device = choose_device(self._options.device)
        moments = bool(backbone.source_moments())
        extractor = stage_extractor(backbone, pooling=self._options.pooling, moments=moments, device=device)
        shelves = open_shelves(self._bank, self._engines.identity(extractor))
        missing = {kind: shelf.missing_from_now() for kind, shelf in shelves.items()}
        return _ViewPass(backbone.spec.preprocessing, extractor, shelves, missing)

    def fill(self, part: _Part, kind: str) -> int:
        """Compute rows of one kind that these images lack; returns the number of images that ran, in any view.

        Moments are those of the first view; a network without batch normalisation needs none.
        """
        views = self._passes[:1] if kind == "moments" else self._passes
        return max((self._run(one, part, kind) for one in views if kind in one.shelves), default=0)

    def _run(self, view: _ViewPass, part: _Part, kind: str) -> int:
        def speed_up(first: npt.NDArray[Any], images: int, kinds: Collection[frozenset[str]]) -> Extractor:
            pooling = self._options.pooling
            return self._engines.extractor(
                view.extractor, first, images=images, kinds=kinds, pooling=pooling, workers=self._workers
            )

        return fill_shelves(
            view.extractor,
            lambda index: part.read(index, view.preprocessing),
            part.ids,
            {kind: Need(view.shelves[kind], view.missing[kind](part.ids))},
            bank=self._bank,
            batch_size=self._options.batch_size,
            workers=self._workers,
            speed_up=speed_up,
            divided=False,
        )
