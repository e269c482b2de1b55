"""Heads on single stages of the witness, beside the run's model: they agree less where both go wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.features import FeatureTable
from transferkit.measure import fit_ridge, fitting_threads
from transferkit.records import Folds

__all__ = ["Opinions", "fit_opinions"]

DEPTHS = (1 / 2, 2 / 3, 1.0)
"""Depths of the stages whose heads are asked, as a share of the stages."""

MOST = 2_000
"""Training images that each head is fitted to at most."""


@dataclass(frozen=True)
class Opinions:
    """E heads in closed form.

    Args:
        stages: (E,) names of the stages.
        weights, biases: (K, D) and (K,) each.
        held_back: (E, M) int class of each reference image, while it was held back.
        positions: (M,) of these among the images the heads were fitted from.
    """

    stages: tuple[str, ...]
    weights: tuple[npt.NDArray[np.float64], ...]
    biases: tuple[npt.NDArray[np.float64], ...]
    held_back: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]

    def classify(self, tables: Sequence[FeatureTable]) -> npt.NDArray[np.int64]:
        """(E, N) classes of the images of these tables, one table after the other."""
        if not self.stages:
            return np.empty((0, sum(map(len, tables))), dtype=np.int64)
        found = []
        for stage, weight, bias in zip(self.stages, self.weights, self.biases, strict=True):
            rows = [(table.load([stage]) @ weight.T + bias).argmax(axis=1) for table in tables]
            found.append(np.concatenate(rows))
        return np.stack(found).astype(np.int64)


def fit_opinions(table: FeatureTable, folds: Folds, *, classes: int, seed: int = 0) -> Opinions:
    """A ridge head on each of a few stages, with exact held-back answers.

    Args:
        table: Features of the M training images.
        folds: Their labels, and which are held back together.
        classes: K.
        seed: Of the sample, where there are many images.
    """
    chosen = np.arange(len(folds))
    if len(chosen) > MOST:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(chosen))[:MOST])
    known = folds.take(chosen)
    names = list(table.blocks)
    stages = tuple(dict.fromkeys(names[max(0, round(depth * len(names)) - 1)] for depth in DEPTHS))
    order = known.order
    weights: list[npt.NDArray[np.float64]] = []
    biases: list[npt.NDArray[np.float64]] = []
    held_back = []
    with fitting_threads(len(known)):
        for stage in stages:
            features = table.take(chosen[order]).load([stage])
            fit = fit_ridge(
                lambda features=features: iter([features]),  # type: ignore[misc]
                known.labels[order],
                {stage: slice(0, features.shape[1])},
                classes=classes,
                folds=known.take(order),
            )
            weights.append(np.asarray(fit.weight, dtype=np.float64))
            biases.append(np.asarray(fit.bias, dtype=np.float64))
            answers = np.empty(len(known), dtype=np.int64)
            answers[order[fit.rows]] = fit.held_back.argmax(axis=1)
            held_back.append(answers)
    return Opinions(stages, tuple(weights), tuple(biases), np.stack(held_back), chosen)
