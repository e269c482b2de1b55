"""Backbone and data -> Evidence: one frozen pass, and every measurement made from it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from transferkit.core.distributed import connect, local_rank_and_world_size
from transferkit.core.intervals import TWO_SIDED, wilson_interval
from transferkit.core.timing import timed
from transferkit.data import Data
from transferkit.features import (
    Engines,
    FeatureBank,
    FeatureTable,
    FrozenPass,
    average_tables,
    choose_device,
    frozen_pass,
)
from transferkit.measure import (
    RidgePath,
    Selection,
    fitting_threads,
    knn_hits,
    learning_curves,
    measure_data_need,
    resample_score,
    ridge_paths,
    select_features,
)
from transferkit.nn import Backbone
from transferkit.options import PassOptions
from transferkit.probe import image_weights
from transferkit.records import JOINED, SELECTED, TOP, CurvePoint, DataNeed, Evidence, Folds, Preprocessing, ProbeScore
from transferkit.workflow.paces import measure_paces
from transferkit.workflow.source_similarity import Side, choose_sample, measure_similarity
from transferkit.workflow.views import AskedViews, Chosen, apply_views, choose_views, refuse_for_tensors

__all__ = ["Measurement", "measure_features", "probe_stages", "read_features"]

NEIGHBOURS = 5
NEIGHBOUR_IMAGES = 4096
"""k-NN is a sanity check: this many images give it to within 1.6 points, and its cost grows with the square."""


@dataclass(frozen=True)
class Measurement:
    """Evidence from one frozen pass, with the features it rests on.

    Args:
        evidence: The measurements.
        rows: (M,) sorted indices of the images that were run: those of the training and the validation split.
        table: Their features, averaged over their views.
        primary: The same in the geometry that networks are trained on, a single view.
        folds: Labels of the N training images, and which of them are held back together.
        train: (N,) indices of the training images in the data.
        selection: Weights of the features of all stages joined, and which were left out.
        since: Reading of `time.monotonic` at the end of the first pass, from which a budget counts.
    """

    evidence: Evidence
    rows: npt.NDArray[np.int64]
    table: FeatureTable
    primary: FeatureTable
    folds: Folds
    train: npt.NDArray[np.int64]
    selection: Selection
    since: float = 0.0

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) of the training images."""
        return self.folds.labels

    def features(self, indices: npt.NDArray[np.int64]) -> FeatureTable:
        """Features of these images, averaged over their views."""
        return self.table.take(np.searchsorted(self.rows, indices))

    def primary_features(self, indices: npt.NDArray[np.int64]) -> FeatureTable:
        """Features of these images in the view that networks are trained on."""
        return self.primary.take(np.searchsorted(self.rows, indices))


def measure_features(
    backbone: Backbone,
    data: Data,
    options: PassOptions,
    *,
    bank: FeatureBank,
    engines: Engines | None = None,
    source: Data | None = None,
    views: AskedViews | None = None,
    budget: float | None = None,
    trains: bool = True,
    seconds: Mapping[str, float] | None = None,
) -> Measurement:
    """Run the frozen pass over training and validation images, and measure on the former alone.

    Test images are run when they are scored: nothing is measured on them.

    Args:
        backbone, data: What to measure.
        options: How; a `similarity` given there wins over what is measured.
        bank: Where features are kept.
        engines: What may compute them; None: as the options say.
        source: Images of the kind that the backbone was trained on, if there are some.
        views: Geometry and views that are wanted; None takes those of the backbone's preprocessing as they are.
        budget: Seconds that everything after the first pass may take.
        trains: Whether a network may be trained, so that it matters how long that takes.
        seconds: Phases that came before, to be listed with these.
    """
    spent = dict(seconds or {})
    engines = Engines(options.engine, folder=bank.folder) if engines is None else engines
    read = partial(
        read_features,
        bank=bank,
        pooling=options.pooling,
        device=options.device,
        batch_size=options.batch_size,
        engines=engines,
        progress=options.progress,
    )
    if views is not None and data.normalised:
        refuse_for_tensors(views)
        views = None
    own = backbone.spec.preprocessing
    if views is not None:
        backbone = backbone.with_preprocessing(apply_views(own, views.start, [views.start], mirror=False))
    run = partial(read, backbone)
    train = data.indices("train")
    rows = np.sort(np.concatenate([train, data.indices("val")]))
    with timed(spent, "frozen pass"):
        first, target, other = _first_pass(run, backbone, data, rows, source)
    since = time.monotonic()
    with timed(spent, "pace"):
        paces = measure_paces(backbone, options, folder=bank.folder, images=len(train), trains=trains)
    with timed(spent, "similarity"):
        detail = measure_similarity(backbone, target, source=other, given=options.similarity)
    seen = _see(
        views, own, data, run, options, rows=rows, first=first, pace=paces.image_seconds, budget=budget, seconds=spent
    )
    backbone = backbone.with_preprocessing(seen.preprocessing)
    folds = data.folds.take(train)
    probes, curves, selection = _measure(
        seen.table.take(np.searchsorted(rows, train)),
        folds,
        classes=data.summary.num_classes,
        class_weight=options.class_weight,
        seed=options.seed,
        seconds=spent,
    )
    evidence = Evidence(
        backbone=backbone.spec,
        data=data.summary,
        probes=probes,
        pooling=options.pooling,
        image_size=backbone.spec.preprocessing.size,
        similarity=detail.value,
        similarity_detail=detail,
        seconds=spent,
        images_computed=first.computed,
        image_seconds=paces.image_seconds,
        step_seconds=paces.step_seconds,
        curves=curves,
        data_need=_more_images(curves, folds, options.seed),
        views=seen.comparison,
        engine=engines.use,
        worker_seconds=first.worker_seconds,
    )
    return Measurement(evidence, rows, seen.table, seen.primary, folds, train, selection, since)


