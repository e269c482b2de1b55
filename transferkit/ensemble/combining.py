"""Finished runs combined: other backbones, geometries, seeds or strategies, weighted by held-back images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError, list_problems, unknown_name
from transferkit.ensemble.soups import WEIGHT_METHODS, average_weights
from transferkit.ensemble.weighing import Weighed, weigh_members
from transferkit.measure import log_loss
from transferkit.records import HeldBackScores
from transferkit.result import Ensemble, Result, load

__all__ = ["FEWEST_IMAGES", "combine_runs"]

FEWEST_IMAGES = 40
"""Held-back images below which weights would be chance."""


METHODS = ("average", *WEIGHT_METHODS)


def combine_runs(
    runs: Sequence[Result | str | Path], *, method: str = "average", val: Any = None, seed: int = 0
) -> tuple[Ensemble | Result, tuple[str, ...]]:
    """As `transferkit.combine`, without writing anything; and sentences about it."""
    if isinstance(runs, (str, Path)) or len(runs) < 2:
        raise OptionError(f"combine needs two finished runs or more, runs=[A,B], got {runs!r}.")
    if method not in METHODS:
        raise OptionError(unknown_name("method", method, METHODS))
    if method == "average" and val is not None:
        raise OptionError("method=average weighs runs by their own held-back images. Leave val out.")
    members = [one if isinstance(one, Result) else load(one) for one in runs]
    names = [_name(one, number) for number, one in enumerate(runs)]
    if method in WEIGHT_METHODS:
        return average_weights(members, names, method=method, val=val)
    found = _average_logits(members, names, seed=seed)
    return found, found.sentences


def _average_logits(members: Sequence[Result], names: Sequence[str], *, seed: int) -> Ensemble:
    _check(members, names)
    rows = _common_rows(members)
    scores = [_at(one.held_back_scores, rows) for one in members]
    labels = scores[0].labels
    if any((one.labels != labels).any() for one in scores):
        raise OptionError("The runs were not trained on the same images: their held-back images have other labels.")
    weighed = weigh_members(np.stack([one.logits for one in scores]), labels, seed=seed)
    singles = [(one.accuracy, -log_loss(one.probabilities, labels)) for one in scores]
    best = max(range(len(members)), key=lambda number: singles[number])
    said = (
        f"The average has {100 * weighed.accuracy:.1f} % (log loss {weighed.log_loss:.3f}) on {len(labels):,} "
        f"held-back images, each with weights that were chosen without it; the best single run, {names[best]}, has "
        f"{100 * singles[best][0]:.1f} % ({-singles[best][1]:.3f})."
    )
    if weighed.accuracy < singles[best][0] or weighed.log_loss >= -singles[best][1]:
        return Ensemble(
            [members[best]],
            [1.0],
            sentences=(said, f"{names[best]} alone is returned."),
            held_back_scores=members[best].held_back_scores,
        )
    return _average(members, names, weighed, said, HeldBackScores(labels=labels, logits=_single(weighed), rows=rows))


def _average(
    members: Sequence[Result], names: Sequence[str], weighed: Weighed, said: str, scores: HeldBackScores
) -> Ensemble:
    shares = weighed.weights / weighed.weights.sum()
    used = [number for number, weight in enumerate(weighed.weights) if weight > 0]
    named = ", ".join(f"{names[number]} ({shares[number]:.2g})" for number in used)
    cost = f"The average is returned: {named}. Predicting with it costs the sum of its {len(used)} members."
    return Ensemble(
        [members[number] for number in used],
        [float(weighed.weights[number]) for number in used],
        sentences=(said, cost),
        held_back_scores=scores,
    )


def _single(weighed: Weighed) -> npt.NDArray[np.float32]:
    return weighed.logits.astype(np.float32)


def _name(run: Result | str | Path, number: int) -> str:
    return f"run {number + 1}" if isinstance(run, Result) else str(run)


def _check(members: Sequence[Result], names: Sequence[str]) -> None:
    """Raise with all that keeps the runs from answering together."""
    first, problems = members[0], []
    for one, name in zip(members, names, strict=True):
        if one.task != "single_label":
            problems.append(f"{name} has task={one.task}; only runs with one class per image are combined")
        elif one.classes != first.classes:
            own, others = set(one.classes), set(first.classes)
            differing = sorted(own ^ others)
            shown = ", ".join(differing[:5]) or "the same ones in another order"
            problems.append(f"{name} has other classes than {names[0]}: {shown}")
        elif one.held_back_scores is None:
            problems.append(f"{name} has no held-back scores to choose weights by; run adapt again")
        elif one.record.trained_on != first.record.trained_on:
            problems.append(f"{name} was trained on other images than {names[0]}")
    if not problems and (common := len(_common_rows(members))) < FEWEST_IMAGES:
        problems.append(
            f"{common} images were held back from all of them; weights need {FEWEST_IMAGES} (train on more images)"
        )
    if problems:
        raise OptionError(list_problems("These runs cannot be combined:", problems))


def _common_rows(members: Sequence[Result]) -> npt.NDArray[np.int64]:
    """(M,) ascending indices of the images that were held back from all members."""
    rows = members[0].held_back_scores.rows if members[0].held_back_scores is not None else np.empty(0, dtype=np.int64)
    for one in members[1:]:
        assert one.held_back_scores is not None
        rows = np.intersect1d(rows, one.held_back_scores.rows)
    return np.sort(rows)


def _at(scores: HeldBackScores | None, rows: npt.NDArray[np.int64]) -> HeldBackScores:
    assert scores is not None
    order = np.argsort(scores.rows, kind="stable")
    return scores.take(order[np.searchsorted(scores.rows[order], rows)])
