"""Which engine runs a frozen pass: chosen by the work there is and by measured speeds, checked before it is used."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import OptionError, unknown_name
from transferkit.features.engines.check import Agreement, compare_rows
from transferkit.features.engines.engine import ENGINES, EngineExtractor, EngineJob, Run, is_installed, require
from transferkit.features.engines.speeds import Speed, SpeedRecord, machine_key
from transferkit.features.engines.torch import Fingerprint, Kind, TorchExtractor
from transferkit.features.extractor import FEATURES, Extractor
from transferkit.features.forward import describe_error
from transferkit.features.identity import Identity, closeness
from transferkit.features.pace import image_rate
from transferkit.nn.backbone import Backbone
from transferkit.nn.cost import count_operations
from transferkit.nn.inference import for_inference
from transferkit.nn.model import normalise
from transferkit.records import EngineUse

__all__ = ["CHECKED", "Engines", "check_engine"]

log = logging.getLogger("transferkit")

EAGER = "eager"
"""The network as it is, which every engine is checked against."""

CHECKED = 8
"""Images that an engine is checked on."""

LEAST_SAME_CLASS = 0.999
"""Smallest share of images that must get the same class: of `CHECKED`, all."""

AS_FAST = 1.15
"""Engines within this factor of the fastest count as equally fast: what another job does must not change the choice."""

FOLD_WORK = 25e9
"""Operations below which the network runs as it is: what simplifying saves is less than its 0.1 seconds."""

FEWEST_PIXELS = 3 * 10**6
"""The same in values of the images, before operations are counted: 108 images of 96 px."""

TRIAL_WORK = 200e9
"""The same per core for opening and timing further engines, about 2 seconds."""


LONG = 1.5
"""Seconds to open an engine from which on it is not opened for other batch sizes, which change its speed little."""


class Mismatch(Exception):
    """An engine gives other rows than the network itself."""


@dataclass(frozen=True, eq=False)
class _Pass:
    """What is to be run.

    Args:
        reference: The network itself.
        first: (n, 3, H, W), some of the images.
        kinds: Sets of kinds of rows that are asked for together.
        pooling: Of the features.
        workers: Threads that compute.
    """

    reference: TorchExtractor
    first: npt.NDArray[Any]
    kinds: tuple[frozenset[str], ...]
    pooling: str
    workers: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(3, H, W)."""
        return self.first.shape[1:]

    def batch(self, size: int) -> npt.NDArray[Any]:
        """So many images, repeated as needed."""
        return np.resize(self.first, (size, *self.shape))

    @property
    def subject(self) -> tuple[object, ...]:
        """What an engine that was opened stays valid for."""
        return (*self.reference.subject, self.shape, self.first.dtype, self.pooling)


@dataclass
class _Opened:
    """An engine in use.

    Args:
        name: Its name.
        batch_size: Images at once.
        use: How it was checked.
        runs: Kinds of rows -> what computes them.
    """

    name: str
    batch_size: int
    use: EngineUse
    runs: dict[frozenset[str], Run] = field(default_factory=dict)