def _more_images(curves: tuple[CurvePoint, ...], folds: Folds, seed: int) -> DataNeed | None:
    """What more images would bring; None for labels and numbers: what is known of learning curves is of accuracies."""
    return None if folds.targets is not None else measure_data_need(curves, stage=JOINED, folds=folds, seed=seed)


def _first_pass(
    run: Callable[..., FrozenPass],
    backbone: Backbone,
    data: Data,
    rows: npt.NDArray[np.int64],
    source: Data | None,
) -> tuple[FrozenPass, Side, Side | None]:
    """The pass over the images at `rows` and a sample of the source images; what similarity is measured between."""
    sample = choose_sample(data.content_ids, data.indices("train"))
    positions = np.searchsorted(rows, sample)
    # Without statistics of a source and without source images there is nothing to compare moments with.
    comparable = source is not None or bool(backbone.source_moments())
    done = run(data, among=rows, sample=positions if comparable else None)
    other = None if source is None else _pass_over_source(run, source)
    return done, Side(done.moments, done.table.take(positions), data.labels[sample]), other


def _see(
    views: AskedViews | None,
    own: Preprocessing,
    data: Data,
    run: Callable[..., FrozenPass],
    options: PassOptions,
    *,
    rows: npt.NDArray[np.int64],
    first: FrozenPass,
    pace: float,
    budget: float | None,
    seconds: dict[str, float],
) -> Chosen:
    """Geometry and views: as they are, or chosen on held-back images."""
    if views is None:
        primary = run(data, preprocessing=own.primary, among=rows).table if own.views else first.table
        return Chosen(own, first.table, primary, None)
    if local_rank_and_world_size()[1] > 1:
        connect(choose_device(options.device))  # each process has a clock of its own, and all must decide alike
    with timed(seconds, "views"):
        return choose_views(
            views,
            own,
            data,
            partial(run, data),
            among=rows,
            first=first,
            first_seconds=seconds["frozen pass"],
            image_seconds=pace,
            budget=budget,
            class_weight=options.class_weight,
            seed=options.seed,
        )


def _measure(
    known: FeatureTable,
    folds: Folds,
    *,
    classes: int,
    class_weight: str,
    seed: int,
    seconds: dict[str, float],
) -> tuple[tuple[ProbeScore, ...], tuple[CurvePoint, ...], Selection]:
    """Probes, learning curves and selected features of the training images, in closed form."""
    labels = folds.labels
    weights = image_weights(folds, class_weight)
    with fitting_threads(len(labels)):
        with timed(seconds, "probe"):
            probes, paths = probe_stages(known, folds, classes=classes, class_weight=class_weight, seed=seed)
        with timed(seconds, "selection"):
            chosen = select_features(
                known.chunks, labels, known.blocks, classes=classes, weights=weights, folds=folds, seed=seed
            )
            ridge = [score for score in probes if score.method == "ridge"]
            probes = (*ridge, _selected_score(chosen, paths[JOINED], folds), *probes[len(ridge) :])
        with timed(seconds, "learning curves"):
            curves = learning_curves(known.chunks, labels, known.blocks, paths, weights=weights, folds=folds, seed=seed)
    return probes, curves, chosen


