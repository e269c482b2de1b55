"""Measurements of one frozen pass: probes, learning curves, similarity to the source, views."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from transferkit.records._checks import require, require_score, require_share
from transferkit.records.backbone import BackboneSpec
from transferkit.records.data import DataSummary
from transferkit.records.data_need import DataNeed

__all__ = [
    "CurvePoint",
    "EngineUse",
    "Evidence",
    "ProbeScore",
    "SimilarityDetail",
    "StageDistance",
    "ViewComparison",
    "ViewScore",
]


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """Accuracy of a classifier on one frozen representation, on images held back from its fit.

    Args:
        stage: A stage name, "joined" or "selected".
        method: "ridge" (closed form, exact cross-validation) or "knn" (leave-one-out).
        dim: Width of the representation.
        accuracy: Held-back accuracy on the training images, in [0, 1], or the score that `measure` names; None if
            unknown, because holding an image back would leave its class without any.
        low, high: 95 % Wilson interval of it; None if it is unknown.
        squared_error: Held-back squared error per image of the one-hot target (ridge only), >= 0.
        penalty: The ridge penalty chosen, or the k of k-NN.
        gain_error: Standard error of the paired difference between `accuracy` and the joined probe's (ridge only), > 0
            except for the joined probe itself.
        images: Effective number of independent images behind the accuracy: fewer than were held back where images of
            a group are alike, or some are copies; 0 in older results.
        measure: "accuracy", "mean average precision" (of labels) or "R2" (of numbers, at most 1): what `accuracy` is.
            The interval of the latter two is of resampled groups.
    """

    stage: str
    method: str
    dim: int
    accuracy: float | None
    low: float | None
    high: float | None
    squared_error: float | None = None
    penalty: float | None = None
    gain_error: float | None = None
    images: float = 0.0
    measure: str = "accuracy"

    def __post_init__(self) -> None:
        for name in ("accuracy", "low", "high"):
            if getattr(self, name) is not None:
                require_score("ProbeScore", name, getattr(self, name), self.measure)

    @property
    def interval(self) -> tuple[float, float, float]:
        """Accuracy, and the low and high ends of its interval.

        Raises:
            ValueError: If they are unknown.
        """
        if self.accuracy is None or self.low is None or self.high is None:
            raise ValueError(f"The accuracy of {self.stage!r} is unknown: no image could be held back.")
        return self.accuracy, self.low, self.high


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One point of a learning curve: accuracy at a number of training images, tested on others of the training split.

    Args:
        stage: A stage name, or "joined".
        images: Training images that the classifier was fitted to, >= 1.
        accuracy: Mean over the draws, in [0, 1].
        error: Standard error of that mean, finite, >= 0: over the draws; where all images take part, binomial.
        measure: What `accuracy` is, as for `ProbeScore`.
    """

    stage: str
    images: int
    accuracy: float
    error: float
    measure: str = "accuracy"

    def __post_init__(self) -> None:
        require(self.images >= 1, f"CurvePoint.images must be >= 1, got {self.images!r}.")
        require_score("CurvePoint", "accuracy", self.accuracy, self.measure)
        require(0 <= self.error < math.inf, f"CurvePoint.error must be finite and >= 0, got {self.error!r}.")


@dataclass(frozen=True, kw_only=True)
class StageDistance:
    """Distance between the activations of one stage on the data and on the source.

    Args:
        stage: Its name.
        distance: Mean squared Hellinger distance per channel, corrected for the bias of few images; 0 is identical, 1
            is disjoint. May be below 0 by chance.
        error: Standard error of it.
        w2: Median over channels of the squared 2-Wasserstein distance, in units of the source's variance.
        kl: Median over channels of the Kullback-Leibler divergence, nats.
        channels: Channels compared.
    """

    stage: str
    distance: float
    error: float
    w2: float
    kl: float
    channels: int


