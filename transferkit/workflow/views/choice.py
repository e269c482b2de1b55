"""Which views are averaged, by their cost, and which geometry is best as a single view, by held-back images.

Averaging features over several views was 2 points better than the crop alone on 18 small tasks, and a point worse at
most (scripts/bench_views.py). It costs a pass over the images for each view, when the data is measured and at every
prediction. So `views=auto` asks only what is affordable, at the pace that was measured on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from transferkit.core.distributed import broadcast
from transferkit.core.errors import DataError
from transferkit.core.score_text import format_score
from transferkit.data import Data
from transferkit.features import FeatureTable, FrozenPass, average_tables
from transferkit.measure import ResampledScore, fit_ridge, fitting_threads, resample_score, stratified_sample
from transferkit.probe import image_weights
from transferkit.records import GEOMETRIES, Folds, Preprocessing, ViewComparison, ViewScore
from transferkit.workflow.flip_check import FlipCheck, check_flip
from transferkit.workflow.views.asked import (
    ALONE_GEOMETRIES,
    MIRROR,
    AskedViews,
    apply_views,
    distinct_geometries,
    image_sizes,
    view_of,
    wanted_geometries,
)
from transferkit.workflow.views.words import explain

__all__ = ["AUTO_SECONDS", "Chosen", "choose_views"]

AUTO_SECONDS = 60.0
"""Seconds that all passes beyond the first may take together where geometry or views are left open: about 16,000
images at 96 px, each view counted, on two cores."""

BUDGET_SHARE = 0.5
"""Share of a budget that they may take: the rest is for the fit."""

COMPARED = 1000
"""Training images that views are compared on at most; a ridge fit to them takes half a second."""

COMPARED_PER_CLASS = 4
"""Least number of each class where there are many classes."""

CLEARLY = 2.0
"""Standard errors by which an average must be worse than the single view to be rejected, or another geometry better
than the first to replace it. With one, every sixth would differ by chance, and the best of several looks better than it
is."""

MIN_FLIPPED = 45
"""Held-back images below which mirroring cannot be shown to be safe (`flip_is_safe`)."""

FOLDS = 5

Indices = npt.NDArray[np.int64]


class Run(Protocol):
    """A frozen pass over the images `among`, in one view."""

    def __call__(self, *, preprocessing: Preprocessing, among: Indices) -> FrozenPass: ...


@dataclass(frozen=True)
class Chosen:
    """The views in use.

    Args:
        preprocessing: With the geometry of single-view work, and the views that are averaged, if several are.
        table: One row of features per image of the passes, averaged over the views.
        primary: The same of the geometry of single-view work alone.
        comparison: What was measured on the way; None if there was nothing to compare.
    """

    preprocessing: Preprocessing
    table: FeatureTable
    primary: FeatureTable
    comparison: ViewComparison | None


@dataclass
class _Passes:
    """Passes of several views over the images at `rows`, each run when it is first needed, and their seconds."""

    own: Preprocessing
    run: Run
    rows: Indices
    tables: dict[str, FeatureTable]
    seconds: dict[str, float]
    computed: dict[str, int]

    def over_all(self, name: str, *, mirrored: bool = False) -> FeatureTable:
        """Features of all images in this geometry."""
        label = view_of(name, self.own, mirrored=mirrored).name
        if label not in self.tables:
            self.tables[label] = self._timed(name, mirrored, self.rows)
        return self.tables[label]

    def over(self, name: str, among: Indices, *, mirrored: bool = False) -> FeatureTable:
        """Features of these images; only they are run, if not all were before."""
        label = view_of(name, self.own, mirrored=mirrored).name
        if label in self.tables:
            return self.tables[label].take(np.searchsorted(self.rows, among))
        return self._timed(name, mirrored, among)

    def _timed(self, name: str, mirrored: bool, among: Indices) -> FeatureTable:
        view = view_of(name, self.own, mirrored=mirrored)
        start = time.perf_counter()
        done = self.run(preprocessing=self.own.seen_as(view), among=among)
        self.seconds[view.name] = self.seconds.get(view.name, 0.0) + time.perf_counter() - start
        self.computed[view.name] = self.computed.get(view.name, 0) + done.computed
        return done.table


@dataclass(frozen=True)
class _ProbeResult:
    """Held-back predictions of the joined probe on one view, or an average of views.

    Args:
        right: (N,) whether each image is classified correctly while held back.
        counting: (N,) weight of each image.
        accuracy, squared_error: On held-back images.
        folds: Which images are held back together.
        resampled: The score of labels or numbers, which `accuracy` then is; None for classes.
    """

    right: npt.NDArray[np.bool_]
    counting: npt.NDArray[np.float64]
    accuracy: float
    squared_error: float
    folds: Folds
    resampled: ResampledScore | None = None

    def gain(self, other: _ProbeResult) -> tuple[float, float]:
        """Accuracy beyond that of the other, and its standard error, image by image."""
        if self.resampled is not None and other.resampled is not None:
            return self.accuracy - other.accuracy, self.resampled.gain_error(other.resampled)
        differences = self.right.astype(np.float64) - other.right
        return self.accuracy - other.accuracy, self.folds.standard_error(differences, self.counting)


def choose_views(
    asked: AskedViews,
    own: Preprocessing,
    data: Data,
    run: Run,
    *,
    among: Indices,
    first: FrozenPass,
    first_seconds: float,
    image_seconds: float,
    budget: float | None = None,
    class_weight: str = "none",
    seed: int = 0,
) -> Chosen:
    """The views to average and the geometry for single-view work, with the passes that this takes.

    Args:
        asked: Geometry and views that were asked for.
        own: The checkpoint's preprocessing, with one view.
        data: The images; only training images are compared.
        run: Runs a view.
        among: Sorted indices of the images whose features are wanted; all training images are among them.
        first: The pass over these in the geometry `asked.start`.
        first_seconds: Its seconds.
        image_seconds: Of one view of one image on this machine.
        budget: Seconds that everything after the first pass may take; None sets no limit but `AUTO_SECONDS`.
        class_weight: Of the probes.
        seed: Of the images that are compared, and of the folds.
    """
    start = asked.start
    passes = _Passes(own, run, among, {start: first.table}, {start: first_seconds}, {start: first.computed})
    if asked.geometry is not None and asked.views == () and not asked.mirror:
        return _single(asked.geometry, passes, image_seconds)
    allowed = AUTO_SECONDS if budget is None else min(AUTO_SECONDS, BUDGET_SHARE * budget)
    # Processes that share the passes must choose the same ones, and their clocks differ.
    image_seconds, allowed = broadcast((image_seconds, allowed))
    comparison = _Comparison(asked, data, passes, image_seconds, allowed, class_weight, seed)
    return comparison.choose()


def _single(name: str, passes: _Passes, image_seconds: float) -> Chosen:
    """One geometry, asked for by name: nothing is compared."""
    table, chosen = passes.over_all(name), apply_views(passes.own, name, [name], mirror=False)
    if name == "crop":
        return Chosen(chosen, table, table, None)
    score = ViewScore(name=name, seconds=passes.seconds[name], computed=passes.computed[name], used=True)
    said = (f"Geometry {name} was requested: {GEOMETRIES[name]}.",)
    found = ViewComparison(geometry=name, views=(name,), scores=(score,), image_seconds=image_seconds, reasons=said)
    return Chosen(chosen, table, table, found)


class _Comparison:
    """One choice, step by step: what is averaged, whether mirror images are, which geometry is best alone."""

    def __init__(
        self,
        asked: AskedViews,
        data: Data,
        passes: _Passes,
        image_seconds: float,
        allowed: float,
        class_weight: str,
        seed: int,
    ) -> None:
        self.asked, self.data, self.passes = asked, data, passes
        self.image_seconds, self.allowed = image_seconds, allowed
        self.class_weight, self.seed = class_weight, seed
        self.train = data.indices("train")
        self.folds = data.folds.take(self.train)
        self.sizes = image_sizes(data)
        self.compared = self._sample()
        self.left = allowed
        self.notes: list[str] = []

    def choose(self) -> Chosen:
        wanted = wanted_geometries(self.asked)
        names, same = distinct_geometries(wanted, self.passes.own, self.sizes)
        names, mirror, check = self._affordable(names)
        names = _in_order(names)
        candidates, same = self._candidates(names, same)
        scores = self._judge(names, candidates, mirror)
        names, mirror = self._without_worse(names, mirror, scores)
        geometry = self.asked.geometry or self._best_alone(candidates, scores)
        # Networks are trained and judged on the geometry, so that it is always one of the views they predict with.
        if len(names) == 1:
            names = (geometry,)
        elif geometry not in names:
            names = _in_order({*names, geometry})
            scores |= self._judge(names, (), mirror)
        tables = [
            self.passes.over_all(name, mirrored=m) for m in ((False, True) if mirror else (False,)) for name in names
        ]
        chosen = apply_views(self.passes.own, geometry, names, mirror=mirror)
        comparison = ViewComparison(
            geometry=geometry,
            views=tuple(view.name for view in chosen.views) or (geometry,),
            scores=self._rows(scores, joined_name(names, mirror)),
            images=len(self.compared) if any(score is not None for score in scores.values()) else 0,
            image_seconds=self.image_seconds,
        )
        said = explain(comparison, self.asked, same=same, mirror=check, notes=self.notes)
        return Chosen(
            chosen, average_tables(tables), self.passes.over_all(geometry), replace(comparison, reasons=tuple(said))
        )

    @property
    def measure(self) -> str:
        """Name of the score that is compared."""
        return self.data.summary.measure

    # ---- What is affordable -----------------------------------------------------------------------------------------

    @property
    def pass_seconds(self) -> float:
        """Of one view of all images, including those that are only scored: they are seen in every view as well."""
        return self.image_seconds * len(self.data)

    def _affordable(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], bool, FlipCheck | None]:
        """The geometries and whether mirror images are averaged; and the flip check."""
        if self.asked.views is not None:
            return names, self.asked.mirror, None
        possible = int(self.left / self.pass_seconds) if self.pass_seconds > 0 else len(GEOMETRIES) * 2
        taken = names[: 1 + possible]
        self.left -= self.pass_seconds * (len(taken) - 1)
        if len(taken) < len(names):
            self._limit(f"views=auto stops at {joined_name(taken, False)}", joined_name(names, False))
            return taken, False, None
        needed = self.pass_seconds * len(names)
        if needed > self.left:
            self._limit("Mirror images were not tried", joined_name(names, True), needed)
            return taken, False, None
        check = self._mirroring()
        if check is None or not check.safe:
            return taken, False, check
        self.left -= needed
        return taken, True, check

    def _limit(self, what: str, named: str, needed: float | None = None) -> None:
        seconds = self.pass_seconds if needed is None else needed
        self.notes.append(
            f"{what}: {'another pass' if needed is None else 'the passes'} would take about {seconds:.2g} s, and "
            f"{max(self.left, 0):.2g} s of the {self.allowed:.3g} s for further passes are left. To use them anyway: "
            f"views={named}."
        )

    def _mirroring(self) -> FlipCheck | None:
        """Whether mirror images may be averaged; None where that cannot be shown."""
        if len(self.train) < MIN_FLIPPED:
            return None
        try:
            folds = self.folds.split(FOLDS, seed=self.seed)
        except DataError:  # no class can spare an image
            return None
        start = self.asked.start
        return check_flip(
            self.passes.over(start, self.train),
            self.folds,
            lambda positions: self.passes.over(start, self.train[positions], mirrored=True),
            classes=self.data.summary.num_classes,
            folds=folds,
            seed=self.seed,
        )

    def _candidates(self, names: tuple[str, ...], same: dict[str, str]) -> tuple[tuple[str, ...], dict[str, str]]:
        """Geometries that are compared: those already run, and where none is asked for, all that are affordable; and
        which others show the same."""
        names = tuple(dict.fromkeys([self.asked.start, *names]))
        if self.asked.geometry is not None or self.asked.views:
            return names, same
        everything = list(dict.fromkeys([*names, *ALONE_GEOMETRIES]))
        distinct, same = distinct_geometries(everything, self.passes.own, self.sizes)
        further = [name for name in distinct if name not in names]
        cost = self.image_seconds * len(self.compared)
        possible = int(max(self.left, 0) / cost) if cost > 0 else len(further)
        self.left -= cost * min(possible, len(further))
        if possible < len(further):
            skipped = ", ".join(further[possible:])
            self.notes.append(
                f"Not compared, because of the time it would take: {skipped}. To use one: geometry={further[-1]}."
            )
        return (*names, *further[:possible]), same

    # ---- Accuracy on held-back images -------------------------------------------------------------------------------

    def _sample(self) -> Indices:
        """Training images that views are compared on, ordered so that those held back together are adjacent."""
        labels = self.folds.labels
        images = min(len(labels), max(COMPARED, COMPARED_PER_CLASS * len(np.unique(labels))))
        chosen = self.train[stratified_sample(labels, images, np.random.default_rng(self.seed))]
        return chosen[self.data.folds.take(chosen).order]

    def _judge(self, names: Sequence[str], candidates: Sequence[str], mirror: bool) -> dict[str, _ProbeResult | None]:
        """Name of a geometry or an average -> result of its probe; None for all where nothing can be compared."""
        ways = {name: [(name, False)] for name in candidates}
        if len(names) > 1:
            ways[joined_name(names, False)] = [(name, False) for name in names]
        if mirror:
            ways[joined_name(names, True)] = [(name, mirrored) for mirrored in (False, True) for name in names]
        folds = self.data.folds.take(self.compared)
        if (len(ways) == 1 and candidates) or not folds.measurable:
            return dict.fromkeys(ways)
        return {
            name: self._score([self.passes.over(geometry, self.compared, mirrored=m) for geometry, m in seen], folds)
            for name, seen in ways.items()
        }

    def _score(self, tables: Sequence[FeatureTable], folds: Folds) -> _ProbeResult | None:
        table = average_tables(tables)
        with fitting_threads(len(folds)):
            path = fit_ridge(
                table.chunks,
                folds.labels,
                table.blocks,
                classes=self.data.summary.num_classes,
                weights=image_weights(folds, self.class_weight),
                folds=folds,
            ).path
        if not path.known:
            return None
        best = path.best
        if folds.targets is not None and path.predicted is not None:
            found = resample_score(folds.targets, path.predicted[best], folds, counting=path.counting)
            error = float(path.squared_error[best])
            return _ProbeResult(path.right[best], path.counting, found.score, error, folds, found)
        return _ProbeResult(
            path.right[best], path.counting, float(path.accuracy[best]), float(path.squared_error[best]), folds
        )

    def _without_worse(
        self, names: tuple[str, ...], mirror: bool, scores: dict[str, _ProbeResult | None]
    ) -> tuple[tuple[str, ...], bool]:
        """The views that are averaged; of views=auto without those that are clearly worse than one view."""
        if self.asked.views is not None:
            return names, mirror
        alone = scores[self.asked.start]
        for several, mirrored in ((names, mirror), (names, False)):
            judged = scores.get(joined_name(several, mirrored))
            if alone is None or judged is None:
                return several, mirrored
            gain, error = judged.gain(alone)
            if gain >= -CLEARLY * error:
                return several, mirrored
            self.notes.append(
                f"The mean over {joined_name(several, mirrored)} was rejected: held-back {self.measure} "
                f"{format_score(judged.accuracy, self.measure)}, clearly below the "
                f"{format_score(alone.accuracy, self.measure)} of {self.asked.start}."
            )
        return (self.asked.start,), False

    def _best_alone(self, candidates: Sequence[str], scores: dict[str, _ProbeResult | None]) -> str:
        """The first pass's geometry, unless another is clearly better (`CLEARLY`)."""
        start = self.asked.start
        alone, best, lead = scores.get(start), start, 0.0
        for name in candidates:
            judged = scores.get(name)
            if alone is None or judged is None or name == start or name not in ALONE_GEOMETRIES:
                continue
            gain, error = judged.gain(alone)
            if gain > max(CLEARLY * error, lead) and judged.squared_error <= alone.squared_error:
                best, lead = name, gain
        return best

    def _rows(self, scores: dict[str, _ProbeResult | None], used: str) -> tuple[ViewScore, ...]:
        alone, passes = scores.get(self.asked.start), self.passes
        labels = list(dict.fromkeys([*scores, *passes.seconds]))
        return tuple(
            ViewScore(
                name=name,
                accuracy=None if (judged := scores.get(name)) is None else judged.accuracy,
                squared_error=None if judged is None else judged.squared_error,
                gain=None if judged is None or alone is None else judged.gain(alone)[0],
                gain_error=None if judged is None or alone is None else judged.gain(alone)[1],
                seconds=passes.seconds.get(name),
                computed=passes.computed.get(name, 0),
                used=name == used,
                measure=self.measure,
            )
            for name in labels
        )


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    """In the order of `GEOMETRIES`, so that the sum is the same bit for bit."""
    return tuple(sorted(names, key=list(GEOMETRIES).index))


def joined_name(names: Sequence[str], mirror: bool) -> str:
    """Names joined as in views=.

    Example:
        >>> joined_name(["crop", "pad"], True)
        'crop+pad+mirror'
    """
    return "+".join([*names, *([MIRROR] if mirror else [])])
