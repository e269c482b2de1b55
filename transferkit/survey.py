"""Backbone and data -> Evidence: one frozen pass, and every question that it answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.data import Data
from transferkit.features import FeatureBank, FeatureTable, frozen_pass
from transferkit.intervals import wilson_interval
from transferkit.measure import RidgePath, knn_accuracy, ridge_paths
from transferkit.nn import Backbone
from transferkit.train import class_weights
from transferkit.types import TOP, Evidence, ProbeScore

__all__ = ["Survey", "survey", "timed"]

NEIGHBOURS = 5
NEIGHBOUR_IMAGES = 4096
"""k-NN is a sanity row: this many images tell it within 1.6 points, and its cost grows with the square."""


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the wall-clock seconds that the block takes to `seconds[phase]`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Survey:
    """What one frozen pass leaves behind.

    Args:
        evidence: The measurements.
        table: One row of features per image of the data.
        labels: (N,) of the training images.
        train: (N,) indices of the training images in the data.
    """

    evidence: Evidence
    table: FeatureTable
    labels: npt.NDArray[np.int64]
    train: npt.NDArray[np.int64]


def survey(
    backbone: Backbone,
    data: Data,
    *,
    bank: FeatureBank,
    pooling: str,
    device: str = "auto",
    batch_size: int | None = None,
    class_weight: str = "none",
    similarity: float | None = None,
    seed: int = 0,
    seconds: Mapping[str, float] | None = None,
    progress: bool = True,
) -> Survey:
    """Run the frozen pass over all splits, and measure on the training split alone.

    Args:
        backbone, data: What to look at.
        bank: Where features are kept.
        pooling: "avg" or "avg+max".
        device, batch_size, progress: As for `frozen_pass`.
        class_weight: "none" or "balanced", for the probes.
        similarity: If it is known from elsewhere; it is not measured here.
        seed: Of the k-NN subsample.
        seconds: Phases that came before, to be listed with these.
    """
    spent = dict(seconds or {})
    preprocessing = backbone.spec.preprocessing

    def read(index: int) -> npt.NDArray[Any]:
        return data.pixels(index, preprocessing)

    with timed(spent, "frozen pass"):
        table, computed = frozen_pass(
            backbone,
            read,
            data.content_ids,
            bank=bank,
            pooling=pooling,
            device=device,
            batch_size=batch_size,
            workers=None if data.thread_safe else 1,
            progress=progress,
        )
    train = data.indices("train")
    labels, known = data.labels[train], table.take(train)
    with timed(spent, "probe"):
        paths = ridge_paths(
            known.chunks,
            labels,
            known.blocks,
            classes=data.summary.num_classes,
            weights=class_weights(labels, class_weight),
        )
        widths = {name: block.stop - block.start for name, block in table.blocks.items()}
        probes = [_ridge_score(name, path, widths.get(name, table.width), len(labels)) for name, path in paths.items()]
        probes.append(_neighbour_score(known, labels, seed))
    evidence = Evidence(
        backbone=backbone.spec,
        data=data.summary,
        probes=tuple(probes),
        pooling=pooling,
        image_size=preprocessing.size,
        similarity=similarity,
        seconds=spent,
        images_computed=computed,
    )
    return Survey(evidence, table, labels, train)


def _ridge_score(stage: str, path: RidgePath, dim: int, images: int) -> ProbeScore:
    accuracy = float(path.accuracy[path.best])
    low, high = wilson_interval(round(accuracy * images), images)
    return ProbeScore(
        stage=stage,
        method="ridge",
        dim=dim,
        accuracy=accuracy,
        low=low,
        high=high,
        squared_error=float(path.squared_error[path.best]),
        penalty=float(path.penalties[path.best]),
    )


def _neighbour_score(table: FeatureTable, labels: npt.NDArray[np.int64], seed: int) -> ProbeScore:
    """k-NN on the top stage, on a random sample of the training images if there are many."""
    images = min(len(labels), NEIGHBOUR_IMAGES)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(labels))[:images])
    features = table.take(chosen).load([TOP])
    accuracy = knn_accuracy(features, labels[chosen], k=NEIGHBOURS)
    low, high = wilson_interval(round(accuracy * images), images)
    return ProbeScore(
        stage=TOP,
        method="knn",
        dim=features.shape[1],
        accuracy=accuracy,
        low=low,
        high=high,
        penalty=float(min(NEIGHBOURS, images - 1)),
    )
