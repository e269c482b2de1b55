"""Few-shot tasks drawn from labelled images: some classes, a few shots of each, and queries to be told apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError
from transferkit.records import Folds

__all__ = ["Episode", "draw_episodes"]

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Episode:
    """One task.

    Args:
        shots: (K * shots,) rows of the labelled images, class by class.
        shot_labels: Theirs, in [0, K).
        queries: (Q,) rows of the images to be told apart.
        query_labels: Theirs.
    """

    shots: Indices
    shot_labels: Indices
    queries: Indices
    query_labels: Indices


def draw_episodes(
    folds: Folds,
    *,
    ways: int,
    shots: int,
    queries: int,
    episodes: int,
    imbalance: float | None = None,
    seed: int = 0,
) -> Iterator[Episode]:
    """Draw tasks; a query is never a copy of a shot, nor of its group.

    Args:
        folds: Labels and groups of the N images.
        ways: Classes in a task.
        shots: Labelled images of each.
        queries: Of each; with `imbalance` `ways * queries` in all.
        episodes: How many tasks.
        imbalance: None: as many queries of each class. Else the Dirichlet parameter that class shares of the queries
            are drawn with in each task: 1 draws all shares alike, more is more even. As in Veilleux et al., NeurIPS
            2021 (there 2); a class never gives more queries than it has images.
        seed: Of the draw.

    Raises:
        DataError: Too few classes have enough images.

    Example:
        >>> folds = Folds.alone(np.repeat(np.arange(4), 3))
        >>> task = next(draw_episodes(folds, ways=2, shots=1, queries=2, episodes=1))
        >>> task.shot_labels.tolist(), task.query_labels.tolist()
        ([0, 1], [0, 0, 1, 1])
    """
    rng = np.random.default_rng(seed)
    members = _usable_classes(folds, ways=ways, shots=shots, queries=queries)
    for _ in range(episodes):
        chosen = rng.choice(len(members), size=ways, replace=False)
        drawn = [_draw_class(members[one], folds.groups, shots, rng) for one in chosen]
        taken = folds.groups[np.concatenate([own for own, _ in drawn])]
        others = [rest[~np.isin(folds.groups[rest], taken)] for _, rest in drawn]
        room = np.array([len(rest) for rest in others])
        sizes = np.minimum(room, queries)
        if imbalance is not None:
            sizes = _uneven_sizes(room, ways * queries, rng.dirichlet(np.full(ways, imbalance)), rng)
        classes = np.arange(ways)
        yield Episode(
            shots=np.concatenate([own for own, _ in drawn]),
            shot_labels=np.repeat(classes, shots),
            queries=np.concatenate([rest[:size] for rest, size in zip(others, sizes, strict=True)]),
            query_labels=np.repeat(classes, sizes),
        )


def _usable_classes(folds: Folds, *, ways: int, shots: int, queries: int) -> list[Indices]:
    """Images of each class that has enough of them.

    Raises:
        DataError: They are too few.
    """
    labels = np.unique(folds.labels)
    members = [np.flatnonzero(folds.labels == one) for one in labels]
    independent = [len(np.unique(folds.groups[rows])) for rows in members]
    enough = [rows for rows, number in zip(members, independent, strict=True) if number >= shots + queries]
    if len(enough) >= ways:
        return enough
    most = sorted(independent, reverse=True)
    if len(labels) < ways:
        remedy = f"Ask for fewer: ways={len(labels)}." if len(labels) > 1 else "Give images of 2 classes or more."
        raise DataError(f"Episodes of {ways} classes need {ways}; the images are of {len(labels)}. {remedy}")
    room = most[ways - 1] - shots
    remedy = f"queries={room}" if room > 0 else f"ways={max(2, sum(one > shots for one in most))} or fewer shots"
    raise DataError(
        f"{ways} classes with {shots + queries} independent images each are needed ({shots} shots and {queries} "
        f"queries); {len(enough)} have as many, and the class at place {ways} has {most[ways - 1]}. Ask for {remedy}."
    )


def _draw_class(
    rows: Indices, groups: npt.NDArray[np.int64], shots: int, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """Shots of different groups, and the other images in random order."""
    mixed = rng.permutation(rows)
    _, first = np.unique(groups[mixed], return_index=True)
    own = np.sort(first)[:shots]
    return mixed[own], np.delete(mixed, own)


def _uneven_sizes(
    room: npt.NDArray[np.int64], total: int, shares: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """How many queries each class has; what a class has no images for, goes to the others by their shares."""
    sizes = np.zeros(len(room), dtype=np.int64)
    while (left := min(total, int(room.sum())) - int(sizes.sum())) > 0:
        free = np.where(sizes < room, shares + np.finfo(np.float64).tiny, 0)
        sizes = np.minimum(room, sizes + rng.multinomial(left, free / free.sum()))
    return sizes
