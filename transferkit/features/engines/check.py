"""Whether an engine computes what the network itself does, on a person's own images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.features.engines.torch import TorchExtractor
from transferkit.features.extractor import Rows
from transferkit.records import TOP

__all__ = ["Agreement", "compare_rows"]


@dataclass(frozen=True)
class Agreement:
    """How alike the rows of an engine and of the network itself are.

    Args:
        images: That were compared, >= 1.
        difference: Largest difference in any stage, in units of that stage's largest value.
        same_class: Share of images in [0, 1] that the backbone's own classifier gives the same class from both; without
            a classifier: whose largest feature of the top stage is the same one.
    """

    images: int
    difference: float
    same_class: float


def compare_rows(reference: TorchExtractor, expected: Rows, found: Rows) -> Agreement:
    """Compare rows of the same images.

    Args:
        reference: The network itself.
        expected: Its rows, of every kind.
        found: The engine's.
    """
    differences = [
        _difference(expected[kind][:, block], found[kind][:, block])
        for kind in expected
        for block in reference.blocks(kind).values()
    ]
    images = len(next(iter(expected.values())))
    if "features" not in expected:
        return Agreement(images, max(differences), same_class=1.0)
    classes, others = (_classes(reference, rows["features"]) for rows in (expected, found))
    return Agreement(images, max(differences), float(np.mean(classes == others)))


def _difference(expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> float:
    if not np.isfinite(expected).all():  # the pass itself reports it
        return 0.0
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))


def _classes(reference: TorchExtractor, features: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    top = features[:, reference.blocks("features")[TOP]]
    averages = top[:, : reference.backbone.stages[-1].channels]
    if reference.backbone.head is None or not np.isfinite(averages).all():
        return averages.argmax(axis=1)
    return reference.backbone.source_probabilities(averages).argmax(axis=1)
