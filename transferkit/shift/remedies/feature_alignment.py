"""Features of the new images moved to where those of training are, folded into the head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.nn import Classifier
from transferkit.shift.remedies.registry import REMEDIES, ShiftCase, Unfit, with_head

__all__ = ["AligningMap", "aligning_map", "fold_map"]

Array = npt.NDArray[np.float64]

PRIOR = 16
"""Images that training statistics count as, beside the new ones."""

FEWEST = 16

COMPONENTS = 32
"""Directions in which covariances are matched; the others are scaled feature by feature."""

RIDGE = 0.1
"""Added to variances, in units of their mean: a direction that few images hardly vary in is not blown up."""


@REMEDIES.register("feature_alignment")
def align_features(situation: ShiftCase) -> Classifier:
    """Match mean and covariance of the new features to those of the training images (CORAL).

    References:
        Sun et al., CORAL, AAAI 2016. Deviations: standardised features, covariances matched on the leading components
        only, and statistics of few new images are blended with those of training.
    """
    model = situation.probe()
    old, new = situation.features()
    if len(new) < FEWEST:
        raise Unfit(f"it needs {FEWEST} images, there are {len(new)}.")
    weight, bias = (tensor.detach().numpy().astype(np.float64) for tensor in (model.linear.weight, model.linear.bias))
    return with_head(model, *fold_map(weight, bias, aligning_map(old, new)))


@dataclass(frozen=True)
class AligningMap:
    """z = scale x + shift, then y = z + back (core - 1) into' (z - mean).

    Args:
        scale, shift, mean: (D,).
        into, back: (D, d), between raw features and standardised coordinates on the leading components.
        core: (d, d), what is done to these coordinates.
    """

    scale: Array
    shift: Array
    mean: Array
    into: Array
    back: Array
    core: Array


def aligning_map(old: Array, new: Array) -> AligningMap:
    """The affine map that takes new features to the moments of the old ones.

    Args:
        old, new: (M, D), (N, D).
    """
    share = len(new) / (len(new) + PRIOR)
    mean, deviation = old.mean(axis=0), old.std(axis=0)
    floor = RIDGE * max(float(deviation.mean()), 1e-12)
    spread = np.sqrt((1 - share) * deviation**2 + share * new.var(axis=0))
    middle = (1 - share) * mean + share * new.mean(axis=0)
    scale = (deviation + floor) / (spread + floor)
    shift = mean - scale * middle
    unit = 1 / (deviation + floor)
    first = (old - mean) * unit
    second = (new * scale + shift - mean) * unit
    count = min(COMPONENTS, len(old) - 1, len(new) - 1, old.shape[1])
    basis = np.linalg.svd(first, full_matrices=False)[2][:count].T
    wanted = (first @ basis).T @ (first @ basis) / len(first)
    there = (1 - share) * wanted + share * (second @ basis).T @ (second @ basis) / len(second)
    core = _root(wanted, 0.5) @ _root(there, -0.5)
    return AligningMap(scale, shift, mean, basis * unit[:, None], basis / unit[:, None], core)


def _root(matrix: Array, power: float) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    values = np.maximum(values, 0.0) + RIDGE * max(float(values.mean()), 1e-12)
    return np.asarray((vectors * values**power) @ vectors.T)


def fold_map(weight: Array, bias: Array, found: AligningMap) -> tuple[Array, Array]:
    """The head (K, D) and (K,) that gives new features what the given one gives mapped features."""
    turned = (weight @ found.back) @ (found.core - np.eye(len(found.core))) @ found.into.T
    moved = weight + turned
    return moved * found.scale, bias + moved @ found.shift - turned @ found.mean
