"""What one frozen pass measured: probes, learning curve, similarity to the source, views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from transferkit.records._checks import require, require_share
from transferkit.records.backbone import BackboneSpec
from transferkit.records.data import DataSummary

__all__ = ["CurvePoint", "Evidence", "ProbeScore", "SimilarityDetail", "StageDistance", "ViewComparison", "ViewScore"]


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """How well a frozen representation is classified, on images that did not take part in the fit.

    Args:
        stage: A stage name, "joined" or "selected".
        method: "ridge" (closed form, exact cross-validation) or "knn" (leave-one-out).
        dim: Width of the representation.
        accuracy: Share of the training images classified right while held back, in [0, 1]; None if unknown, because no
            image can be held back without its class.
        low, high: 95 % Wilson interval of it; None if it is unknown.
        squared_error: Held-back squared error per image of the one-hot target (ridge only), >= 0.
        penalty: The ridge penalty chosen, or the k of k-NN.
        gain_error: Standard error of `accuracy` less that of the joined probe, image by image (ridge only), > 0 but
            for the joined probe itself.
        images: Independent images that the accuracy is worth: fewer than were held back where groups of them are alike,
            or some are copies; 0 in results from before this was kept.
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

    def __post_init__(self) -> None:
        for name in ("accuracy", "low", "high"):
            if getattr(self, name) is not None:
                require_share("ProbeScore", name, getattr(self, name))

    @property
    def interval(self) -> tuple[float, float, float]:
        """Accuracy, and the two ends of its interval.

        Raises:
            ValueError: If they are unknown.
        """
        if self.accuracy is None or self.low is None or self.high is None:
            raise ValueError(f"The accuracy of {self.stage!r} is unknown: no image could be held back.")
        return self.accuracy, self.low, self.high


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """How well a stage is classified from so many training images; tested on others of the training split.

    Args:
        stage: A stage name, or "joined".
        images: Training images that the classifier was fitted to, >= 1.
        accuracy: Mean over the draws, in [0, 1].
        error: Standard error of that mean, >= 0: over the draws; where all images take part, binomial.
    """

    stage: str
    images: int
    accuracy: float
    error: float

    def __post_init__(self) -> None:
        require(self.images >= 1, f"CurvePoint.images must be >= 1, got {self.images!r}.")
        require_share("CurvePoint", "accuracy", self.accuracy)
        require(self.error >= 0, f"CurvePoint.error must be >= 0, got {self.error!r}.")


@dataclass(frozen=True, kw_only=True)
class StageDistance:
    """How far the activations of one stage lie from those of the source.

    Args:
        stage: Its name.
        distance: Mean squared Hellinger distance per channel, free of the bias of few images; 0 is alike, 1 is apart.
            Below 0 by chance.
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
    """Where a similarity comes from.

    Args:
        value: In [0, 1]; 1 is just like what the backbone was trained on. None if it is not known.
        low, high: 95 % interval of it over samples of images; None unless measured.
        origin: "norm statistics" (of the backbone), "head confidence" (the answers of the classifier it came with),
            "source images", "given" (by the person) or "unknown".
        note: A sentence for people: what it was measured on, or why it was not.
        images: Training images it was measured on.
        source_images: Images of the source that were looked at; 0 if there were none.
        stages: Stem -> head; empty if not measured.
        others: Name -> value of what else was measured between the two sets of images.
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
    """How well images are classified when they are seen in one way, or on average over several.

    Args:
        name: A view, or several joined by "+": the average of their features.
        accuracy: Held-back accuracy of the joined probe on `ViewComparison.images` training images, in [0, 1]; None
            where it was not measured.
        squared_error: Held-back squared error per image of that probe, >= 0.
        gain, gain_error: Accuracy beyond that of the first row, and its standard error, image by image.
        seconds: Of the passes over the images, those whose features were in the bank already left out; None for an
            average, whose passes are those of its views.
        computed: Images that the backbone ran over for it.
        used: Whether the features in use are these.
    """

    name: str
    accuracy: float | None = None
    squared_error: float | None = None
    gain: float | None = None
    gain_error: float | None = None
    seconds: float | None = None
    computed: int = 0
    used: bool = False

    def __post_init__(self) -> None:
        if self.accuracy is not None:
            require_share("ViewScore", "accuracy", self.accuracy)


@dataclass(frozen=True, kw_only=True)
class ViewComparison:
    """Ways of seeing the images that were compared, and which are in use.

    Args:
        geometry: Name of the geometry of single-view work: what networks are trained on.
        views: Names of the views that features and predictions are averaged over; one name: nothing is averaged.
        scores: The checkpoint's own crop (or what stands for it) first, then the other geometries, then averages.
        images: Training images that the scores rest on; 0 if nothing was compared.
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
        """What all views but the first took, in seconds."""
        return sum(score.seconds or 0.0 for score in self.scores[1:])


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one frozen pass over the data measured.

    Args:
        backbone: The backbone that ran.
        data: The data it ran over.
        probes: One score per stage, then those of "joined" and "selected", then the k-NN sanity row.
        pooling: "avg" or "avg+max": what became of each stage's spatial grid.
        image_size: Side in pixels at which the pass ran.
        similarity: Nearness of the data to what the backbone was trained on, in [0, 1], given or measured; None if it
            is not known.
        similarity_detail: Where the similarity comes from; None if it was not looked at.
        seconds: Phase -> wall-clock seconds.
        images_computed: Images the backbone really ran over; the rest came from the bank.
        image_seconds: Seconds that one image takes in the frozen pass on the device in use, decoding left out; None if
            that was not measured.
        curves: Accuracy by number of training images, a stage after the other, each from few images to all.
        views: Which views of the images the features are averaged over, and how geometries compare; None: the
            checkpoint's own crop, and nothing was compared.
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
    similarity_detail: SimilarityDetail | None = None
    curves: tuple[CurvePoint, ...] = ()
    views: ViewComparison | None = None

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
