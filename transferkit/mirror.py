"""Whether training images may be mirrored: asked of a probe that has never seen a mirrored one."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.data.mirroring import flip_is_safe
from transferkit.features import FeatureTable, frozen_pass
from transferkit.folds import Fold
from transferkit.look import Looked, Options
from transferkit.strategies import Plan
from transferkit.train import fit_heads

__all__ = ["mirroring_is_safe"]

LOOKED_AT = 300
"""Held-back images that are looked at in the mirror: enough to tell a loss of 5 points."""


def mirroring_is_safe(looked: Looked, options: Options, rows: npt.NDArray[np.int64], fold: Fold) -> tuple[bool, str]:
    """Whether a probe names held-back images as well in the mirror; digits, letters and hand signs it does not.

    Costs a frozen pass over the mirror images, kept in the bank, and one ridge fit.

    Args:
        looked: Backbone, images and features.
        options: How it was looked.
        rows: Images at hand.
        fold: Positions in `rows`: the probe is fitted to one part, the other is looked at.

    Returns:
        Whether it is safe (see `flip_is_safe`), and a sentence with the numbers.
    """
    shown = np.random.default_rng(options.seed).permutation(fold.held_back)[:LOOKED_AT]
    table = looked.survey.table.take(rows)
    stages = tuple(stage.name for stage in looked.backbone.stages)
    labels = looked.data.labels[rows]
    (head,) = fit_heads(
        Plan(strategy="linear_probe", stages=stages, closed_form=True),
        table.take(fold.train),
        labels[fold.train],
        classes=looked.data.summary.num_classes,
        head="ridge",
        folds=looked.data.folds.take(rows[fold.train]),
    )
    plain, mirrored = (
        (features.load(stages) @ head.weight.T + head.bias).argmax(axis=1) == labels[shown]
        for features in (table.take(shown), _in_the_mirror(looked, options, rows[shown]))
    )
    safe = flip_is_safe(plain, mirrored, labels=labels[shown])
    told = (
        f"Images {'are' if safe else 'are not'} mirrored in training: of {len(shown)} held-back images a probe names "
        f"{int(plain.sum())} right, of their mirror images {int(mirrored.sum())}."
    )
    return safe, told


def _in_the_mirror(looked: Looked, options: Options, indices: npt.NDArray[np.int64]) -> FeatureTable:
    data, preprocessing = looked.data, looked.backbone.spec.preprocessing

    def read(row: int) -> npt.NDArray[Any]:
        return np.ascontiguousarray(data.pixels(int(indices[row]), preprocessing)[..., ::-1])

    names = [
        hashlib.blake2b(b"mirrored" + bytes(name), digest_size=16).hexdigest() for name in data.content_ids[indices]
    ]
    return frozen_pass(
        looked.backbone,
        read,
        np.array(names, dtype="S32"),
        bank=options.bank,
        pooling=options.pooling,
        device=options.device,
        batch_size=options.batch_size,
        workers=None if data.thread_safe else 1,
        progress=False,
    ).table
