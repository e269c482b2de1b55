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
        require(known != bool(self.reason), f"MeasureScore {self.measure!r} needs a finite value or a reason.")


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
        require_share("RankedModel", "best", self.best)
        require(
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
        require(bool(self.models), "Ranking.models must name at least one model.")

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
