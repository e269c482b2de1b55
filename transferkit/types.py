"""What travels between the folders: frozen, keyword-only dataclasses that check themselves.

`BackboneSpec` (what the zoo knows) -> `DataSummary` (what the audit found) -> `Evidence` (what one frozen pass
measured) -> `Decision` (what to do, and why) -> `RunRecord` (what came of it, everything but the weights).
`Ranking` compares backbones before any of it.
Maths letters: N images, D features, K classes, S stages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from transferkit.errors import OptionError, unknown_name

__all__ = [
    "JOINED",
    "SELECTED",
    "TOP",
    "Alternative",
    "BackboneSpec",
    "Candidate",
    "Choice",
    "Claim",
    "CurvePoint",
    "DataSummary",
    "Decision",
    "Epoch",
    "Evidence",
    "Finding",
    "HeldOut",
    "LeftOut",
    "MeasureScore",
    "Metrics",
    "Mistake",
    "Picture",
    "Preprocessing",
    "ProbeScore",
    "RankedModel",
    "Ranking",
    "RunRecord",
    "SimilarityDetail",
    "StageDistance",
    "StageSpec",
    "TrainingRecord",
    "View",
    "ViewComparison",
    "ViewScore",
    "check_image_size",
]

TOP = "top"
"""Name of the last stage of every backbone: the pooled vector its own classifier reads."""

JOINED = "joined"
"""Name of the pseudo-stage that concatenates all stages, each scaled to the same total variance."""

SELECTED = "selected"
"""Name of the pseudo-stage that is "joined" with its features weighted, and the useless ones dropped, by the labels."""

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
CropMode = Literal["center", "squash", "border"]
Severity = Literal["error", "set_aside", "warning", "info"]


_SMALLEST = 8
"""Side in pixels under which an image tells nothing."""

_LARGEST = 8192
"""Side in pixels from which on a batch of two does not fit into memory."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise OptionError(message)


def _positive(owner: str, name: str, value: float) -> None:
    _require(math.isfinite(value) and value > 0, f"{owner}.{name} must be finite and > 0, got {value!r}.")


def check_image_size(size: object) -> None:
    """Raise `OptionError` unless a side in pixels is None or a whole number that a network can take.

    Example:
        >>> check_image_size(96)
    """
    if size is None:
        return
    expected = f"image_size is the side of a square in pixels, a whole number of {_SMALLEST} or more"
    if isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= _SMALLEST:
        if size <= _LARGEST:
            return
        raise OptionError(f"{expected}, up to {_LARGEST}, got {size!r}. For example image_size=96.")
    if isinstance(size, (list, tuple)) and len(size) == 2 and size[0] == size[1]:
        raise OptionError(f"{expected}, got {size!r}. Give one number: image_size={size[0]}.")
    raise OptionError(f"{expected}, got {size!r}. For example image_size=96; None takes the checkpoint's own.")


def _share(owner: str, name: str, value: float) -> None:
    _require(math.isfinite(value) and 0 <= value <= 1, f"{owner}.{name} must be in [0, 1], got {value!r}.")


def _check_range(value_range: tuple[float, float] | None) -> None:
    if value_range is None:
        return
    fits = len(value_range) == 2 and all(map(math.isfinite, value_range)) and value_range[0] < value_range[1]
    _require(fits, f"Preprocessing.value_range must be (black, white), finite, black < white, got {value_range!r}.")


