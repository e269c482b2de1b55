"""Which shelves hold the features of a backbone: opened by all that can change a number."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from transferkit.features.bank import FeatureBank
from transferkit.features.forward import Compute, Forward, check_shape, features_and_moments, placed_on
from transferkit.features.identity import IMPRINT_IMAGES, circumstances, closeness, imprint_of, probe_images, same_draws
from transferkit.features.shelf import Shelf
from transferkit.nn.backbone import Backbone, weights_digest

__all__ = [
    "ENGINE_VERSION",
    "Shelves",
    "imprints",
    "label_of",
    "open_shelves",
    "origin_of",
    "probe_outputs",
]


ENGINE_VERSION = 2
"""Raised whenever the same image and weights would give other features than before."""


class Shelves(NamedTuple):
    """Where the rows of a backbone are kept. Moments lie apart: only a sample of the images has any, if that."""

    features: Shelf
    moments: Shelf | None


def origin_of(backbone: Backbone, part: nn.Module, device: torch.device) -> dict[str, object]:
    """What fixes the rows that a part of this backbone gives, but for the image: not what the backbone is called.

    The code that runs has no name; `imprints` tell it.
    """
    preprocessing = asdict(backbone.spec.preprocessing.primary)
    for silent in ("origin", "views"):
        preprocessing.pop(silent)
    for name in ("value_range", "prepared", "shape", "mirrored"):  # rows from before they were known stay valid
        if not preprocessing[name]:
            preprocessing.pop(name)
    return {
        "architecture": backbone.spec.architecture,
        "layers": _layers_digest(part),
        "weights": weights_digest(part),
        "preprocessing": preprocessing,
        "engine": ENGINE_VERSION,
        **circumstances(device),
    }


def imprints(
    backbone: Backbone, compute: Compute, widths: Mapping[str, int], device: torch.device
) -> dict[str, npt.NDArray[np.float64]]:
    """Kind of rows -> its imprint: what this network makes of fixed images now, on this device.

    Costs one forward pass of two images.

    Args:
        backbone: Run in evaluation mode and without gradients; left as it was.
        compute: Makes rows of a batch, with this backbone.
        widths: Kind of rows -> D that they should have.
        device: Where.

    Raises:
        BackboneError: If the network cannot take images of the size in use, or does not give a row for each.
    """
    pixels = probe_outputs(backbone, IMPRINT_IMAGES)
    with placed_on(backbone, device) as placed, same_draws(device):
        found = Forward(placed, device, compute).parts(pixels, frozenset(widths))
    for kind, width in widths.items():
        check_shape(backbone, {name: tuple(part.shape) for name, part in found[kind].items()}, len(pixels), width)
    return {kind: imprint_of(found[kind]) for kind in widths}


def probe_outputs(backbone: Backbone, count: int) -> npt.NDArray[Any]:
    """Fixed images as this backbone is given them: uint8 pictures, or float32 tensors that are prepared already."""
    wanted = backbone.spec.preprocessing
    height, width = wanted.shape or (wanted.size, wanted.size)
    pictures = probe_images(height, width, count)
    return pictures.astype(np.float32) / 127.5 - 1 if wanted.prepared else pictures


def label_of(backbone: Backbone) -> dict[str, object]:
    """What people are told of a shelf."""
    return {"backbone": backbone.spec.name, "image_size": backbone.spec.preprocessing.size}


def open_shelves(
    bank: FeatureBank, backbone: Backbone, *, pooling: str, moments: bool = False, device: torch.device
) -> Shelves:
    """Where the rows of this backbone are kept: named by what makes them.

    Costs one forward pass of two images, see `imprints`.
    """
    origin = origin_of(backbone, backbone.trunk, device)
    widths = {"features": backbone.widths(pooling)}
    about = {"features": {**origin, "pooling": pooling}}
    if moments:
        places = {tap.stage: [tap.path, tap.layout] for tap in backbone.moment_taps}
        widths["moments"] = backbone.moment_widths()
        about["moments"] = {**origin, "pooling": "moments", "places": places}
    compute = features_and_moments(backbone, pooling)
    found = imprints(backbone, compute, {kind: sum(parts.values()) for kind, parts in widths.items()}, device)
    shelves = {
        kind: bank.shelf(about[kind], parts, about=label_of(backbone), imprint=found[kind], close=closeness(device))
        for kind, parts in widths.items()
    }
    return Shelves(shelves["features"], shelves.get("moments"))


def _layers_digest(trunk: nn.Module) -> str:
    """Tells apart networks of equal weights: a stride or an activation has none."""
    listing = re.sub(r" at 0x[0-9a-f]+", "", repr(trunk))
    return hashlib.blake2b(listing.encode(), digest_size=16).hexdigest()
