"""Swapped normalisation: the swap, a second frozen pass, and whether probes on the features get worse by it."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import torch

from transferkit.core.score_text import format_score
from transferkit.core.timing import timed
from transferkit.nn import Backbone
from transferkit.nn.backbone import weights_digest
from transferkit.nn.model import normalise
from transferkit.nn.norm import CALIBRATED, KEEPS_OUTPUTS, swap_norm
from transferkit.records import SELECTED, Evidence
from transferkit.workflow.measure import Measurement, measure_features
from transferkit.workflow.session import Session

__all__ = ["MARGIN", "measure_swapped", "swap_backbone"]

MARGIN = 0.01
"""Held-back accuracy that features may lose by a swap. Fine-tuning regains a point; a larger loss means that the
network has lost what it had learned."""

CALIBRATION_IMAGES, LEAST_CALIBRATION_IMAGES = 512, 64
"""Training images that a swap is fitted to; beyond 64 more gain little (docs/normalisation.md)."""

CALIBRATION_PIXELS = CALIBRATION_IMAGES * 96**2
"""Pixels of all of them together, unless that makes them too few: they form one batch, so memory grows with these."""


def measure_swapped(session: Session, kind: str) -> tuple[Session, str]:
    """The same session with a backbone whose batch normalisation was swapped, if that costs no more than `MARGIN`.

    Kinds whose output in evaluation equals that of the layer they replace leave the features as they are: no second
    pass is needed.

    Args:
        session: With the backbone as it is; unchanged.
        kind: A name in `NORM_KINDS`.

    Returns:
        The session to go on with, and a sentence with both accuracies in it.

    Raises:
        OptionError: If the kind is unknown, or there is nothing to swap.
    """
    with timed(session.seconds, "swap normalisation"):
        backbone = swap_backbone(session, kind)
        if kind in KEEPS_OUTPUTS:
            return _with_backbone(session, backbone, session.measured), (
                f"Batch normalisation was swapped for {kind!r}, which leaves the features unchanged until it is "
                "trained."
            )
        options = dataclasses.replace(session.options, similarity=session.measured.evidence.similarity)
        found = measure_features(backbone, session.data, options, bank=session.bank)
    before, after = _accuracy(session.measured.evidence), _accuracy(found.evidence)
    if before is None or after is None:
        return session, (
            f"Refused: whether features get worse by swapping batch normalisation for {kind!r} is unknown, because no "
            "image can be held back without its class. Batch normalisation is kept."
        )
    measure = found.evidence.data.measure
    figures = (
        f"with batch normalisation swapped for {kind!r}, the held-back {measure} of a probe is "
        f"{format_score(after, measure)}, before it was {format_score(before, measure)}"
    )
    if after < before - MARGIN:
        return session, f"Refused: {figures}; at most {100 * MARGIN:g} points may be lost. Batch normalisation is kept."
    return _with_backbone(session, backbone, found), f"Accepted: {figures}."


def swap_backbone(session: Session, kind: str) -> Backbone:
    """A copy of the backbone with another normalisation, fitted to training images where the kind can be."""
    # One memory layout, whether the frozen pass ran or its rows were at hand: another one can change the last bit.
    backbone = copy.deepcopy(session.backbone).to(memory_format=torch.channels_last)
    swap_norm(backbone.trunk, kind, calibrate=_images(session) if kind in CALIBRATED else None)
    backbone.spec = dataclasses.replace(backbone.spec, norm=kind, weights_id=weights_digest(backbone.trunk))
    return backbone


def _images(session: Session) -> torch.Tensor:
    """(N, 3, S, S) training images, evenly spread over the classes and shuffled, so that each chunk has all classes."""
    train, preprocessing = session.measured.train, session.backbone.spec.preprocessing.primary
    chosen = train[np.linspace(0, len(train) - 1, _how_many(len(train), preprocessing.size)).round().astype(int)]
    order = np.random.default_rng(0).permutation(chosen)
    pixels = np.stack([session.data.pixels(int(index), preprocessing) for index in order])
    return normalise(torch.from_numpy(pixels), preprocessing).contiguous(memory_format=torch.channels_last)


def _how_many(images: int, size: int) -> int:
    return min(images, CALIBRATION_IMAGES, max(LEAST_CALIBRATION_IMAGES, CALIBRATION_PIXELS // size**2))


def _accuracy(evidence: Evidence) -> float | None:
    return evidence.probe(SELECTED).accuracy


def _with_backbone(session: Session, backbone: Backbone, found: Measurement) -> Session:
    """The swapped session with the evidence of the backbone as it was loaded, which is what the report shows."""
    evidence = dataclasses.replace(session.measured.evidence, backbone=backbone.spec)
    # A second pass is no second budget.
    measured = dataclasses.replace(found, evidence=evidence, since=session.measured.since)
    return dataclasses.replace(session, backbone=backbone, measured=measured)