@dataclass(frozen=True, kw_only=True)
class View:
    """One way from a whole picture to the square input.

    Args:
        name: For people: "crop", "full", "squash", "pad", "zoom" or "wide", with "+mirror" where it is mirrored.
        crop_mode, crop_pct: As in `Preprocessing`.
        mirrored: Flipped left to right afterwards.
    """

    name: str
    crop_mode: CropMode
    crop_pct: float = 1.0
    mirrored: bool = False


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a checkpoint wants its images: geometry, then normalisation.

    Args:
        size: Side of the square input, in pixels.
        mean: Per channel (R, G, B), subtracted from values in [0, 1].
        std: Per channel, divides what is left.
        interpolation: Resampling filter of the resize.
        crop_pct: Share of the resized side that the crop keeps, in (0, 2]; above 1 the picture is smaller than the
            input and gets borders.
        crop_mode: "center" resizes the short side to `size / crop_pct` and crops the centre; "squash" resizes both
            sides without keeping the aspect; "border" resizes the long side to `size / crop_pct` and pads.
        origin: Where these values come from, as a phrase for people.
        mirrored: Whether the picture is flipped left to right after its geometry.
        views: Ways of seeing each picture that features, and predictions, are averaged over; empty: the geometry above
            alone. Networks are trained on that geometry, whatever the views.
        value_range: (black, white) of images deeper than 8 bits, in stored units; None where there are none.
        prepared: Whether images come as float tensors that were prepared outside: nothing of the above is done to them.
        shape: (H, W) that prepared tensors have; None for pictures.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation
    crop_pct: float = 1.0
    crop_mode: CropMode = "center"
    origin: str = ""
    mirrored: bool = False
    views: tuple[View, ...] = ()
    value_range: tuple[float, float] | None = None
    prepared: bool = False
    shape: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _check_range(self.value_range)
        _require(self.size >= _SMALLEST, f"Preprocessing.size must be >= {_SMALLEST} pixels, got {self.size!r}.")
        _positive("Preprocessing", "crop_pct", self.crop_pct)
        _require(self.crop_pct <= 2, f"Preprocessing.crop_pct must be <= 2, got {self.crop_pct!r}.")
        for value in self.std:
            _positive("Preprocessing", "std", value)
        names = [view.name for view in self.views]
        _require(len(set(names)) == len(names), f"Preprocessing.views must differ in name, got {', '.join(names)}.")

    @property
    def resize_side(self) -> int:
        """Side in pixels before the crop: floor(size / crop_pct), timm's rule, robust to rounding of crop_pct."""
        return math.floor(self.size / self.crop_pct + 1e-6)

    @property
    def primary(self) -> Preprocessing:
        """The same with one view: its own geometry."""
        return replace(self, views=()) if self.views else self

    @property
    def each_view(self) -> tuple[Preprocessing, ...]:
        """One preprocessing per view, in order, each without further views.

        Example:
            >>> plain = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
            >>> pad = View(name="pad", crop_mode="border")
            >>> both = replace(plain, views=(View(name="full", crop_mode="center"), pad))
            >>> [view.crop_mode for view in both.each_view], plain.each_view == (plain,)
            (['center', 'border'], True)
        """
        return tuple(self.seen_as(view) for view in self.views) or (self,)

    def seen_as(self, view: View) -> Preprocessing:
        """The same with this one view."""
        return replace(self, crop_mode=view.crop_mode, crop_pct=view.crop_pct, mirrored=view.mirrored, views=())

    def at(self, size: int | None) -> Preprocessing:
        """The same preprocessing for another input side; None changes nothing."""
        check_image_size(size)
        if size is None or size == self.size:
            return self
        return replace(self, size=size, origin=f"{self.origin}; size {self.size} -> {size} on request")


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One stage of a backbone: its address, width and reduction.

    Args:
        name: Dotted path of the module whose output the stage is, or "top".
        channels: Width C of its output.
        stride: Input pixels per output position along a side; None where the output has no spatial grid.
    """

    name: str
    channels: int
    stride: int | None


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """What the zoo knows about a backbone.

    Args:
        name: The address it was loaded by, e.g. "packaged/tf_efficientnet_lite0".
        source: "timm", "torchvision", "packaged", "checkpoint" or "module".
        architecture: Name of the architecture inside its source.
        preprocessing: The checkpoint's own.
        pretrained: Whether the weights are really pretrained (False: random initialisation).
        num_classes: Outputs of the head it came with; 0 if none.
        class_names: Names of those outputs, if known; else empty.
        fixed_size: True if the network accepts only its native size.
        native_size: Side in pixels that the checkpoint was made for; `preprocessing.size` is the one in use.
        license: Of the weights, if known.
        stages: Stem -> head; filled in when the module has been traced.
        weights_id: Hex digest of the weights' content; filled in with the stages.
        parameters: Count of parameters of the trunk, head excluded.
        original_lr: Learning rate that the weights were trained at; None if not known.
        original_batch: Batch size that goes with it.
        original_optimizer: "sgd", "rmsprop", "adamw", "lamb", ...; "" if not known.
        original_by: Who says so.
        published_accuracy: Top-1 on ImageNet-1k as published with the weights, in [0, 1]; None if not known.
        published_by: Who says so.
        norm: Kind of normalisation that batch normalisation was swapped for; "" if it was not.
        batch_norm: Whether any layer normalises by batch statistics; filled in with the stages. None in records from
            before this was noted.
        own_preprocessing: The checkpoint's own, where the caller gave another with another mean or std; else None.
    """

    name: str
    source: str
    architecture: str
    preprocessing: Preprocessing
    pretrained: bool
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    fixed_size: bool = False
    native_size: int = 0
    license: str | None = None
    stages: tuple[StageSpec, ...] = ()
    weights_id: str = ""
    parameters: int = 0
    original_lr: float | None = None
    original_batch: int = 0
    original_optimizer: str = ""
    original_by: str = ""
    published_accuracy: float | None = None
    published_by: str = ""
    norm: str = ""
    batch_norm: bool | None = None
    own_preprocessing: Preprocessing | None = None

    def find_stages(self, stage: str | int) -> tuple[str, ...]:
        """The stage names behind an address: a name, an index (negative from the top), or "joined" for all.

        "selected" stands for all as well: which of their features count is the classifier's affair.

        Raises:
            OptionError: If there is no such stage; the closest names are offered.
        """
        names = [known.name for known in self.stages]
        if stage in (JOINED, SELECTED):
            return tuple(names)
        if isinstance(stage, int):
            if not -len(names) <= stage < len(names):
                raise OptionError(f"Stage index must be in [{-len(names)}, {len(names) - 1}], got {stage}.")
            return (names[stage],)
        if stage not in names:
            raise OptionError(unknown_name("stage", stage, [*names, JOINED, SELECTED]))
        return (stage,)

    def at(self, size: int | None) -> BackboneSpec:
        """The same backbone for another input side; None changes nothing. The native size stays on record."""
        native = self.native_size or self.preprocessing.size
        return replace(self, preprocessing=self.preprocessing.at(size), native_size=native)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing the audit found.

    Args:
        kind: e.g. "truncated", "zero_byte", "oversized", "duplicate", "near_duplicate", "small_class", "imbalance".
        severity: "error" stops the run; "set_aside" leaves the named images out; "warning" and "info" only tell.
        message: A sentence with the numbers in it.
        items: Files or rows it concerns.
    """

    kind: str
    severity: Severity
    message: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What the data is, after the audit.

    Args:
        origin: Where it came from, for people.
        classes: The K class names, in label order.
        counts: Split name ("train", "val", "test") -> images per class, K integers each.
        split_rule: A sentence that says how the splits came to be.
        findings: What the audit found.
        content_id: Hex digest over image contents, labels and splits.
        side_quantiles: 5 %, 50 % and 95 % quantile of the images' shorter side, pixels.
        train_groups: In how many independent groups of training images each class occurs, K integers; empty where every
            image is its own.
    """

    origin: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    split_rule: str
    findings: tuple[Finding, ...] = ()
    content_id: str = ""
    side_quantiles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    train_groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require(len(self.classes) >= 2, f"DataSummary.classes needs 2 classes or more, got {len(self.classes)}.")
        for split, counts in self.counts.items():
            _require(
                len(counts) == len(self.classes),
                f"DataSummary.counts[{split!r}] needs one count per class, got {len(counts)} for {len(self.classes)}.",
            )

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    def size(self, split: str) -> int:
        """Images in a split; 0 if there is no such split."""
        return sum(self.counts.get(split, ()))

    @property
    def train_images(self) -> int:
        """N of the training split."""
        return self.size("train")

    @property
    def train_per_class(self) -> float:
        """Mean number of training images per class."""
        return self.train_images / self.num_classes

    @property
    def fewest_groups(self) -> int:
        """Independent groups of training images that the class with the fewest has: 2 let one be held back."""
        return min(self.train_groups or self.counts["train"])

    @property
    def imbalance(self) -> float:
        """Largest class over smallest non-empty class, in the training split; 1 is balanced."""
        present = [count for count in self.counts["train"] if count > 0]
        return max(present) / min(present) if present else 1.0


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
                _share("ProbeScore", name, getattr(self, name))

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
        _require(self.images >= 1, f"CurvePoint.images must be >= 1, got {self.images!r}.")
        _share("CurvePoint", "accuracy", self.accuracy)
        _require(self.error >= 0, f"CurvePoint.error must be >= 0, got {self.error!r}.")


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
                _share("SimilarityDetail", name, getattr(self, name))


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
            _share("ViewScore", "accuracy", self.accuracy)


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
            _share("Evidence", "similarity", self.similarity)

    def probe(self, stage: str, method: str = "ridge") -> ProbeScore:
        """The score of one stage ("joined" included)."""
        for score in self.probes:
            if score.stage == stage and score.method == method:
                return score
        known = ", ".join(score.stage for score in self.probes if score.method == method)
        raise KeyError(f"No {method} probe of stage {stage!r}. Known: {known}.")


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One thing that could be done, with what to expect of it.

    Args:
        strategy: Registered strategy name.
        stage: The stage it would use, "joined" or "selected".
        expected_accuracy: In [0, 1].
        low, high: 95 % interval of the expectation.
        cost_seconds: Further seconds it would take on this machine.
    """

    strategy: str
    stage: str
    expected_accuracy: float
    low: float
    high: float
    cost_seconds: float

    def __post_init__(self) -> None:
        for name in ("expected_accuracy", "low", "high"):
            _share("Alternative", name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which strategy was chosen or asked for, and why; `transferkit.decision.complete` makes a `Decision` of it.

    Args:
        strategy: "linear_probe", "few_layers", "many_layers", ...
        stage: The stage whose features the head reads ("joined": all of them; "selected": all, weighted).
        mode: How it was chosen: "rule", "evidence", "search", or "given".
        reasons: Sentences with the numbers in them.
        expected: What to expect of it; None where that is not known.
        alternatives: What else could be done, best first.
        tuned: Stages to train, for the strategies that train some whole; empty: the strategy's own choice.
    """

    strategy: str
    stage: str
    mode: str
    reasons: tuple[str, ...]
    expected: Alternative | None = None
    alternatives: tuple[Alternative, ...] = ()
    tuned: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(bool(self.reasons), f"{type(self).__name__}.reasons must name at least one reason.")

    @property
    def options(self) -> tuple[Alternative, ...]:
        """All that was weighed: what is expected of this, and the alternatives."""
        return (*(() if self.expected is None else (self.expected,)), *self.alternatives)


@dataclass(frozen=True, kw_only=True)
class Decision(Choice):
    """What to do, how, and why.

    Args:
        strategy, stage, mode, reasons, alternatives, tuned: As for `Choice`.
        lr: Learning rate to start at; 0 for a closed-form strategy, which has none.
        lr_scale: `lr` as a share of the backbone's original learning rate.
        norm: What becomes of normalisation layers: "keep", "frozen", "group", ...
        expected: What is promised of it: before anything is fitted from the frozen pass and earlier tasks, afterwards
            from the `held_back` images. None where that is not known.
        expected_before: What was expected before anything was fitted; None while `expected` still says it, or if that
            was not known.
        held_back: Images that the fitted model was judged on for `expected`; 0 before anything is fitted, or if none
            could be held back.
    """

    lr: float
    lr_scale: float
    norm: str
    expected_before: Alternative | None = None
    held_back: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lr", "lr_scale"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, f"Decision.{name} must be finite and >= 0, got {value!r}.")
        _require(self.held_back >= 0, f"Decision.held_back must be >= 0, got {self.held_back!r}.")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What one rule of a freeze plan takes hold of, in one stage and phase.

    Args:
        phase: Name of the phase.
        rule: The rule, as it is written for people.
        stage: A stage name, or "head".
        tensors: Parameter tensors.
        parameters: Numbers in them.
        lr: Their learning rate; 0 where they are frozen.
        decayed: Numbers among them that weight decay acts on (not those of norms and biases).
        statistics: What becomes of the stage's running statistics: "fixed", "updated", or "none" to speak of.
    """

    phase: str
    rule: str
    stage: str
    tensors: int
    parameters: int
    lr: float
    decayed: int
    statistics: str


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch of training measured.

    Args:
        number: From 0.
        phase: Name of the phase.
        train_loss: Mean over the epoch's steps, with augmentation and all that is added to the loss.
        lr: Highest learning rate at its end.
        seconds: It took, validation included.
        val_loss, val_accuracy: On the held-back images; None without any.
    """

    number: int
    phase: str
    train_loss: float
    lr: float
    seconds: float
    val_loss: float | None = None
    val_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One of the models that could be returned after training, judged on held-back images.

    Args:
        name: "probe", "fine-tuned" or "average".
        weight: Of the fine-tuned network's logits in it, in [0, 1].
        accuracy: On the held-back images, in [0, 1].
        log_loss: On them, nats.
        gain_error: Standard error of `accuracy` less that of the probe, image by image, >= 0.
        plain_accuracy: The same where images do not count by their classes, as in a test; None: `accuracy` is that.
    """

    name: str
    weight: float
    accuracy: float
    log_loss: float
    gain_error: float = 0.0
    plain_accuracy: float | None = None

    def __post_init__(self) -> None:
        _share("Candidate", "weight", self.weight)
        _share("Candidate", "accuracy", self.accuracy)


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """How a network was fine-tuned, and what was kept of it.

    Args:
        claims: What the freeze plan took hold of, phase by phase, stem -> head.
        epochs: Of what was validated, mean over the folds.
        best_epoch: Number of the epoch whose weights did best on the held-back images.
        held_back: Images that training did not see while the number of epochs and the blend were chosen.
        how: A sentence: which images those are, and whether the network was fitted to them afterwards.
        candidates: Probe, fine-tuned network and averages of the two.
        kept: The one that is returned.
        notes: Sentences: what was cached, what fell back, what was halved.
        lr_factor: What the decision's learning rates were multiplied by, as trials or a range test advised; > 0.
    """

    claims: tuple[Claim, ...]
    epochs: tuple[Epoch, ...]
    best_epoch: int
    held_back: int
    how: str
    candidates: tuple[Candidate, ...]
    kept: Candidate
    notes: tuple[str, ...] = ()
    lr_factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """How well a model does on one split.

    Args:
        images: N.
        accuracy: In [0, 1].
        low, high: 95 % Wilson interval of the accuracy; images of one group and copies count as far as they are
            independent.
        balanced_accuracy: Mean recall over the classes present, in [0, 1].
        log_loss: Mean negative log-likelihood in nats, >= 0.
        calibration_error: Expected calibration error over 15 equal-mass bins, in [0, 1].
    """

    images: int
    accuracy: float
    low: float
    high: float
    balanced_accuracy: float
    log_loss: float
    calibration_error: float

    def __post_init__(self) -> None:
        for name in ("accuracy", "low", "high", "balanced_accuracy", "calibration_error"):
            _share("Metrics", name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A model's answers on a split that it was not fitted on.

    Args:
        split: "test" or "val".
        labels: (N,) int in [0, K).
        probabilities: (N, K) float, rows sum to 1.
        items: N file names or row names.
    """

    split: str
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    items: tuple[str, ...]

    def __post_init__(self) -> None:
        _require(
            self.probabilities.ndim == 2 and len(self.probabilities) == len(self.labels) == len(self.items),
            f"HeldOut needs N labels, (N, K) probabilities and N items, got {self.labels.shape}, "
            f"{self.probabilities.shape} and {len(self.items)}.",
        )


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A small picture for people.

    Args:
        jpeg: The encoded picture.
        item: The file or row it shows.
    """

    jpeg: bytes
    item: str


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A held-out image that the model got wrong.

    Args:
        picture: What it looks like.
        true, predicted: Class names.
        confidence: Probability the model gave its answer, in [0, 1].
    """

    picture: Picture
    true: str
    predicted: str
    confidence: float


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that is known about a run, but for its weights: what `result.json` holds and the report shows.

    Args:
        evidence: What was measured.
        decision: What was decided.
        metrics: Split name -> how the returned model does there.
        seconds: Phase -> wall-clock seconds; "total" is the sum a person waited.
        environment: Versions, machine, seed: what it takes to run it again.
        command: The command line or call that reproduces the run.
        training: How the network was fine-tuned; None where nothing but a head was fitted.
        held_out: The answers behind the pictures below; the test split if there is one, else validation.
        samples: Class name -> a few training pictures.
        mistakes: Worst first.
        settings: Argument of `adapt` -> value: what to open the same images with, and to tell whether another run is
            the same; empty where it was not recorded.
        held_back_accuracy: Of the returned model on images held back from its fit, the test images not among them, in
            [0, 1]: what runs of a sweep are compared by.
        trained_on: The least content digests of the training images, as many as tell reliably whether other images
            are among them.
    """

    evidence: Evidence
    decision: Decision
    metrics: Mapping[str, Metrics]
    seconds: Mapping[str, float]
    environment: Mapping[str, Any]
    command: str
    training: TrainingRecord | None = None
    held_out: HeldOut | None = None
    samples: Mapping[str, tuple[Picture, ...]] = field(default_factory=dict)
    mistakes: tuple[Mistake, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    held_back_accuracy: float | None = None
    trained_on: tuple[str, ...] = ()

    @property
    def untested_images(self) -> int:
        """Images of the test split, if it was not scored yet; else 0."""
        return 0 if "test" in self.metrics else self.evidence.data.size("test")

    def is_disappointing(self, split: str) -> bool:
        """Whether a split's accuracy lies below what was expected, interval below interval."""
        scores, expected = self.metrics.get(split), self.decision.expected
        return scores is not None and expected is not None and scores.high < expected.low


@dataclass(frozen=True, kw_only=True)
class MeasureScore:
    """What one measure of transferability says about one backbone.

    Args:
        measure: Its registered name.
        stage: The stage it looked at; for measures of the source's own classifier, that classifier's.
        value: Higher is better; what it may be compared across is in the measure's docstring. None: see `reason`.
        seconds: Wall-clock seconds it took.
        reason: Why there is no value.
    """

    measure: str
    stage: str
    value: float | None
    seconds: float
    reason: str = ""

    def __post_init__(self) -> None:
        known = self.value is not None and math.isfinite(self.value)
        _require(known != bool(self.reason), f"MeasureScore {self.measure!r} needs a finite value or a reason.")


@dataclass(frozen=True, kw_only=True)
class RankedModel:
    """One backbone of a ranking.

    Args:
        name: What it was asked for by.
        rank: 1 is best; equals share a rank.
        rank_low, rank_high: 95 % interval of the rank over bootstrap resamples of the training images.
        best: Share of the resamples in which it is the best one, in [0, 1].
        joined: The probe on all its stages joined: what it is ranked by.
        best_stage: The best probe on a single stage.
        prior: What the dataset-agnostic prior says about it (see `Ranking.prior`).
        prior_rank: Its rank by the prior alone.
        scores: What the measures of transferability say.
        images_per_second: Speed of the frozen pass just run, decoding included; None if all rows came from the bank.
        parameters: Of the trunk, head excluded.
        image_size: Side in pixels at which it ran.
        width: D of all its stages joined.
        gigaflops: Per image at that size, a multiplication with its addition as two; None if it could not be counted.
        pretrained: Whether its weights are really pretrained.
        published_by: Who says so, where the prior is a published accuracy.
        seconds: Phase -> wall-clock seconds.
    """

    name: str
    rank: int
    rank_low: int
    rank_high: int
    best: float
    joined: ProbeScore
    best_stage: ProbeScore
    prior: float
    prior_rank: int
    scores: tuple[MeasureScore, ...]
    images_per_second: float | None
    parameters: int
    image_size: int
    width: int
    gigaflops: float | None
    pretrained: bool
    published_by: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _share("RankedModel", "best", self.best)
        _require(
            1 <= self.rank_low <= self.rank_high,
            f"RankedModel needs 1 <= rank_low <= rank_high, got {self.rank_low!r} and {self.rank_high!r}.",
        )


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A model that could not be ranked.

    Args:
        name: What it was asked for by.
        reason: Why, and what to do.
    """

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Which backbone suits some images, from features alone.

    Args:
        models: Best first; equals in the order of their held-back squared error.
        reasons: Sentences with the numbers in them: who is first, and how sure that is.
        data: The data they were ranked on.
        prior: What ranks them without looking at the data: "published accuracy" on ImageNet-1k if it is known for all
            of them, else "parameters".
        left_out: Models that could not be ranked.
        images: Training images that the ranks rest on.
        measured_images: How many of them the measures of transferability saw.
        resamples: Bootstrap resamples behind the intervals.
        pooling: "avg" or "avg+max".
        seed: What it was drawn with.
        seconds: Wall-clock seconds in all.
        command: The command line or call that reproduces it.
    """

    models: tuple[RankedModel, ...]
    reasons: tuple[str, ...]
    data: DataSummary
    prior: str
    left_out: tuple[LeftOut, ...] = ()
    images: int
    measured_images: int
    resamples: int
    pooling: str
    seed: int
    seconds: float = 0.0
    command: str = ""

    def __post_init__(self) -> None:
        _require(bool(self.models), "Ranking.models must name at least one model.")

    @property
    def best(self) -> RankedModel:
        """The first one. Whether others may be as good is in their intervals."""
        return self.models[0]

    def model(self, name: str) -> RankedModel:
        """The row of one model."""
        for row in self.models:
            if row.name == name:
                return row
        raise KeyError(f"No model {name!r} in this ranking. Known: {', '.join(row.name for row in self.models)}.")