class Engines:
    """What runs the frozen passes over one data set: an engine that is opened and checked once, and used again.

    Which one "auto" takes depends on the work there is and on speeds measured on this machine before, not on how busy
    it is now: only the first large pass of a network at its size measures them.

    Args:
        asked: "auto", "eager" or a name in `ENGINES`.
        folder: Where speeds are remembered; None remembers none.

    Attributes:
        use: The engine in use and how it was checked; None if the network ran as it is, or not at all.

    Raises:
        OptionError: If there is no such engine.
        MissingDependencyError: If a package of it is not installed.
    """

    def __init__(self, asked: str = "auto", *, folder: Path | None = None) -> None:
        check_engine(asked)
        self._asked = asked
        self._speeds = SpeedRecord(folder)
        self._images = self._operations = 0
        self._subject: tuple[object, ...] = ()
        self._simple: Backbone | None = None
        self._opened: _Opened | None = None
        self._refused: dict[str, str] = {}
        self._measured: Mapping[str, Speed] | None = None
        self._known: tuple[tuple[object, ...], Mapping[str, Kind], Fingerprint] | None = None

    def identity(self, reference: TorchExtractor) -> Mapping[str, Identity]:
        """The identity of a network's rows; what the network is, is found out in its first pass only."""
        known = self._known
        if known is None or known[0] != reference.subject or not reference.kinds.items() <= known[1].items():
            known = self._known = (reference.subject, reference.kinds, reference.fingerprint())
        return reference.identity(known[2])

    @property
    def use(self) -> EngineUse | None:
        """How the engine in use was checked."""
        return None if self._opened is None else self._opened.use

    def extractor(
        self,
        reference: TorchExtractor,
        first: npt.NDArray[Any],
        *,
        images: int,
        kinds: Collection[frozenset[str]],
        pooling: str,
        workers: int,
    ) -> Extractor:
        """What is to compute the rows of a pass.

        Args:
            reference: The network itself.
            first: (n, 3, H, W), some of the images, of which `CHECKED` are compared.
            images: How many there are.
            kinds: Sets of kinds of rows that will be asked for together.
            pooling: Of the features.
            workers: Threads that will compute.
        """
        run = _Pass(reference, np.ascontiguousarray(first[:CHECKED]), tuple(kinds), pooling, workers)
        if run.subject != self._subject:
            self._subject, self._images, self._operations = run.subject, 0, 0
            self._simple = self._opened = self._measured = None
        self._images += images
        opened, sizes = self._opened, self._preferred(run)
        is_open = opened is not None and opened.name == next(iter(sizes), None) and opened.runs.keys() >= set(run.kinds)
        if not is_open:
            with reference.ready():
                opened = self._open_first_of(run, sizes)
        if opened is None:
            return reference
        return EngineExtractor(reference, opened.runs, shape=run.shape, batch_size=opened.batch_size)

    def _preferred(self, run: _Pass) -> dict[str, int]:
        """Engine -> batch size, in the order in which they are to be tried; after them the network as it is."""
        sizes = self._all_preferred(run)
        return {name: size for name, size in sizes.items() if name not in self._refused}

    def _all_preferred(self, run: _Pass) -> dict[str, int]:
        """The same with those that could not be used."""
        default = run.reference.batch_size
        if self._asked == EAGER:
            return {}
        if self._asked != "auto":
            return {self._asked: default, "torch": default}
        pixels = self._images * math.prod(run.shape)
        if pixels < FEWEST_PIXELS:
            return {}
        self._operations = self._operations or count_operations(run.reference.backbone)
        work = self._images * self._operations
        if work < FOLD_WORK:
            return {}
        if work < TRIAL_WORK * run.workers or run.reference.device.type != "cpu":
            return {"torch": default}
        if self._measured is None:
            with run.reference.ready():
                self._measured = self._measure(run)
        order = _by_speed(self._measured, self._images)
        return {name: self._measured[name].batch_size for name in order}

    def _open_first_of(self, run: _Pass, sizes: Mapping[str, int]) -> _Opened | None:
        """The first engine that can be opened and agrees with the network; None if there is none."""
        opened = (self._open_or_refuse(run, name, size) for name, size in sizes.items())
        self._opened = next((one for one in opened if one is not None), None)
        return self._opened

    def _open_or_refuse(self, run: _Pass, name: str, size: int) -> _Opened | None:
        try:
            return self._open(run, name, size)
        except Exception as error:
            reason = str(error) if isinstance(error, Mismatch) else f"it raised {describe_error(error)}"
            self._refused[name] = reason
            log.warning("The engine %s is not used for %s: %s.", name, run.reference.name, reason)
            return None

    def _open(self, run: _Pass, name: str, size: int) -> _Opened:
        """The engine for these kinds of rows, checked on some of the images.

        Raises:
            Mismatch: If it gives other rows than the network.
            Exception: Whatever it raises.
        """
        opened = self._opened
        if opened is None or (opened.name, opened.batch_size) != (name, size):
            opened = _Opened(name, size, EngineUse(name=name))
        for kinds in run.kinds:
            if kinds in opened.runs:
                continue
            began = time.perf_counter()
            opened.runs[kinds] = ENGINES[name].open(self._job(run, kinds, size))
            agreement = _check(run, kinds, opened.runs[kinds])
            opened.use = _noted(opened.use, agreement, time.perf_counter() - began, tuple(self._reasons()))
        return opened

    def _reasons(self) -> Iterator[str]:
        for name, reason in self._refused.items():
            yield f"The engine {name} was not used: {reason}."

    def _job(self, run: _Pass, kinds: frozenset[str], size: int) -> EngineJob:
        backbone, device = run.reference.backbone, run.reference.device
        if self._simple is None:
            image = normalise(torch.from_numpy(run.first[:1]).to(device), backbone.spec.preprocessing)
            self._simple = for_inference(backbone, image)
        return EngineJob(self._simple, run.pooling, tuple(sorted(kinds)), run.batch(size), device, run.workers)

    def _measure(self, run: _Pass) -> Mapping[str, Speed]:
        """The speed of every engine that can be used, from the record or measured now."""
        key = machine_key(run.reference, run.shape, run.pooling, run.workers)
        known = self._speeds.load(key)
        if known is None:
            known = {name: speed for name in ENGINES if (speed := self._try_out(run, name)) is not None}
            self._speeds.store(key, known)
        return known

    def _try_out(self, run: _Pass, name: str) -> Speed | None:
        """The speed of an engine at the best of three batch sizes; at the default one alone if opening it takes long.

        None if it cannot be used.
        """
        if name in self._refused or not (ENGINES[name].automatic and is_installed(name)):
            return None
        run, default = replace(run, kinds=(FEATURES,)), run.reference.batch_size
        tried = []
        for size in dict.fromkeys([default, max(1, default // 2), 2 * default]):
            opened = self._open_first_of(run, {name: size})
            if opened is None:
                return None
            rate = image_rate(opened.runs[FEATURES], run.batch(size), workers=run.workers)
            tried.append(Speed(rate, size, opened.use.seconds))
            if opened.use.seconds > LONG:
                break
        return max(tried, key=lambda speed: speed.images_per_second)


def _by_speed(speeds: Mapping[str, Speed], images: int) -> list[str]:
    """Fastest first; those as fast as the fastest but for noise come in the order of their names."""
    seconds = {name: speed.seconds(images) for name, speed in speeds.items()}
    limit = AS_FAST * min(seconds.values(), default=0.0)
    return sorted(seconds, key=lambda name: (max(seconds[name], limit), name))


def check_engine(name: str) -> None:
    """Check that an engine can be asked for here.

    Raises:
        OptionError: If there is no such engine.
        MissingDependencyError: If a package of it is not installed.
    """
    if name in ("auto", EAGER):
        return
    if name not in ENGINES:
        raise OptionError(unknown_name("engine", name, ["auto", EAGER, *ENGINES]))
    require(name)


def _check(run: _Pass, kinds: frozenset[str], compute: Run) -> Agreement:
    expected = run.reference.extract(run.first, kinds)
    agreement = compare_rows(run.reference, expected, compute(run.first))
    allowed = closeness(run.reference.device)
    if agreement.difference > allowed or agreement.same_class < LEAST_SAME_CLASS:
        raise Mismatch(
            f"on {agreement.images} of the images its features differ by up to {agreement.difference:.1e} of the "
            f"largest ({allowed:.0e} is allowed), and {agreement.same_class:.0%} of the classes are the same"
        )
    return agreement


def _noted(use: EngineUse, agreement: Agreement, seconds: float, reasons: tuple[str, ...]) -> EngineUse:
    """The worst of all checks, and the seconds of all."""
    return replace(
        use,
        images=agreement.images,
        difference=max(use.difference, agreement.difference),
        same_class=min(use.same_class, agreement.same_class),
        seconds=use.seconds + seconds,
        reasons=reasons,
    )
