"""Backbones compared on the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from transferkit.records._checks import require, require_share
from transferkit.records.data import DataSummary
from transferkit.records.evidence import ProbeScore

__all__ = ["LeftOut", "MeasureScore", "RankedModel", "Ranking"]


@dataclass(frozen=True, kw_only=True)
class MeasureScore:
    """Score of one backbone by one measure of transferability.

    Args:
        measure: Its registered name.
        stage: The stage it was computed on; for measures of the source's classifier, that classifier's.
        value: Higher is better; see the measure's docstring for what it may be compared across. None: see `reason`.
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
        require(known != bool(self.reason), f"MeasureScore {self.measure!r} needs a finite value or a reason.")


@dataclass(frozen=True, kw_only=True)
class RankedModel:
    """One backbone of a ranking.

    Args:
        name: As passed by the caller.
        rank: 1 is best; equals share a rank.
        rank_low, rank_high: 95 % interval of the rank over bootstrap resamples of the training images.
        best: Share of the resamples in which it is best, in [0, 1].
        joined: The probe on all its stages joined, which determines its rank.
        best_stage: The best probe on a single stage.
        prior: Value of the dataset-agnostic prior (see `Ranking.prior`).
        prior_rank: Its rank by the prior alone.
        scores: Measures of transferability.
        images_per_second: Speed of the frozen pass just run, decoding included; None if all rows came from the bank.
        parameters: Number of parameters, head excluded.
        image_size: Side in pixels at which it ran.
        width: D of all its stages joined.
        gigaflops: Per image at that size, one multiply-add counted as two; None if it could not be counted.
        pretrained: Whether its weights are pretrained.
        published_by: Source of the prior, if it is a published accuracy.
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
        require_share("RankedModel", "best", self.best)
        require(
            1 <= self.rank_low <= self.rank_high,
            f"RankedModel needs 1 <= rank_low <= rank_high, got {self.rank_low!r} and {self.rank_high!r}.",
        )


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A model that could not be ranked.

    Args:
        name: As passed by the caller.
        reason: Why, and the next step.
    """

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Backbones ranked on the same images, from features alone.

    Args:
        models: Best first; equals in the order of their held-back squared error.
        reasons: Sentences with the numbers in them: which one is first, and how certain that is.
        data: The data they were ranked on.
        prior: Criterion that ignores the data: "published accuracy" on ImageNet-1k if known for all of them, else
            "parameters".
        left_out: Models that could not be ranked.
        images: Training images behind the ranks.
        measured_images: How many of them the measures of transferability used.
        resamples: Bootstrap resamples behind the intervals.
        pooling: "avg" or "avg+max".
        seed: Of the resamples.
        seconds: Wall-clock seconds in total.
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
        require(bool(self.models), "Ranking.models must name at least one model.")

    @property
    def best(self) -> RankedModel:
        """The first one. The others' rank intervals say whether they may be as good."""
        return self.models[0]

    def model(self, name: str) -> RankedModel:
        """The row of one model."""
        for row in self.models:
            if row.name == name:
                return row
        raise KeyError(f"No model {name!r} in this ranking. Known: {', '.join(row.name for row in self.models)}.")
