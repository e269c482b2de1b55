"""Arithmetic on finished cells: final accuracies, differences, ratios of seconds, accuracy at a moment."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from regret.scoring import interval

from peers.results import PLACE, latest
from peers.tasks import ALL

SMALL = 500
"""Up to this many training images a task counts as small."""

SHARE_OF_TIME = 1 / 3
"""Of a peer's seconds within which ours should be as accurate."""


class Place(NamedTuple):
    """A task at a number of images per class; intervals are drawn by its family."""

    task: str
    family: str
    level: int
    train: int

    @property
    def label(self) -> str:
        """Its name in tables."""
        return self.task if self.level == ALL else f"{self.task}, {self.level} per class"


class Final(NamedTuple):
    """Where a contestant ended at a place, means over seeds."""

    accuracy: float
    seconds: float
    since_start: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One of ours against one peer, over the places where both finished.

    Args:
        ours, peer: Names.
        places: How many.
        points: Mean over tasks of our accuracy minus the peer's, in points.
        points_interval: Its 95 % bootstrap interval over tasks; None with fewer than two families of tasks.
        losses: Label of a place -> points, for each where the peer was more accurate.
        speed: The peer's seconds divided by ours, geometric mean over tasks, counted from readiness.
        speed_interval: Its 95 % interval.
        speed_since_start: The same counted from the start of the process.
        slower: At how many places ours took more seconds.
        early: At how many places ours was as accurate in at most `SHARE_OF_TIME` of the peer's seconds.
    """

    ours: str
    peer: str
    places: int
    points: float
    points_interval: tuple[float, float] | None
    losses: Mapping[str, float]
    speed: float
    speed_interval: tuple[float, float] | None
    speed_since_start: float
    slower: int
    early: int


def finals(records: Sequence[Mapping[str, Any]]) -> dict[Place, dict[str, Final]]:
    """Place -> contestant -> its last point, mean over seeds; failed runs are left out."""
    seeds: dict[Place, dict[str, list[Final]]] = {}
    for record in latest(records):
        place = place_of(record)
        seeds.setdefault(place, {})
        if record["error"] or not record["points"]:
            continue
        last = record["points"][-1]
        seeds[place].setdefault(record["contestant"], []).append(
            Final(last["accuracy"], last["seconds"], last["since_start"])
        )
    return {
        place: {
            name: Final(*(statistics.fmean(column) for column in zip(*runs, strict=True)))
            for name, runs in found.items()
        }
        for place, found in sorted(seeds.items())
    }


def place_of(record: Mapping[str, Any]) -> Place:
    """Where a record was measured, its seed left out."""
    return Place(record["task"], record["family"], record["level"], record["train"])


def compare(found: Mapping[Place, Mapping[str, Final]], ours: str, peer: str) -> Comparison | None:
    """Ours against a peer; None if they share no place."""
    both = {place: (one[ours], one[peer]) for place, one in found.items() if ours in one and peer in one}
    if not both:
        return None
    places = list(both)
    points = [100 * (mine.accuracy - theirs.accuracy) for mine, theirs in both.values()]
    logs = [math.log(theirs.seconds / mine.seconds) for mine, theirs in both.values()]
    logs_since_start = [math.log(theirs.since_start / mine.since_start) for mine, theirs in both.values()]
    speed_interval = bootstrap(places, logs)
    return Comparison(
        ours=ours,
        peer=peer,
        places=len(places),
        points=mean_by_task(places, points),
        points_interval=bootstrap(places, points),
        losses={place.label: value for place, value in zip(places, points, strict=True) if value < 0},
        speed=math.exp(mean_by_task(places, logs)),
        speed_interval=None if speed_interval is None else (math.exp(speed_interval[0]), math.exp(speed_interval[1])),
        speed_since_start=math.exp(mean_by_task(places, logs_since_start)),
        slower=sum(value < 0 for value in logs),
        early=sum(
            mine.accuracy >= theirs.accuracy and mine.seconds <= SHARE_OF_TIME * theirs.seconds
            for mine, theirs in both.values()
        ),
    )


def mean_by_task(places: Sequence[Place], values: Sequence[float]) -> float:
    """Mean over tasks of the means over a task's places.

    Example:
        >>> a, b = Place("a", "a", 20, 60), Place("b", "b", 20, 60)
        >>> mean_by_task([a, a._replace(level=5), b], [1.0, 3.0, 6.0])
        4.0
    """
    tasks: dict[str, list[float]] = {}
    for place, value in zip(places, values, strict=True):
        tasks.setdefault(place.task, []).append(value)
    return statistics.fmean(statistics.fmean(inside) for inside in tasks.values())


def bootstrap(places: Sequence[Place], values: Sequence[float]) -> tuple[float, float] | None:
    """95 % bootstrap interval of `mean_by_task`, a task drawn together with its copies; None with one family."""
    if len({place.family for place in places}) < 2:
        return None
    return interval(places, values)  # type: ignore[arg-type]


def accuracy_at(points: Sequence[Mapping[str, Any]], seconds: float, *, chance: float) -> float:
    """Accuracy of the model that a contestant has at a moment; before its first point that of guessing.

    Example:
        >>> points = [{"seconds": 1.0, "accuracy": 0.5}, {"seconds": 2.0, "accuracy": 0.4}]
        >>> [accuracy_at(points, at, chance=0.1) for at in (0.5, 1.0, 9.0)]
        [0.1, 0.5, 0.4]
    """
    reached = [point["accuracy"] for point in points if point["seconds"] <= seconds]
    return float(reached[-1]) if reached else chance


def mean_curves(records: Sequence[Mapping[str, Any]], moments: Sequence[float]) -> dict[str, list[float]]:
    """Contestant -> mean accuracy at each moment, over the runs that every contestant of the file finished.

    Contestants that failed everywhere are left out.
    """
    done = [record for record in latest(records) if not record["error"] and record["points"]]
    names = list(dict.fromkeys(record["contestant"] for record in done))
    shared = common_runs(done, names)
    return {
        name: [
            statistics.fmean(
                accuracy_at(record["points"], moment, chance=1 / record["classes"])
                for record in done
                if record["contestant"] == name and run_of(record) in shared
            )
            for moment in moments
        ]
        for name in names
        if shared
    }


def run_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """The task, level and seed of a record."""
    return tuple(record[key] for key in PLACE)


def common_runs(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> set[tuple[Any, ...]]:
    """The runs that each of these contestants has a record of."""
    finished = [{run_of(record) for record in records if record["contestant"] == name} for name in names]
    return set.intersection(*finished) if finished else set()


def failures(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """(contestant, place, reason) of every run that failed."""
    for record in latest(records):
        if record["error"]:
            yield record["contestant"], place_of(record).label, record["error"]