def _pass_over_source(run: Callable[..., FrozenPass], source: Data) -> Side:
    """The pass over a sample of the source images, whatever their split."""
    among = choose_sample(source.content_ids, np.arange(len(source)))
    done = run(source, among=among, sample=np.arange(len(among)))
    assert done.moments is not None
    return Side(done.moments, done.table, source.labels[among])


class ImageSource(Protocol):
    """Images with an identity: labelled `Data`, or others."""

    @property
    def content_ids(self) -> npt.NDArray[np.bytes_]:
        """(N,) S32."""
        ...

    @property
    def thread_safe(self) -> bool:
        """Whether they may be read from several threads at once."""
        ...

    def pixels(self, index: int, preprocessing: Preprocessing) -> npt.NDArray[Any]:
        """As `Data.pixels`."""
        ...

    def __len__(self) -> int: ...


def read_features(
    backbone: Backbone,
    data: ImageSource,
    *,
    bank: FeatureBank,
    pooling: str,
    device: str = "auto",
    batch_size: int | None = None,
    engines: Engines | None = None,
    preprocessing: Preprocessing | None = None,
    among: npt.NDArray[np.int64] | None = None,
    sample: npt.NDArray[np.int64] | None = None,
    progress: bool = True,
) -> FrozenPass:
    """The frozen pass over all images of the data, or those `among`; `sample` as for `frozen_pass`.

    With several views a pass each: features are their mean, moments those of the first view, and an image counts as
    computed if it was for any of them.

    Args:
        backbone, data: The network and the images.
        bank, pooling, device, batch_size, engines, sample, progress: As for `frozen_pass`.
        preprocessing: Other preprocessing than the backbone's; None takes that.
        among: Indices of the images; None: all.
    """
    wanted = backbone.spec.preprocessing if preprocessing is None else preprocessing
    rows = np.arange(len(data)) if among is None else among

    def run(view: Preprocessing, sample: npt.NDArray[np.int64] | None) -> FrozenPass:
        def read(index: int) -> npt.NDArray[Any]:
            return data.pixels(int(rows[index]), view)

        return frozen_pass(
            backbone.with_preprocessing(view),
            read,
            data.content_ids[rows],
            bank=bank,
            pooling=pooling,
            device=device,
            batch_size=batch_size,
            sample=sample,
            one_reader=not data.thread_safe,
            engines=engines,
            progress=progress,
        )

    done = [run(view, None if number else sample) for number, view in enumerate(wanted.each_view)]
    table = average_tables([one.table for one in done])
    parts = {part: None for one in done for part in one.worker_seconds}
    spent = {part: sum(one.worker_seconds.get(part, 0.0) for one in done) for part in parts}
    return FrozenPass(table, done[0].moments, max(one.computed for one in done), spent)


def probe_stages(
    known: FeatureTable, folds: Folds, *, classes: int, class_weight: str = "none", seed: int = 0
) -> tuple[tuple[ProbeScore, ...], dict[str, RidgePath]]:
    """Held-back scores of every stage, of all joined and of k-NN (of classes only), and the ridge paths behind them.

    Args:
        known: Rows of the N training images.
        folds: Their labels, (N,) int in [0, K), and which of them are held back together.
        classes: K.
        class_weight: "none" or "balanced", for the ridge rows.
        seed: Of the k-NN subsample.
    """
    weights, order = image_weights(folds, class_weight), folds.order
    with fitting_threads(len(folds)):
        paths = ridge_paths(
            known.take(order).chunks,
            folds.labels[order],
            known.blocks,
            classes=classes,
            weights=None if weights is None else weights[order],
            folds=folds.take(order),
        )
    paths = {name: path.sorted_back(order) for name, path in paths.items()}
    widths = {name: block.stop - block.start for name, block in known.blocks.items()}
    rows = [
        _ridge_score(name, path, widths.get(name, known.width), paths[JOINED], folds) for name, path in paths.items()
    ]
    neighbours = [] if folds.targets is not None else [_neighbour_score(known, folds, seed)]
    return (*rows, *neighbours), paths


