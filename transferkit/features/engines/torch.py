"""Features by torch: a backbone on a device, run as it is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from transferkit.features.extractor import Rows
from transferkit.features.forward import Compute, Forward, check_shape, features_and_moments, placed_on
from transferkit.features.identity import (
    IMPRINT_IMAGES,
    Identity,
    Imprint,
    circumstances,
    closeness,
    imprint_of,
    probe_inputs,
    same_draws,
)
from transferkit.features.tables import columns_of
from transferkit.nn.backbone import Backbone, weights_digest

__all__ = ["ENGINE_VERSION", "Fingerprint", "Kind", "TorchExtractor", "layers_digest", "origin_of", "stage_extractor"]

ENGINE_VERSION = 3
"""Raised whenever the same image and weights would give other features than before."""

CPU_PIXELS = 160_000
"""Pixels per batch and core: 16 images of 96 px. Beyond it activations fall out of the cache
(scripts/bench_features.py shows images per second over batch sizes)."""

DEVICE_PIXELS = 256 * 224 * 224
"""Pixels per batch on an accelerator; halved when memory runs out."""

FEWEST_IMAGES = 4
"""Images per batch at least, however large they are."""


@dataclass(frozen=True)
class Kind:
    """A kind of rows that a computation yields.

    Args:
        names: What fixes its rows besides backbone, preprocessing and circumstances.
        widths: Stage name -> width; rows hold the stages in this order.
    """

    names: Mapping[str, object]
    widths: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What a network is.

    Args:
        layers: Digest of its layers.
        weights: Digest of its weights.
        imprints: Kind of rows -> its output for fixed images.
    """

    layers: str
    weights: str
    imprints: Mapping[str, Imprint]


