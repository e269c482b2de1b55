"""Transferability: how well a backbone's features suit a task, before anything is trained.

Arrays in, a number out; which models to ask, and what to make of the numbers, is for others.
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