@dataclass(frozen=True, kw_only=True)
class SimilarityDetail:
    """A similarity to the source, and how it was obtained.

    Args:
        value: In [0, 1]; 1 is the same distribution as the backbone's training images. None if it is not known.
        low, high: 95 % interval of it over samples of images; None unless measured.
        origin: "norm statistics" (of the backbone), "head confidence" (predictions of the checkpoint's classifier),
            "source images", "given" (by the user) or "unknown".
        note: A sentence for display: what it was measured on, or why it was not.
        images: Training images it was measured on.
        source_images: Number of source images used; 0 if there were none.
        stages: Stem -> head; empty if not measured.
        others: Name -> value of other measures between the two sets of images.
    """

    value: float | None
    origin: str
    note: str
    low: float | None = None
    high: float | None = None
    images: int = 0
    source_images: int = 0
    stages: tuple[StageDistance, ...] = ()
    others: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            if getattr(self, name) is not None:
                require_share("SimilarityDetail", name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class ViewScore:
    """Held-back accuracy with one view of the images, or with features averaged over several.

    Args:
        name: A view, or several joined by "+": the average of their features.
        accuracy: Held-back accuracy of the joined probe on `ViewComparison.images` training images, in [0, 1]; None
            where it was not measured.
        squared_error: Held-back squared error per image of that probe, >= 0.
        gain, gain_error: Accuracy minus that of the first row, and the standard error of this paired difference.
        seconds: Seconds of the passes over images whose features were not in the bank; None for an average, which
            needs no pass beyond those of its views.
        computed: Images that the backbone ran over for it.
        used: Whether these are the features in use.
        measure: What `accuracy` is, as for `ProbeScore`.
    """

    name: str
    accuracy: float | None = None
    squared_error: float | None = None
    gain: float | None = None
    gain_error: float | None = None
    seconds: float | None = None
    computed: int = 0
    used: bool = False
    measure: str = "accuracy"

    def __post_init__(self) -> None:
        if self.accuracy is not None:
            require_score("ViewScore", "accuracy", self.accuracy, self.measure)


@dataclass(frozen=True, kw_only=True)
class ViewComparison:
    """The views of the images that were compared, and which are in use.

    Args:
        geometry: Name of the geometry used for a single view: what networks are trained on.
        views: Names of the views that features and predictions are averaged over; one name: no averaging.
        scores: The checkpoint's crop (or its substitute) first, then the other geometries, then averages.
        images: Training images behind the scores; 0 if nothing was compared.
        image_seconds: Seconds that one view of one image takes in the frozen pass; None if not known.
        reasons: Sentences with the numbers in them.
    """

    geometry: str
    views: tuple[str, ...]
    scores: tuple[ViewScore, ...] = ()
    images: int = 0
    image_seconds: float | None = None
    reasons: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Seconds that all views but the first took."""
        return sum(score.seconds or 0.0 for score in self.scores[1:])


@dataclass(frozen=True, kw_only=True)
class EngineUse:
    """The engine that computed features, and how it was checked against the network itself.

    Args:
        name: "torch", "onnxruntime", "openvino" or "compile".
        images: Of the data that it was checked on.
        difference: Largest difference of a feature, in units of the largest value of its stage, >= 0.
        same_class: Share of those images with the same class from both, in [0, 1].
        seconds: To open and check it.
        reasons: Sentences on engines that could not be used.
    """

    name: str
    images: int = 0
    difference: float = 0.0
    same_class: float = 1.0
    seconds: float = 0.0
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Measurements from one frozen pass over the data.

    Args:
        backbone: The backbone that ran.
        data: The data it ran over.
        probes: One score per stage, then those of "joined" and "selected", then the k-NN sanity check.
        pooling: "avg" or "avg+max": how each stage's spatial grid was pooled.
        image_size: Side in pixels at which the pass ran.
        similarity: Of the data to the backbone's training images, in [0, 1], given or measured; None if not known.
        similarity_detail: How the similarity was obtained; None if it was not measured.
        seconds: Phase -> wall-clock seconds.
        images_computed: Training and validation images the backbone ran over; features of the rest came from the bank.
        image_seconds: Seconds per image in the frozen pass on the device in use, decoding excluded; None if not
            measured.
        step_seconds: Fine-tuning strategy -> seconds per image in a training step there; empty if not measured.
        curves: Learning curves, one stage after another, each from few images to all.
        views: The views that features are averaged over, and how geometries compare; None: the checkpoint's crop, no
            comparison.
        engine: What computed the features; None if the network ran as it is, or not at all.
        worker_seconds: What the pass's threads spent "reading" images and "computing" features, in seconds, added up;
            empty if all features came from the bank.
        data_need: What more training images would bring; None if the learning curve is too short to tell.
    """

    backbone: BackboneSpec
    data: DataSummary
    probes: tuple[ProbeScore, ...]
    pooling: str
    image_size: int
    similarity: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    images_computed: int = 0
    image_seconds: float | None = None
    step_seconds: Mapping[str, float] = field(default_factory=dict)
    similarity_detail: SimilarityDetail | None = None
    curves: tuple[CurvePoint, ...] = ()
    views: ViewComparison | None = None
    engine: EngineUse | None = None
    worker_seconds: Mapping[str, float] = field(default_factory=dict)
    data_need: DataNeed | None = None

    def __post_init__(self) -> None:
        if self.similarity is not None:
            require_share("Evidence", "similarity", self.similarity)

    def probe(self, stage: str, method: str = "ridge") -> ProbeScore:
        """The score of one stage ("joined" included)."""
        for score in self.probes:
            if score.stage == stage and score.method == method:
                return score
        known = ", ".join(score.stage for score in self.probes if score.method == method)
        raise KeyError(f"No {method} probe of stage {stage!r}. Known: {known}.")
