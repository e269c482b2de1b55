"""How near the data is to what the backbone was trained on: one frozen pass -> SimilarityDetail.

Batch normalisation remembers the source: mean and variance of every channel over the images of the training. A
backbone without it may still have the classifier it was trained with, which tells many of its classes apart among
images like those and few among others. Without either, the other side must come from source images that a person has.
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
"""Images that a similarity is measured on at most: its standard error is then about 0.01, and more would only cost."""

RANDOM_WEIGHTS = "The backbone's weights are random: there is nothing that the images could be near to."
NO_MEMORY = (
    "This backbone has no batch normalisation and so no memory of the images it was trained on{head}. Pass source=DIR "
    "with images like those, if you have some."
)

LEAST_CLASSES = 100
"""Of a classifier whose answers are used: one with few classes is sure of anything. The scale was set on 1000."""

LEAST_ANSWERS = 20
"""Different images below which answers tell too little: N images tell at most N classes apart."""

FEWEST = 2
"""Different images below which nothing can be said about chance."""

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
    """Positions of at most `size` of the images `among`, in an order that has nothing to do with what they show.

    Those with the smallest content ids: as good as drawn at random, each content once, and mostly the same images when
    some are added.

    Example:
        >>> choose_sample(np.array([b"d", b"a", b"c", b"a", b"b"]), np.array([0, 1, 2, 3]), size=2)
        array([1, 2])
    """
    _, first = np.unique(content_ids[among], return_index=True)
    return among[first[:size]]


def load_scale() -> Scale:
    """The scale that comes with the package; scripts/calibrate_similarity.py says how it came to be."""
    kept = _load_knowledge()
    return Scale(kept["middle"], kept["steepness"])


def load_head_scale() -> HeadScale:
    """The same for the answers of a classifier: set on backbones that have batch normalisation as well."""
    kept = _load_knowledge()["head"]
    return HeadScale(kept["middle"], kept["steepness"], kept["scatter"])


def _load_knowledge() -> dict[str, Any]:
    text = (files("transferkit") / "knowledge" / "similarity.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def measure_similarity(
    backbone: Backbone, target: Side, *, source: Side | None = None, given: float | None = None
) -> SimilarityDetail:
    """All that one frozen pass tells about it.

    Args:
        backbone: That ran.
        target: The sample of training images.
        source: Images of the kind that the backbone was trained on, if the person has some.
        given: What the person says; it wins, and the note keeps what was measured.
    """
    detail = _measured(backbone, target, source)
    if source is not None and detail.value is not None:
        detail = replace(detail, source_images=len(source.labels), others=_compare(backbone, source, target))
    if given is None:
        return detail
    was = "" if detail.value is None else f" Measured on {detail.images:,} images it is {detail.value:.2f}."
    return replace(detail, value=given, low=None, high=None, origin="given", note=f"Given by you.{was}")


def _measured(backbone: Backbone, target: Side, source: Side | None) -> SimilarityDetail:
    """By what the backbone remembers, else by its classifier, else by source images."""
    if not backbone.spec.pretrained:
        return SimilarityDetail(value=None, origin="unknown", note=RANDOM_WEIGHTS)
    remembered = {stage: ChannelMoments(*moments) for stage, moments in backbone.source_moments().items()}
    if not (remembered or source or _can_answer(backbone)):
        return SimilarityDetail(value=None, origin="unknown", note=NO_MEMORY.format(head=_about_head(backbone)))
    if min(len(side.labels) for side in (target, source) if side is not None) < FEWEST:
        return SimilarityDetail(value=None, origin="unknown", note=TOO_FEW)
    if remembered:
        note = "Measured against what batch normalisation kept of the images that the backbone was trained on."
        return _detail(measure_nearness(remembered, _rows(target)), target, origin="norm statistics", note=note)
    if _can_answer(backbone) and (source is None or len(target.labels) >= LEAST_ANSWERS):
        return _by_answers(backbone, target)
    assert source is not None
    note = (
        f"Measured against {len(source.labels):,} source images; the scale was set on backbones with batch "
        "normalisation, so compare this value with others of the same backbone only."
    )
    return _detail(measure_nearness(_rows(source), _rows(target)), target, origin="source images", note=note)


def _can_answer(backbone: Backbone) -> bool:
    """Whether the backbone came with a classifier whose answers say something of the images. Behind another
    normalisation than it was trained with they do not."""
    return backbone.head is not None and _outputs(backbone) >= LEAST_CLASSES and not backbone.spec.norm


def _outputs(backbone: Backbone) -> int:
    return 0 if backbone.head is None else len(next(backbone.head.parameters()))


def _about_head(backbone: Backbone) -> str:
    if backbone.head is None:
        return ", nor the classifier that it was trained with"
    if backbone.spec.norm:
        return ", and its classifier was trained behind another normalisation"
    return f", and its classifier has {_outputs(backbone)} classes, too few to tell images apart by ({LEAST_CLASSES})"


def _by_answers(backbone: Backbone, target: Side) -> SimilarityDetail:
    images = len(target.labels)
    if images < LEAST_ANSWERS:
        note = (
            "This backbone has no batch normalisation. The answers of its classifier tell how near images are from "
            f"{LEAST_ANSWERS} different ones on; there are {images}."
        )
        return SimilarityDetail(value=None, origin="unknown", note=note)
    found = measure_head_information(backbone.source_probabilities(_averages(backbone, target.features)))
    scale = load_head_scale()
    low, high = scale.interval(found.share, found.error)
    note = (
        "Without batch normalisation to remember the source, it was estimated from the answers of the classifier that "
        f"the backbone came with: {_tell(found.told_apart, _outputs(backbone))}, with a mean confidence of "
        f"{100 * found.confidence:.0f} %. This is rough: the scale was "
        "set on backbones that have both, the interval covers how far tasks lie off it, and a task that shows few "
        "kinds of things reads too low."
    )
    return SimilarityDetail(
        value=scale.similarity(found.share), low=low, high=high, origin="head confidence", note=note, images=images
    )


def _tell(told_apart: float, classes: int) -> str:
    if told_apart < 1.5:
        return "it answers nearly the same for all of these images"
    return f"it tells about {told_apart:.0f} of its {classes:,} classes apart among these images"


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