def _score(
    stage: str, method: str, dim: int, accuracy: float, images: float, penalty: float, **more: Any
) -> ProbeScore:
    """A score with its interval, or an unknown one where no independent image is held back."""
    if images == 0:
        return ProbeScore(stage=stage, method=method, dim=dim, accuracy=None, low=None, high=None, penalty=penalty)
    low, high = wilson_interval(accuracy * images, images)
    return ProbeScore(
        stage=stage,
        method=method,
        dim=dim,
        accuracy=accuracy,
        low=low,
        high=high,
        penalty=penalty,
        images=images,
        **more,
    )


def _ridge_score(stage: str, path: RidgePath, dim: int, joined: RidgePath, folds: Folds) -> ProbeScore:
    if folds.targets is not None:
        return _target_score(stage, path, dim, joined, folds)
    right, best = path.right[path.best], path.best
    differences = right.astype(np.float64) - joined.right[joined.best]
    return _score(
        stage,
        "ridge",
        dim,
        float(path.accuracy[best]),
        folds.independent(right, path.counting),
        float(path.penalties[best]),
        squared_error=float(path.squared_error[best]),
        gain_error=0.0 if stage == JOINED else folds.standard_error(differences, path.counting),
    )


def _target_score(stage: str, path: RidgePath, dim: int, joined: RidgePath, folds: Folds) -> ProbeScore:
    """Of labels or numbers, with the interval and the paired error of resampled groups."""
    assert folds.targets is not None
    assert path.predicted is not None
    assert joined.predicted is not None
    best = path.best
    found = resample_score(folds.targets, path.predicted[best], folds, counting=path.counting)
    base = resample_score(folds.targets, joined.predicted[joined.best], folds, counting=path.counting)
    if not found.known:
        return _score(stage, "ridge", dim, 0.0, 0.0, float(path.penalties[best]))
    low, high = found.interval
    return ProbeScore(
        stage=stage,
        method="ridge",
        dim=dim,
        accuracy=found.score,
        low=low,
        high=high,
        squared_error=float(path.squared_error[best]),
        penalty=float(path.penalties[best]),
        gain_error=0.0 if stage == JOINED else found.gain_error(base),
        images=folds.independent(path.right[best], path.counting),
        measure=folds.targets.measure,
    )


def _selected_score(chosen: Selection, joined: RidgePath, folds: Folds) -> ProbeScore:
    """The score of the joined stages, plus the gain by selection where both are cross-validated.

    The folds' own accuracy is that of a fit to four fifths of the images, not comparable with the other rows.
    """
    if folds.targets is not None:
        return _selected_target_score(chosen, joined, folds)
    best = joined.best
    images = folds.independent(joined.right[best], joined.counting) if chosen.known else 0.0
    return _score(
        SELECTED,
        "ridge",
        chosen.kept,
        min(1.0, max(0.0, float(joined.accuracy[best]) + chosen.gain)) if images else 0.0,
        images,
        chosen.penalty,
        squared_error=max(0.0, float(joined.squared_error[best]) + chosen.error_gain),
        gain_error=chosen.gain_error,
    )


def _selected_target_score(chosen: Selection, joined: RidgePath, folds: Folds) -> ProbeScore:
    base = _target_score(JOINED, joined, chosen.kept, joined, folds)
    if base.accuracy is None or base.squared_error is None or not chosen.known:
        return replace(base, stage=SELECTED, accuracy=None, low=None, high=None, penalty=chosen.penalty)
    score, (middle, low, high) = min(1.0, base.accuracy + chosen.gain), base.interval
    margin = TWO_SIDED * chosen.gain_error
    return replace(
        base,
        stage=SELECTED,
        accuracy=score,
        low=score - math.hypot(middle - low, margin),
        high=min(1.0, score + math.hypot(high - middle, margin)),
        squared_error=max(0.0, base.squared_error + chosen.error_gain),
        penalty=chosen.penalty,
        gain_error=chosen.gain_error,
    )


def _neighbour_score(table: FeatureTable, folds: Folds, seed: int) -> ProbeScore:
    """k-NN at the top stage, on a random sample of the training images if there are many."""
    images = min(len(folds), NEIGHBOUR_IMAGES)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(folds))[:images])
    features, sampled = table.take(chosen).load([TOP]), folds.take(chosen)
    hits = knn_hits(features, sampled.labels, k=NEIGHBOURS, folds=sampled)
    independent = sampled.independent(hits.right, hits.counting)
    return _score(TOP, "knn", features.shape[1], hits.accuracy, independent, float(min(NEIGHBOURS, images - 1)))
