"""Few-shot classification: arrays in, numbers out. A file per method; `FEW_SHOT` is their registry."""

from transferkit.measure.few_shot.catalog import FEW_SHOT, FewShotMethod
from transferkit.measure.few_shot.episodes import Episode, draw_episodes
from transferkit.measure.few_shot.nearest_mean import unit_rows
from transferkit.measure.few_shot.shots import Shots
from transferkit.measure.few_shot.space import (
    FeatureSpace,
    Scatter,
    StagePart,
    late_parts,
    total_scatter,
    within_scatter,
)

__all__ = [
    "FEW_SHOT",
    "Episode",
    "FeatureSpace",
    "FewShotMethod",
    "Scatter",
    "Shots",
    "StagePart",
    "draw_episodes",
    "late_parts",
    "total_scatter",
    "unit_rows",
    "within_scatter",
]
