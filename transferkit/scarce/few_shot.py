"""Few-shot accuracy of a backbone on images: features from the bank, then episodes of arithmetic."""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from transferkit.core.errors import DataError
from transferkit.core.intervals import TWO_SIDED
from transferkit.core.progress import track
from transferkit.core.random import seed_everything
from transferkit.core.timing import timed
from transferkit.data import Data
from transferkit.features import Engines, FeatureBank, FeatureTable
from transferkit.measure.few_shot import (
    FEW_SHOT,
    Episode,
    FeatureSpace,
    Scatter,
    Shots,
    draw_episodes,
    late_parts,
    total_scatter,
    unit_rows,
    within_scatter,
)
from transferkit.nn import Backbone
from transferkit.records import TOP, FewShotRecord, FewShotScore, Folds
from transferkit.scarce.few_shot_options import BASELINE, FewShotOptions, chosen_methods
from transferkit.workflow.measure import read_features
from transferkit.workflow.session import fit_to_images, open_backbone, open_bank, open_images, refuse_targets
from transferkit.workflow.views import AskedViews, ask_views, fixed_views
from transferkit.workflow.views.asked import AUTO_VIEWS

__all__ = [
    "FewShotRows",
    "Hits",
    "answer_episodes",
    "asked_views",
    "halved_stages",
    "measure_few_shot",
    "prepare_rows",
    "score_methods",
]

UNLABELLED = "unlabelled"

Hits = dict[str, list[float]]
"""Method -> accuracy in each episode."""


@dataclass(frozen=True)
class FewShotRows:
    """Features that episodes are drawn from.

    Args:
        last: (N, d) of the last layer, as its own classifier reads them.
        joined: (N, D) whitened rows of all late stages.
        space: Joins them.
        folds: Their labels and groups.
        centre: (d,) of the last layer; None: the mean over each episode's shots.
    """

    last: npt.NDArray[np.float32]
    joined: npt.NDArray[np.float32]
    space: FeatureSpace
    folds: Folds
    centre: npt.NDArray[np.float32] | None = None


def measure_few_shot(model: str | nn.Module, data: Any, options: FewShotOptions, *, command: str = "") -> FewShotRecord:
    """The road of `fewshot`: open, one frozen pass per view, episodes.

    Args:
        model, data, options: As for `fewshot`.
        command: What reproduces it.

    Raises:
        DataError: Too few classes have enough images, or the images cannot be used.
        TransferkitError: Another of its kinds.
    """
    seconds: dict[str, float] = {}
    seed_everything(options.seed)
    with timed(seconds, "audit data"):
        opened = open_images(data, options)
        refuse_targets(opened, "fewshot")
        rows = np.sort(np.concatenate([opened.indices("train"), opened.indices("val")]))
        folds = opened.folds.take(rows)
        check_episodes(folds, options)
        others = [open_images(one, _plain_opening(options)) for one in _prior_sets(options.prior)]
    with timed(seconds, "load backbone"):
        backbone = open_backbone(model, options)
    bank = open_bank(options)
    engines = Engines(options.engine, folder=bank.folder)
    with timed(seconds, "frozen pass"):
        table, views = _table(backbone, opened, rows, options, bank, engines)
        learnt = [
            _table(backbone, one, one.indices("train"), options, bank, engines)[0].load(list(table.blocks))
            for one in others
        ]
    with timed(seconds, "whitening"):
        labels = [one.labels[one.indices("train")] for one in others]
        found = prepare_rows(
            table.load(list(table.blocks)),
            folds,
            table.blocks,
            halved=halved_stages(backbone, options.pooling),
            unlabelled=options.prior == UNLABELLED,
            earlier=list(zip(learnt, labels, strict=True)),
        )
    names = chosen_methods(options.method, transductive=options.transductive)
    with timed(seconds, "episodes"):
        drawn = track(_drawn(folds, options), "episodes", total=options.episodes, enabled=options.progress)
        hits, spent = answer_episodes(found, drawn, names)
    prior = (
        ("these images, unlabelled",) if options.prior == UNLABELLED else tuple(one.summary.origin for one in others)
    )
    return FewShotRecord(
        backbone=backbone.spec.name,
        data=opened.summary,
        scores=score_methods(hits, spent),
        ways=options.ways,
        shots=options.shots,
        queries=options.queries,
        episodes=options.episodes,
        imbalance=options.imbalance,
        prior=prior,
        images=len(rows),
        views=views,
        seed=options.seed,
        seconds=seconds,
        command=command,
    )


def check_episodes(folds: Folds, options: FewShotOptions) -> None:
    """Find what cannot be drawn before the pass.

    Raises:
        DataError: Too few classes have enough images.
    """
    next(_drawn(folds, options))


def _drawn(folds: Folds, options: FewShotOptions) -> Iterator[Episode]:
    return draw_episodes(
        folds,
        ways=options.ways,
        shots=options.shots,
        queries=options.queries,
        episodes=options.episodes,
        imbalance=options.imbalance,
        seed=options.seed,
    )


