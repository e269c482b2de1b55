"""How well a gain model transfers from some backbones to another: similarity, learning rates, gains, regrets."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from scipy.stats import spearmanr

from regret.cells import Cell, as_weighed, families_of, with_only, without_family
from regret.learning import learn
from regret.scoring import part
from transferkit.decision.weighing import TUNED_SHARES
from transferkit.records import SELECTED

LEAST_TASKS = 3
"""Minimum number of tasks for a rank correlation."""


def carry_over(cells: Sequence[Cell], model: str) -> dict[str, Any]:
    """Results on one backbone of models fitted on the others, every task without its family.

    Args:
        cells: Of all backbones.
        model: The backbone that is evaluated.
    """
    own, others = ([cell for cell in cells if (cell.model == model) is same] for same in (True, False))
    alone, untuned = [replace(cell, tuned={}) for cell in own], [replace(cell, tuned={}) for cell in others]
    found: dict[str, Any] = {
        "similarity": compare_similarities(own, others),
        "learning rates": {name: share_of_faster(group) for name, group in (("here", own), ("others", others))},
        "gain of fine-tuning, points": {
            name: gain_errors(own, known) for name, known in (("others teach", others), ("it teaches itself", own))
        },
        "linear heads alone": {"others teach": part(alone, untuned), "it teaches itself": part(alone, alone)},
    }
    if weighed := with_only(own, TUNED_SHARES):
        found["ways that are weighed"] = {
            "others teach": part(weighed, as_weighed(others)),
            "it teaches itself": part(weighed, as_weighed(own)),
        }
    return found


def compare_similarities(own: Sequence[Cell], others: Sequence[Cell]) -> dict[str, Any]:
    """Similarity by task, here and on the other backbones, to compare the scales."""
    here, there = similarities(own), similarities(others)
    both = sorted(set(here) & set(there))
    pairs = [(here[task], there[task]) for task in both]
    return {
        "tasks": len(both),
        "rank correlation": rank_correlation(pairs),
        "mean here": round(statistics.fmean(one for one, _ in pairs), 3) if pairs else None,
        "mean on the others": round(statistics.fmean(other for _, other in pairs), 3) if pairs else None,
        "by task": {task: [round(here[task], 3), round(there[task], 3)] for task in both},
    }


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rank correlation; None for fewer than three pairs."""
    if len(pairs) < LEAST_TASKS:
        return None
    return round(float(spearmanr(*zip(*pairs, strict=True))[0]), 2)


def similarities(cells: Sequence[Cell]) -> dict[str, float]:
    """Task -> mean over its cells, if known."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        if cell.evidence.similarity is not None:
            found.setdefault(cell.task, []).append(cell.evidence.similarity)
    return {task: statistics.fmean(inside) for task, inside in found.items()}


def share_of_faster(cells: Sequence[Cell]) -> dict[str, float]:
    """Fine-tuning strategy -> share of its runs in which three times the rule's rate was better on held-back images."""
    runs: dict[str, list[bool]] = {}
    for cell in cells:
        for name, found in cell.tuned.items():
            if "lr_factor" in found:
                runs.setdefault(name, []).append(found["lr_factor"] > 1)
    return {name: round(statistics.fmean(inside), 2) for name, inside in sorted(runs.items())}


def gain_errors(own: Sequence[Cell], known: Sequence[Cell]) -> dict[str, Any]:
    """Fine-tuning strategy -> error of its expected gain over the probe, in points."""
    misses: dict[str, list[float]] = {}
    for family in families_of(own):
        model = learn(as_weighed(without_family(known, family)))
        for cell in (cell for cell in own if cell.family == family):
            probe = cell.strategies[cell.kept(SELECTED)]["test"]
            for name in (name for name in cell.tuned if name in model.coefficients):
                gain = model.tuned_gain(name, cell.situation, probe).mean
                misses.setdefault(name, []).append(100 * (gain - (cell.tuned[name]["test"] - probe)))
    return {
        name: {
            "runs": len(inside),
            "expected less real": round(statistics.fmean(inside), 2),
            "root mean square": round(statistics.fmean(miss**2 for miss in inside) ** 0.5, 2),
        }
        for name, inside in sorted(misses.items())
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per backbone, in Markdown."""
    columns = (
        "backbone",
        "rank correlation of similarities",
        "three times the rate better (lp_ft), here and elsewhere",
        "gain of lp_ft, expected less real (root mean square)",
        "mean regret of mode=evidence, others teach",
        "it teaches itself",
        "best constant, others teach",
    )
    lines = [f"| {' | '.join(columns)} |", "|-" * len(columns) + "|"]
    for model, row in found.items():
        rates, gains = row["learning rates"], row["gain of fine-tuning, points"]["others teach"].get("lp_ft")
        regrets = row.get("ways that are weighed", row["linear heads alone"])
        others, itself = (regrets[name]["policies"] for name in ("others teach", "it teaches itself"))
        gain = "" if gains is None else f"{gains['expected less real']:+.1f} ({gains['root mean square']:.1f})"
        lines.append(
            f"| {model} | {row['similarity']['rank correlation']} "
            f"| {rates['here'].get('lp_ft', '')}, {rates['others'].get('lp_ft', '')} | {gain} "
            f"| {others['mode=evidence']['mean']:.2f} | {itself['mode=evidence']['mean']:.2f} "
            f"| {others['best constant']['mean']:.2f} |"
        )
    return "\n".join(lines)
