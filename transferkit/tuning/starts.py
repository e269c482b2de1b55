"""Where a search starts: the advised settings, then points that did well on earlier tasks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from transferkit.options import Recipe
from transferkit.tuning.space import Choices, Dimension, Space, draw_points

__all__ = ["ADVISED", "nearest_value", "read_starts", "starting_points"]

ADVISED: Mapping[str, Any] = {
    "train.lr": 1.0,
    "unfreeze": 5 / 9,
    **{
        f"train.{name}": getattr(Recipe(), name)
        for name in ("momentum", "dropout", "weight_decay", "layer_decay", "schedule")
    },
}
"""The settings of `adapt`, written as those of earlier tasks are: the rate as a multiple of the decision's, the depth
as a share of the stages."""


@cache
def read_starts() -> tuple[Mapping[str, Any], ...]:
    """Points that did well on earlier tasks, the most useful first; scripts/bench_tune.py learns them.

    Each was chosen for what it adds to those before: of all points that were tried, the one that leaves the least to
    the best one of each task, on average.

    References:
        Feurer et al., Auto-Sklearn 2.0, JMLR 2022 (portfolios built greedily). Deviation: rates are multiples of the
        rate that is decided, so that a point carries over to other backbones and batch sizes.
    """
    text = files("transferkit").joinpath("knowledge", "search_starts.json").read_text(encoding="utf-8")
    return tuple(json.loads(text)["points"])


def starting_points(
    space: Space,
    *,
    lr: float,
    stages: int,
    batch_size: int = 32,
    seed: int = 0,
    known: Sequence[Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Points of a space to begin with: nearest to the advised settings, then to those of earlier tasks.

    A setting of the space that these do not name is drawn at random.

    Args:
        space: What is searched.
        lr: The decision's rate.
        stages: Number of the backbone's.
        batch_size: The one that is advised.
        seed: Of what is drawn.
        known: Points of earlier tasks; None takes those that ship with the package.

    Example:
        >>> from transferkit.tuning.space import Range
        >>> space = {"train.lr": Range(low=1e-5, high=1e-2, log=True)}
        >>> starting_points(space, lr=1e-3, stages=9, known=[{"train.lr": 3.0}, {"train.lr": 30.0}])
        [{'train.lr': 0.001}, {'train.lr': 0.003}, {'train.lr': 0.01}]
    """
    scale = {"train.lr": lr, "unfreeze": stages}
    wanted = [{**ADVISED, "train.batch_size": batch_size}, *(read_starts() if known is None else known)]
    if not any(name in point for name in space for point in wanted):
        return []
    points = draw_points(space, len(wanted), seed=seed)
    for drawn, known_point in zip(points, wanted, strict=True):
        for name in space.keys() & known_point.keys():
            value = known_point[name]
            drawn[name] = nearest_value(space[name], scale[name] * value if name in scale else value)
    return [point for place, point in enumerate(points) if point not in points[:place]]


def nearest_value(one: Dimension, wanted: Any) -> Any:
    """The value of a dimension that is nearest to another one; among names, that name or the first.

    Example:
        >>> nearest_value(Choices(values=(8, 16, 32)), 21), nearest_value(Choices(values=("a", "b")), "b")
        (16, 'b')
    """
    if not isinstance(one, Choices):
        return one.at(min(max(one.share(min(max(wanted, one.low), one.high)), 0.0), 1.0))
    if wanted in one.values:
        return one.values[one.values.index(wanted)]  # 3 where 3.0 is wanted
    numbers = [value for value in one.values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if not numbers or not isinstance(wanted, (int, float)):
        return one.values[0]
    by_factor = min(*numbers, wanted) > 0
    return min(numbers, key=lambda value: abs(math.log(value / wanted)) if by_factor else abs(value - wanted))