class TorchExtractor:
    """An `Extractor`: a computation with a backbone, on a device.

    Args:
        backbone: Run in evaluation mode and without gradients; left as it was.
        compute: Makes blocks of rows of a batch, with this backbone.
        kinds: The kinds of rows that come of it.
        device: Where.
        part: Of the backbone, what the rows depend on; None is all of it but its classifier.
    """

    def __init__(
        self,
        backbone: Backbone,
        compute: Compute,
        kinds: Mapping[str, Kind],
        *,
        device: torch.device,
        part: nn.Module | None = None,
    ) -> None:
        self.backbone = backbone
        self.device = device
        self._kinds = dict(kinds)
        self._part = backbone.trunk if part is None else part
        self._forward = Forward(backbone, device, compute)

    @property
    def name(self) -> str:
        """The backbone's."""
        return self.backbone.spec.name

    @property
    def batch_size(self) -> int:
        """As many images as a core's cache holds, on an accelerator as many as keep it busy."""
        pixels = CPU_PIXELS if self.is_threaded else DEVICE_PIXELS
        return max(FEWEST_IMAGES, pixels // self.backbone.spec.preprocessing.size**2)

    @property
    def is_threaded(self) -> bool:
        """On a CPU."""
        return self.device.type == "cpu"

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """The kinds of rows that come of it."""
        return self._kinds

    @property
    def subject(self) -> tuple[object, ...]:
        """What its computation depends on: images of other geometries are computed alike."""
        wants = self.backbone.spec.preprocessing
        fixed = (wants.size, wants.shape, wants.prepared, wants.mean, wants.std)
        return (self.backbone.trunk, self._part, self.device, *fixed)

    def fingerprint(self) -> Fingerprint:
        """What the network is now, as far as rows depend on it.

        Costs a digest of the weights and one forward pass of two images.

        Raises:
            BackboneError: If the network cannot take images of the size in use, or does not give a row for each.
        """
        return Fingerprint(layers_digest(self._part), weights_digest(self._part), self._imprints())

    def identity(self, fingerprint: Fingerprint | None = None) -> dict[str, Identity]:
        """Kind of rows -> all that can change a number in them but the image.

        Args:
            fingerprint: Of the same network, which has not changed since; None takes it now.

        Raises:
            BackboneError: As for `fingerprint`.
        """
        known = self.fingerprint() if fingerprint is None else fingerprint
        origin = origin_of(self.backbone, known.layers, known.weights, self.device)
        spec, close, imprints = self.backbone.spec, closeness(self.device), known.imprints
        about = {"backbone": spec.name, "image_size": spec.preprocessing.size}
        return {
            name: Identity({**origin, **kind.names}, kind.widths, imprint=imprints[name], close=close, about=about)
            for name, kind in self._kinds.items()
        }

    def _imprints(self) -> dict[str, npt.NDArray[np.float64]]:
        """Kind of rows -> what this network makes of fixed images now, on this device."""
        pixels = probe_inputs(self.backbone.spec.preprocessing, IMPRINT_IMAGES)
        with self.ready(), same_draws(self.device):
            found = self._forward.blocks(pixels, frozenset(self._kinds))
        for name in self._kinds:
            shapes = {stage: tuple(block.shape) for stage, block in found[name].items()}
            check_shape(self.backbone, shapes, len(pixels), self._width(name))
        return {name: imprint_of(found[name]) for name in self._kinds}

    def ready(self) -> AbstractContextManager[object]:
        """The backbone is on the device and in evaluation mode inside the block."""
        return placed_on(self.backbone, self.device)

    def extract(self, pixels: npt.NDArray[Any], kinds: frozenset[str]) -> Rows:
        """Rows of these kinds; on an accelerator in halves for as long as memory runs out."""
        run = self._forward.rows if self.is_threaded else self._forward.rows_within_memory
        rows = run(pixels, kinds)
        for kind, found in rows.items():
            check_shape(self.backbone, {kind: found.shape}, len(pixels), self._width(kind))
        return rows

    def blocks(self, kind: str) -> dict[str, slice]:
        """Stage -> its columns in the rows of this kind."""
        return columns_of(self._kinds[kind].widths)

    def _width(self, kind: str) -> int:
        return sum(self._kinds[kind].widths.values())


def stage_extractor(backbone: Backbone, *, pooling: str, moments: bool = False, device: torch.device) -> TorchExtractor:
    """Pooled vectors of every stage ("features"), and if asked for the moments of their channels ("moments").

    Args:
        backbone: As for `TorchExtractor`.
        pooling: "avg" or "avg+max".
        moments: Whether the second kind is wanted.
        device: Where.
    """
    kinds = {"features": Kind({"pooling": pooling}, backbone.widths(pooling))}
    if moments:
        places = {tap.stage: [tap.path, tap.layout] for tap in backbone.moment_taps}
        kinds["moments"] = Kind({"pooling": "moments", "places": places}, backbone.moment_widths())
    return TorchExtractor(backbone, features_and_moments(backbone, pooling), kinds, device=device)


def origin_of(backbone: Backbone, layers: str, weights: str, device: torch.device) -> dict[str, object]:
    """The names of what fixes the rows that a part of this backbone yields, but for the image: not the backbone's own.

    Code has no name; that is what imprints are for.

    Args:
        backbone: Whose architecture and preprocessing count.
        layers, weights: Digests of the part.
        device: Where.
    """
    preprocessing = asdict(backbone.spec.preprocessing.primary)
    for silent in ("origin", "views"):
        preprocessing.pop(silent)
    for name in ("value_range", "prepared", "shape", "mirrored"):  # rows from before they were known stay valid
        if not preprocessing[name]:
            preprocessing.pop(name)
    return {
        "architecture": backbone.spec.architecture,
        "layers": layers,
        "weights": weights,
        "preprocessing": preprocessing,
        "engine": ENGINE_VERSION,
        **circumstances(device),
    }


def layers_digest(part: nn.Module) -> str:
    """Tells apart networks of equal weights: a stride or an activation function has none."""
    listing = re.sub(r" at 0x[0-9a-f]+", "", repr(part))
    return hashlib.blake2b(listing.encode(), digest_size=16).hexdigest()
