"""Similarity of the data to the backbone's source data: one frozen pass -> SimilarityDetail.

Batch normalisation stores statistics of the source: mean and variance of every channel over the training images. A
backbone without it may still have the classifier it was trained with, which predicts many different classes for images
like those and few for others. Without either, source images must be given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.intervals import TWO_SIDED
from transferkit.features import FeatureTable
from transferkit.measure import (
    ChannelMoments,
    HeadScale,
    Nearness,
    Scale,
    class_mean_similarity,
    emd_of_class_means,
    frechet_distance,
    measure_head_information,
    measure_nearness,
    mmd,
    proxy_a_distance,
)
from transferkit.nn import Backbone
from transferkit.records import TOP, SimilarityDetail

__all__ = ["SAMPLE", "Side", "choose_sample", "load_head_scale", "load_scale", "measure_similarity"]

SAMPLE = 512
"""Images that a similarity is measured on at most: its standard error is then about 0.01."""

RANDOM_WEIGHTS = "Unknown: the backbone's weights are random, so it has no source data."
NO_STATISTICS = (
    "Unknown: this backbone has no batch normalisation and so no statistics of its training images{head}. Pass "
    "source=DIR with images like those, if you have some."
)

MIN_CLASSES = 100
"""Of a classifier whose predictions are used: one with few classes is confident of anything. The scale was fitted with
1000."""

MIN_PREDICTIONS = 20
"""Different images below which predictions are too few: for N images at most N classes are predicted."""

MIN_IMAGES = 2
"""Different images below which there is no spread to estimate a standard error from."""

TOO_FEW = "A similarity needs 2 different images or more on each side."


@dataclass(frozen=True)
class Side:
    """One of the two sets of images.

    Args:
        moments: A row per sampled image, as `Backbone.recording_moments` makes them; None if they were not recorded.
        features: The features of the same images, in the same order.
        labels: Their classes.
    """

    moments: FeatureTable | None
    features: FeatureTable
    labels: npt.NDArray[np.int64]


def choose_sample(
    content_ids: npt.NDArray[np.bytes_], among: npt.NDArray[np.int64], *, size: int = SAMPLE
) -> npt.NDArray[np.int64]:
    """Positions of at most `size` of the images `among`, in an order that is independent of what they show.

    Those with the smallest content ids: as good as drawn at random, each content once, and mostly the same images when
    some are added.

    Example:
        >>> choose_sample(np.array([b"d", b"a", b"c", b"a", b"b"]), np.array([0, 1, 2, 3]), size=2)
        array([1, 2])
    """
    _, first = np.unique(content_ids[among], return_index=True)
    return among[first[:size]]


def load_scale() -> Scale:
    """The scale that comes with the package; scripts/calibrate_similarity.py fits it."""
    kept = _load_knowledge()
    return Scale(kept["middle"], kept["steepness"])


def load_head_scale() -> HeadScale:
    """The same for the predictions of a classifier: fitted with backbones that have batch normalisation as well."""
    kept = _load_knowledge()["head"]
    return HeadScale(kept["middle"], kept["steepness"], kept["scatter"])


def _load_knowledge() -> dict[str, Any]:
    text = (files("transferkit") / "knowledge" / "similarity.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def measure_similarity(
    backbone: Backbone, target: Side, *, source: Side | None = None, given: float | None = None
) -> SimilarityDetail:
    """Similarity to the source, with its interval and how it was measured.

    Args:
        backbone: The one that ran.
        target: The sample of training images.
        source: Images of the kind that the backbone was trained on, if there are some.
        given: A value from elsewhere; it wins, and the note keeps what was measured.
    """
    detail = _measured(backbone, target, source)
    if source is not None and detail.value is not None:
        detail = replace(detail, source_images=len(source.labels), others=_compare(backbone, source, target))
    if given is None:
        return detail
    was = "" if detail.value is None else f" Measured on {detail.images:,} images it is {detail.value:.2f}."
    return replace(detail, value=given, low=None, high=None, origin="given", note=f"Given by you.{was}")


def _measured(backbone: Backbone, target: Side, source: Side | None) -> SimilarityDetail:
    """By batch normalisation's statistics, else by the classifier, else by source images."""
    if not backbone.spec.pretrained:
        return SimilarityDetail(value=None, origin="unknown", note=RANDOM_WEIGHTS)
    statistics = {stage: ChannelMoments(*moments) for stage, moments in backbone.source_moments().items()}
    if not (statistics or source or _has_useful_head(backbone)):
        return SimilarityDetail(value=None, origin="unknown", note=NO_STATISTICS.format(head=_about_head(backbone)))
    if min(len(side.labels) for side in (target, source) if side is not None) < MIN_IMAGES:
        return SimilarityDetail(value=None, origin="unknown", note=TOO_FEW)
    if statistics:
        note = "Measured against the statistics that batch normalisation stores of the backbone's training images."
        return _detail(measure_nearness(statistics, _rows(target)), target, origin="norm statistics", note=note)
    if _has_useful_head(backbone) and (source is None or len(target.labels) >= MIN_PREDICTIONS):
        return _by_predictions(backbone, target)
    assert source is not None
    note = (
        f"Measured against {len(source.labels):,} source images; the scale was fitted with backbones that have batch "
        "normalisation, so compare this value with others of the same backbone only."
    )
    return _detail(measure_nearness(_rows(source), _rows(target)), target, origin="source images", note=note)


