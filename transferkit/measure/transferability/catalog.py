"""The registry of measures: the input of each, and between what its scores are comparable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from transferkit.core.registry import Registry
from transferkit.measure.transferability.discriminant import h_score, sfda
from transferkit.measure.transferability.evidence import logme
from transferkit.measure.transferability.geometry import gbc, parc, transrate
from transferkit.measure.transferability.posteriors import leep, nce, nleep
from transferkit.measure.transferability.probes import knn, press

__all__ = ["MEASURES", "Measure", "Needs"]

Needs = Literal["features", "source_probabilities"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure of transferability.

    Args:
        function: (N, D) features or (N, Z) source probabilities, then (N,) labels, to a number.
        needs: Kind of its first argument.
        comparable: Between what its scores are comparable, in one sentence.
        holds_back: Whether it is measured on held-back images, and so accepts `folds`.
        higher_is_better: True for every measure here; stated for clarity.
    """

    function: Callable[..., float]
    needs: Needs
    comparable: str
    holds_back: bool = False
    higher_is_better: bool = True


MEASURES: Registry[Measure] = Registry("measure")


def _file(function: Callable[..., float], needs: Needs, comparable: str, *, holds_back: bool = False) -> None:
    MEASURES.register(function.__name__)(
        Measure(function=function, needs=needs, comparable=comparable, holds_back=holds_back)
    )


_SOURCE_CLASSES = (
    "Between models on the same images and labels whose heads know the same source classes: "
    "more source classes increase it regardless of the labels."
)
_ACCURACY = "It is an accuracy: between models on one task, and, relative to the chance level, across tasks."

_file(
    h_score,
    "features",
    "Between models on the same images and labels; its maximum K - 1 depends on the number of classes, so it has no "
    "threshold.",
)
_file(logme, "features", "Ranks models on one task; it has no threshold and is not comparable across tasks.")
_file(leep, "source_probabilities", _SOURCE_CLASSES)
_file(nce, "source_probabilities", _SOURCE_CLASSES)
_file(
    nleep,
    "features",
    "Between models on the same images and labels, with the same number of components and seed; "
    "more components increase it regardless of the labels.",
)
_file(
    transrate,
    "features",
    "Between models with features of the same width on the same images and labels; "
    "with few images per class a wider model scores higher because of its width alone.",
)
_file(
    gbc,
    "features",
    "Between models on the same images and labels; it sums over pairs of classes, "
    "and far-apart classes all score near 0, where differences mean nothing.",
)
_file(
    sfda,
    "features",
    "Between models on the same images and labels only; it is scored on the images it was fitted to, "
    "so it is no estimate of held-out likelihood.",
)
_file(
    parc,
    "features",
    "Between models on the same images and labels; distances of labels are binary, "
    "so even perfect features stay below 1, by an amount that depends on the class sizes.",
)
_file(knn, "features", _ACCURACY, holds_back=True)
_file(press, "features", _ACCURACY, holds_back=True)
