"""Copies of held-back images among those that a loader trains on, whatever its augmentation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from transferkit.doctor.image_review import review_images
from transferkit.doctor.picture_match import SIDE
from transferkit.doctor.pixel_values import find_extent, is_grey
from transferkit.records import Symptom

__all__ = ["check_leaks"]

SURE = 0.01
"""Share of variance left open up to which a pair is a copy beyond doubt: of copies that were cropped and mirrored by a
loader nearly all are below 0.006, simple drawings that are not copies at 0.015 and more."""

RELIT = ("darker", "brighter", "contrast")
"""Words for another brightness in what makes one picture out of another."""

Floats = npt.NDArray[np.floating]


def check_leaks(train: tuple[torch.Tensor, Floats], held_back: tuple[torch.Tensor, Floats]) -> Iterator[Symptom]:
    """Is an image of one split a copy of one of the other, also mirrored, cropped or brightened?

    Args:
        train, held_back: (N, 3, H, W) images as the network gets them, and their (N, D) features.
    """
    pictures = np.concatenate([_small(images) for images, _ in (train, held_back)])
    features = np.concatenate([rows for _, rows in (train, held_back)])
    ours = len(train[1])
    found = review_images(
        features,
        np.zeros(len(features), dtype=np.int64),
        np.array(["train"] * ours + ["held-back"] * (len(features) - ours)),
        [f"training image {n}" if n < ours else f"held-back image {n - ours}" for n in range(len(features))],
        picture=lambda index: pictures[index],
        classes=["image"],
    )
    # In grey any two discs of one place and size are copies but for their brightness.
    grey = is_grey(train[0].float()) and is_grey(held_back[0].float())
    sure = [one for one in found.leaks if one.residual <= SURE and not (grey and _is_relit(one.how))]
    if sure:
        held = {row for one in sure for row in one.rows if row >= ours}
        yield Symptom(
            cause="leak_across_splits",
            severity="alarm",
            evidence=f"{len(held)} of {len(held_back[1])} held-back images are copies of training images, e.g. "
            f"{sure[0].sentence}: accuracy on them is too high.",
            remedy="Split by group, so that copies stay together, or remove them.",
            items=tuple(one.sentence for one in sure),
        )


def _is_relit(how: str) -> bool:
    return any(word in how for word in RELIT)


def _small(images: torch.Tensor) -> npt.NDArray[np.uint8]:
    """(N, 3, SIDE, SIDE) uint8, from black to white over all images together."""
    extent = find_extent(images)
    low, high = (one[:, None, None] for one in (extent.low, extent.high))
    scaled = 255 * (images.float() - low) / (high - low).clamp_min(1e-6)
    small = F.interpolate(scaled, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return small.round().clamp(0, 255).to(torch.uint8).numpy()
