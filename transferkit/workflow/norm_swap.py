"""A look through another normalisation: the swap, a second frozen pass, and whether the features have lost by it."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import torch

from transferkit.nn import Backbone
from transferkit.nn.backbone import weights_digest
from transferkit.nn.model import normalise
from transferkit.nn.norm import CALIBRATED, KEEPS_OUTPUTS, swap_norm
from transferkit.records import SELECTED, Evidence
from transferkit.workflow.measure import Survey, survey, timed
from transferkit.workflow.session import Looked, Options

__all__ = ["MARGIN", "look_through", "swap_backbone"]

MARGIN = 0.01
"""Held-back accuracy that features may lose by a swap. Fine-tuning wins a point back; much more says that the network
has forgotten what it knew."""

CALIBRATION_IMAGES, LEAST_CALIBRATION_IMAGES = 512, 64
"""Training images that a swap is fitted to; from 64 on more bring little (docs/normalisation.md)."""

CALIBRATION_PIXELS = CALIBRATION_IMAGES * 96**2
"""In all of them, unless that makes them too few: they go through the network at once, so memory grows with these."""


def look_through(looked: Looked, options: Options, kind: str) -> tuple[Looked, str]:
    """The same look with a backbone whose batch normalisation was swapped, if that costs no more than `MARGIN`.

    Kinds that give in evaluation what they took the place of cannot cost anything: the features stay what they were,
    and no second pass is needed.

    Args:
        looked: At the backbone as it is; stays so.
        options: How it was looked.
        kind: A name in `NORM_KINDS`.

    Returns:
        The look to go on with, and a sentence with both accuracies in it.

    Raises:
        OptionError: If the kind is unknown, or there is nothing to swap.
    """
    with timed(looked.seconds, "swap normalisation"):
        backbone = swap_backbone(looked, kind)
        if kind in KEEPS_OUTPUTS:
            return _with_backbone(looked, backbone, looked.survey), (
                f"Batch normalisation was swapped for {kind!r}, which leaves the features as they were until it trains."
            )
        found = survey(
            backbone,
            looked.data,
            bank=options.bank,
            pooling=options.pooling,
            device=options.device,
            batch_size=options.batch_size,
            class_weight=options.class_weight,
            similarity=looked.survey.evidence.similarity,
            seed=options.seed,
            progress=options.progress,
        )
    before, after = _accuracy(looked.survey.evidence), _accuracy(found.evidence)
    if before is None or after is None:
        return looked, (
            f"Refused: whether the features lose by swapping batch normalisation for {kind!r} is unknown, because no "
            "image can be held back without its class. Batch normalisation stays."
        )
    figures = (
        f"with batch normalisation swapped for {kind!r}, a probe of the features names {100 * after:.1f} % of the "
        f"held-back images right, as it was {100 * before:.1f} %"
    )
    if after < before - MARGIN:
        return looked, f"Refused: {figures}; {100 * MARGIN:g} points may be lost. Batch normalisation stays."
    return _with_backbone(looked, backbone, found), f"Accepted: {figures}."


def swap_backbone(looked: Looked, kind: str) -> Backbone:
    """A copy of the backbone with another normalisation, fitted to training images where the kind can be."""
    # One memory layout, whether the frozen pass ran or its rows were at hand: another one can change the last bit.
    backbone = copy.deepcopy(looked.backbone).to(memory_format=torch.channels_last)
    swap_norm(backbone.trunk, kind, calibrate=_images(looked) if kind in CALIBRATED else None)
    backbone.spec = dataclasses.replace(backbone.spec, norm=kind, weights_id=weights_digest(backbone.trunk))
    return backbone


def _images(looked: Looked) -> torch.Tensor:
    """(N, 3, S, S) training images, evenly spread, in any order: parts of them are to hold all classes."""
    train, preprocessing = looked.survey.train, looked.backbone.spec.preprocessing.primary
    chosen = train[np.linspace(0, len(train) - 1, _how_many(len(train), preprocessing.size)).round().astype(int)]
    order = np.random.default_rng(0).permutation(chosen)
    pixels = np.stack([looked.data.pixels(int(index), preprocessing) for index in order])
    return normalise(torch.from_numpy(pixels), preprocessing).contiguous(memory_format=torch.channels_last)


def _how_many(images: int, size: int) -> int:
    return min(images, CALIBRATION_IMAGES, max(LEAST_CALIBRATION_IMAGES, CALIBRATION_PIXELS // size**2))


def _accuracy(evidence: Evidence) -> float | None:
    return evidence.probe(SELECTED).accuracy


def _with_backbone(looked: Looked, backbone: Backbone, found: Survey) -> Looked:
    """What was measured on the backbone as it came is what the person asked about, and what the report shows."""
    evidence = dataclasses.replace(looked.survey.evidence, backbone=backbone.spec)
    return dataclasses.replace(looked, backbone=backbone, survey=dataclasses.replace(found, evidence=evidence))