def _has_useful_head(backbone: Backbone) -> bool:
    """Whether the backbone came with a classifier whose predictions carry information. Behind another normalisation
    than it was trained with they do not."""
    return backbone.head is not None and _outputs(backbone) >= MIN_CLASSES and not backbone.spec.norm


def _outputs(backbone: Backbone) -> int:
    return 0 if backbone.head is None else len(next(backbone.head.parameters()))


def _about_head(backbone: Backbone) -> str:
    if backbone.head is None:
        return ", nor a classifier"
    if backbone.spec.norm:
        return ", and its classifier was trained behind another normalisation"
    return f", and its classifier has {_outputs(backbone)} classes, fewer than the {MIN_CLASSES} needed"


def _by_predictions(backbone: Backbone, target: Side) -> SimilarityDetail:
    images = len(target.labels)
    if images < MIN_PREDICTIONS:
        note = (
            "Unknown: this backbone has no batch normalisation, and its classifier's predictions need at least "
            f"{MIN_PREDICTIONS} different images; there are {images}."
        )
        return SimilarityDetail(value=None, origin="unknown", note=note)
    found = measure_head_information(backbone.source_probabilities(_averages(backbone, target.features)))
    scale = load_head_scale()
    low, high = scale.interval(found.share, found.error)
    note = (
        "Without batch normalisation, it was estimated from the predictions of the classifier that the backbone came "
        f"with: {_describe_predictions(found.told_apart, _outputs(backbone))}, with a mean confidence of "
        f"{100 * found.confidence:.0f} %. This is a rough estimate: the scale was fitted with backbones that have "
        "both, the interval covers the scatter of tasks around it, and tasks with few kinds of objects score too low."
    )
    return SimilarityDetail(
        value=scale.similarity(found.share), low=low, high=high, origin="head confidence", note=note, images=images
    )


def _describe_predictions(distinguished: float, classes: int) -> str:
    if distinguished < 1.5:
        return "it predicts nearly the same for all of these images"
    return f"it predicts about {distinguished:.0f} of its {classes:,} classes for these images"


def _rows(side: Side) -> Mapping[str, npt.NDArray[np.float32]]:
    assert side.moments is not None
    return {stage: side.moments.load([stage]) for stage in side.moments.blocks}


def _detail(found: Nearness, target: Side, *, origin: str, note: str) -> SimilarityDetail:
    scale, margin = load_scale(), TWO_SIDED * found.error
    return SimilarityDetail(
        value=scale.similarity(found.distance),
        low=scale.similarity(found.distance + margin),
        high=scale.similarity(found.distance - margin),
        origin=origin,
        note=note,
        images=len(target.labels),
        stages=found.stages,
    )


def _compare(backbone: Backbone, source: Side, target: Side) -> dict[str, float]:
    """Distances between the two sets at the top stage. Linear CKA is not among them: it compares two representations of
    the same images, and here the images differ."""
    one, two = (_averages(backbone, side.features) for side in (source, target))
    earth = emd_of_class_means(one, source.labels, two, target.labels)
    return {
        "frechet_distance": frechet_distance(one, two),
        "mmd": mmd(one, two),
        "proxy_a_distance": proxy_a_distance(one, two),
        "emd_of_class_means": earth,
        "class_mean_similarity": class_mean_similarity(earth),
    }


def _averages(backbone: Backbone, table: FeatureTable) -> npt.NDArray[np.float32]:
    """(N, C) of the top stage: the averages stand first, whatever the pooling."""
    top: npt.NDArray[np.float32] = table.load([TOP])[:, : backbone.stages[-1].channels]
    return top
