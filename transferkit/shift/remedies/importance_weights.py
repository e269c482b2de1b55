"""The head fitted again, with the training images weighted that are most like the new ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from transferkit.measure import fit_ridge, fit_temperature
from transferkit.nn import Classifier
from transferkit.shift.remedies.registry import REMEDIES, ShiftCase, Unfit, with_head
from transferkit.shift.two_sample import principal_coordinates_of

__all__ = ["density_ratios"]

LARGEST = 10.0
"""Largest weight of an image, in units of the mean: a few images must not stand for all."""

EFFECTIVE = 0.3
"""Share of the images that must be left, counted by weight."""

FEWEST = 16


@REMEDIES.register("importance_weights")
def reweigh(situation: ShiftCase) -> Classifier:
    """Refit the closed-form head with the density ratio of a domain classifier on the features as weights.

    References:
        Shimodaira, J. Statist. Plann. Inference 2000; Bickel et al., JMLR 2009.
    """
    model = situation.probe()
    old, new = situation.features()
    if len(new) < FEWEST:
        raise Unfit(f"it needs {FEWEST} images, there are {len(new)}.")
    weights = density_ratios(old, new)
    effective = float(weights.sum() ** 2 / (weights**2).sum()) / len(weights)
    if effective < EFFECTIVE:
        raise Unfit(f"too few training images are like the new ones ({100 * effective:.0f} % of them count).")
    folds = situation.reference.folds
    order = folds.order
    features = old[order].astype(np.float32)
    fit = fit_ridge(
        lambda: iter([features]),
        folds.labels[order],
        {"joined": slice(0, features.shape[1])},
        classes=len(model.classes),
        weights=weights[order],
        folds=folds.take(order),
    )
    temperature = fit_temperature(fit.held_back, folds.labels[order][fit.rows])
    return with_head(model, fit.weight / temperature, fit.bias / temperature)


def density_ratios(old: npt.NDArray[np.float64], new: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(M,) how much denser new images are than old ones at each old image, mean 1, at most `LARGEST`."""
    from sklearn.linear_model import LogisticRegression

    points = principal_coordinates_of(np.concatenate([old, new]))
    points = points / max(float(points.std()), 1e-12)
    is_new = np.arange(len(points)) >= len(old)
    fitted = LogisticRegression(C=0.1, max_iter=1000).fit(points, is_new)
    odds = np.exp(np.clip(fitted.decision_function(points[: len(old)]), -20, 20))
    ratios = np.minimum(odds / odds.mean(), LARGEST)
    return np.asarray(ratios / ratios.mean())
