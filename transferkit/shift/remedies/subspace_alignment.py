"""The leading directions of the new features turned to those of the training images, folded into a new head."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from transferkit.measure import fit_ridge, fit_temperature
from transferkit.nn import Classifier
from transferkit.shift.remedies.registry import REMEDIES, ShiftCase, Unfit, with_head

__all__ = ["leading_directions"]

COMPONENTS = 48

FEWEST = 32


@REMEDIES.register("subspace_alignment")
def align_subspaces(situation: ShiftCase) -> Classifier:
    """Fit a head in the leading subspace of training features, and read new features in their own, aligned to it.

    References:
        Fernando et al., ICCV 2013.
    """
    model = situation.probe()
    old, new = situation.features()
    if len(new) < FEWEST:
        raise Unfit(f"it needs {FEWEST} images, there are {len(new)}.")
    count = min(COMPONENTS, len(old) // 2, len(new) // 2)
    deviation = old.std(axis=0)
    unit = 1 / (deviation + 0.1 * max(float(deviation.mean()), 1e-12))
    mean, basis = leading_directions(old * unit, count)
    other_mean, other = leading_directions(new * unit, count)
    folds = situation.reference.folds
    order = folds.order
    # Source coordinates are turned into the target's: Fernando's M, on the side of the training images.
    coordinates = ((old * unit - mean) @ basis @ (basis.T @ other))[order].astype(np.float32)
    fit = fit_ridge(
        lambda: iter([coordinates]),
        folds.labels[order],
        {"subspace": slice(0, count)},
        classes=len(model.classes),
        folds=folds.take(order),
    )
    temperature = fit_temperature(fit.held_back, folds.labels[order][fit.rows])
    head = fit.weight @ other.T / temperature
    return with_head(model, head * unit, fit.bias / temperature - head @ other_mean)


def leading_directions(
    features: npt.NDArray[np.float64], count: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean (D,) and the leading principal directions (D, count)."""
    mean = features.mean(axis=0)
    return mean, np.linalg.svd(features - mean, full_matrices=False)[2][:count].T
