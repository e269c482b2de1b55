"""Accuracy of linear probes with another normalisation, before any training: `bench_norm.py probe`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from norm_tuning import PER_CLASS
from regret.fine_tuning import OPTIONS
from regret.running import fit_all, shrink

from transferkit.data import Data, open_data
from transferkit.features import FeatureBank
from transferkit.nn import Backbone
from transferkit.records import SELECTED
from transferkit.workflow.measure import measure_features
from transferkit.workflow.norm_swap import swap_backbone
from transferkit.workflow.session import Session, load_backbone

KINDS = ("frozen", "recalibrated", "standardised_group")


def probe(backbone: Backbone, data: Data, bank: FeatureBank, kind: str) -> dict[str, Any]:
    """Held-back and test accuracy of a probe on selected features."""
    found = measure_features(backbone, data, OPTIONS, bank=bank)
    similarity = found.evidence.similarity
    if kind != "frozen":
        session = Session(backbone=backbone, data=data, measured=found, options=OPTIONS, bank=bank)
        backbone = swap_backbone(session, kind)
        found = measure_features(backbone, data, replace(OPTIONS, similarity=similarity), bank=bank)
    heads = fit_all(found, data, [stage.name for stage in backbone.stages], SELECTED)
    (kept,) = (head for head in heads.values() if head["kept"])
    return {
        "similarity": None if similarity is None else round(similarity, 3),
        "held_back": round(found.evidence.probe(SELECTED).accuracy, 4),
        "test": kept["test"],
    }


def probes(
    model: str, size: int, folders: Sequence[Path], cache: str | None
) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    """The trials, and the function that runs each."""
    backbone, bank = load_backbone(model, image_size=size), FeatureBank(cache)
    for folder in folders:
        data = open_data(folder, progress=False)
        small = shrink(data, PER_CLASS, 0)
        for kind in KINDS:
            yield {"task": folder.name, "kind": kind}, partial(probe, backbone, small, bank, kind)