def prepare_rows(
    features: npt.NDArray[np.float32],
    folds: Folds,
    blocks: Mapping[str, slice],
    *,
    halved: Collection[str],
    unlabelled: bool = False,
    earlier: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]] = (),
) -> FewShotRows:
    """Features ready for episodes: the last layer's, and all late stages' whitened.

    Args:
        features: (N, D) of all stages.
        folds: Of the N images.
        blocks: Stage -> its columns, stem -> top.
        halved: Stages whose block is means, then maxima.
        unlabelled: Whiten by the spread of these images.
        earlier: Features and labels of other sets: whiten by their spread within classes.
    """
    parts = late_parts(blocks, halved=halved)
    scatter = None
    if unlabelled:
        scatter = total_scatter(features, parts)
    elif earlier:
        scatter = Scatter.mean_of([within_scatter(rows, labels, parts) for rows, labels in earlier])
    space = FeatureSpace.of(parts, scatter)
    top = blocks[TOP]
    last = slice(top.start, (top.start + top.stop) // 2 if TOP in halved else top.stop)
    # SimpleShot centres by the mean over its base classes: here the other sets of images.
    centre = np.mean([rows[:, last].mean(axis=0) for rows, _ in earlier], axis=0) if earlier else None
    return FewShotRows(features[:, last], space.whiten(features), space, folds, centre)


def halved_stages(backbone: Backbone, pooling: str) -> list[str]:
    """Stages whose pooled vector is their means, then their maxima."""
    means = backbone.widths("avg")
    return [name for name, width in backbone.widths(pooling).items() if width > means[name]]


def answer_episodes(
    rows: FewShotRows, episodes: Iterable[Episode], methods: Sequence[str]
) -> tuple[Hits, dict[str, float]]:
    """Accuracy of each method in each episode, and its seconds in all of them.

    Args:
        rows: Features.
        episodes: Drawn from them.
        methods: Names in `FEW_SHOT`.
    """
    hits: Hits = {name: [] for name in methods}
    spent = dict.fromkeys(methods, 0.0)
    for episode in episodes:
        prepared = {
            "joined": _coordinates(_joined(rows, episode)),
            "last": _coordinates(_last(rows, episode)),
        }
        for name in methods:
            began = time.perf_counter()
            known = FEW_SHOT[name]
            both = prepared[known.features]
            shots = Shots(both[: len(episode.shots)], episode.shot_labels)
            answers = known.function(shots, both[len(episode.shots) :]).argmax(axis=1)
            hits[name].append(float((answers == episode.query_labels).mean()))
            spent[name] += time.perf_counter() - began
    return hits, spent


def _joined(rows: FewShotRows, episode: Episode) -> npt.NDArray[np.floating[Any]]:
    """Shots, then queries, centred by the shots alone: the mean over queries would lean to their large classes."""
    both = rows.joined[np.concatenate([episode.shots, episode.queries])]
    return rows.space.join(both, both[: len(episode.shots)].mean(axis=0))


def _last(rows: FewShotRows, episode: Episode) -> npt.NDArray[np.floating[Any]]:
    both = rows.last[np.concatenate([episode.shots, episode.queries])]
    return unit_rows(both - (both[: len(episode.shots)].mean(axis=0) if rows.centre is None else rows.centre))


def _coordinates(rows: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """The same rows in as many dimensions as there are rows: no distance or product changes, and methods are fast."""
    if rows.shape[1] <= len(rows):
        return rows.astype(np.float64)
    values, vectors = np.linalg.eigh((rows @ rows.T).astype(np.float64))
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


def score_methods(
    hits: Hits, spent: Mapping[str, float], *, base: Sequence[float] | None = None
) -> tuple[FewShotScore, ...]:
    """Means and intervals over episodes.

    Args:
        hits: Accuracy in each episode.
        spent: Method -> seconds in all episodes.
        base: Accuracies that gains are over, in the same episodes; None: those of `BASELINE`, which is among the hits.
    """
    compared = np.array(hits[BASELINE] if base is None else base)
    found = []
    for name, each in hits.items():
        mean, half = _mean_and_half(np.array(each))
        gain, gain_half = _mean_and_half(np.array(each) - compared)
        found.append(
            FewShotScore(
                method=name,
                sentence=FEW_SHOT[name].sentence,
                accuracy=mean,
                low=max(0.0, mean - half),
                high=min(1.0, mean + half),
                gain=gain,
                gain_low=gain - gain_half,
                gain_high=gain + gain_half,
                seconds=spent[name] / len(each),
                transductive=FEW_SHOT[name].transductive,
            )
        )
    return tuple(found)


def _mean_and_half(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The mean, and half its 95 % interval."""
    return float(values.mean()), float(TWO_SIDED * values.std(ddof=1) / np.sqrt(len(values)))


def _prior_sets(prior: Any) -> list[Any]:
    if prior is None or prior == UNLABELLED:
        return []
    return list(prior) if isinstance(prior, (list, tuple)) else [prior]


def asked_views(options: FewShotOptions) -> AskedViews:
    """The views of an episode's features; nothing is measured to choose them, as there are no labels to do it with."""
    if options.views == "auto" and options.geometry == "auto":
        return ask_views(views="+".join(AUTO_VIEWS))
    return ask_views(options.geometry, 1 if options.views == "auto" else options.views)


def _plain_opening(options: FewShotOptions) -> FewShotOptions:
    """Options for other images: nothing held out, and no columns, root or corrections of the first ones."""
    return replace(options, root=None, columns=None, labels=None, val=0.0, test=0.0)


def _table(
    backbone: Backbone,
    data: Data,
    rows: npt.NDArray[np.int64],
    options: FewShotOptions,
    bank: FeatureBank,
    engines: Engines,
) -> tuple[FeatureTable, tuple[str, ...]]:
    """Features averaged over views, and the names of the views."""
    if not len(rows):
        raise DataError(f"{data.summary.origin} has no training images.")
    seen = copy.copy(backbone)  # whose preprocessing is fitted to these images
    fit_to_images(seen, data)
    own = seen.spec.preprocessing
    if not data.normalised:
        own = fixed_views(asked_views(options), own, data)
    done = read_features(
        seen,
        data,
        bank=bank,
        pooling=options.pooling,
        device=options.device,
        batch_size=options.batch_size,
        engines=engines,
        preprocessing=own,
        among=rows,
        progress=options.progress,
    )
    return done.table, tuple(view.name for view in own.views)
