"""Transferability: how well a backbone's features suit a task, before anything is trained.

Functions of arrays that return a score; choosing the models and interpreting the scores is left to the caller.
"""

from transferkit.measure.transferability.catalog import MEASURES, Measure
from transferkit.measure.transferability.discriminant import h_score, sfda
from transferkit.measure.transferability.evidence import logme
from transferkit.measure.transferability.geometry import gbc, parc, transrate
from transferkit.measure.transferability.posteriors import leep, nce, nleep
from transferkit.measure.transferability.probes import knn, press

__all__ = [
    "MEASURES",
    "Measure",
    "gbc",
    "h_score",
    "knn",
    "leep",
    "logme",
    "nce",
    "nleep",
    "parc",
    "press",
    "sfda",
    "transrate",
]
