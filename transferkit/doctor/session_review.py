"""The review of the images of an opened session. Apart from the rest of the doctor, which works without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby, islice
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from transferkit.core.limits import check_limit
from transferkit.core.timing import timed
from transferkit.data import Data
from transferkit.doctor.image_review import review_images
from transferkit.doctor.picture_match import SIDE
from transferkit.doctor.registration import resample
from transferkit.options import PassOptions
from transferkit.records import LARGE, ImageReview, Preprocessing
from transferkit.workflow.checks import check_pass
from transferkit.workflow.session import Session, open_session

__all__ = ["review_copies", "review_session", "small_pictures"]

PICTURED = 24
"""Findings of each kind with thumbnails: with five kinds a page of up to two megabytes."""


def review_copies(
    model: str | nn.Module,
    data: Any,
    options: PassOptions | None = None,
    *,
    limit: int | None = None,
    command: str = "",
) -> ImageReview:
    """Copies (mirrored, cropped and brightened ones too), leaks across splits, copies with two labels, and outliers.

    Costs what `analyze` does, the same for the test images, and some 10 ms per image.

    Args:
        model, data: As for `analyze`.
        options: Those of `analyze`; None for the defaults.
        limit: Pairs and outliers that the table lists at most, >= 1; None: all.
        command: What to quote as the way to do this again.

    Raises:
        TransferkitError: What `analyze` would raise.

    Example:
        >>> found = review_copies("packaged/tf_efficientnet_lite0", "DIR", PassOptions(image_size=96))  # doctest: +SKIP
        >>> found.leaks[0].sentence  # doctest: +SKIP
        'cat/007.png ~ cat/031.png (mirrored)'
    """
    options = PassOptions() if options is None else options
    check_pass(options)
    if limit is not None:
        check_limit(limit)
    return review_session(
        open_session(model, data, options, needs_classes="doctor images"), limit=limit, command=command
    )


def review_session(session: Session, *, limit: int | None = None, command: str = "") -> ImageReview:
    """`review_images` of an opened session: all its images, test images included, which are run if they were not yet.

    Args:
        session: As from `open_session`.
        limit, command: As for `review_copies`.
    """
    data = session.data
    with timed(session.seconds, "copies and outliers"):
        table = session.run_features(np.arange(len(data)))
        stages = list(table.blocks)
        found = review_images(
            table.load(stages),
            data.labels,
            data.splits,
            data.items,
            picture=small_pictures(data, session.backbone.spec.preprocessing),
            classes=data.summary.classes,
            blocks=table.select(stages)[0],
            groups=data.groups,
        )
        found = replace(found, limit=limit)
        pictures = {row: data.thumbnail(row, LARGE) for row in sorted(set(_pictured(found)))}
    return replace(
        found,
        data=data.summary,
        backbone=session.backbone.spec.name,
        pictures=pictures,
        corrected=data.corrected,
        command=command,
        seconds=sum(session.seconds.values()),
    )


def _pictured(found: ImageReview) -> Iterator[int]:
    """Images of the first listed findings of each kind."""
    for _, those in groupby(found.findings[: found.limit], key=lambda one: one.kind):
        for finding in islice(those, PICTURED):
            yield from finding.rows


def small_pictures(data: Data, own: Preprocessing) -> Callable[[int], npt.NDArray[np.uint8]]:
    """Index -> (3, 64, 64) uint8, the whole image squeezed to a square.

    Args:
        data: The images.
        own: Of the backbone; for images that come as normalised tensors, what they were normalised with.
    """
    if data.normalised:
        return lambda index: _unnormalise(data.pixels(index, own), own)
    small = Preprocessing(
        size=SIDE,
        mean=own.mean,
        std=own.std,
        interpolation="bilinear",
        crop_mode="squash",
        value_range=own.value_range,
    )
    return lambda index: data.pixels(index, small).astype(np.uint8)


def _unnormalise(pixels: npt.NDArray[np.generic], own: Preprocessing) -> npt.NDArray[np.uint8]:
    """A normalised (3, H, W) tensor as a small picture, by the mean and scale that it was probably made with."""
    mean, std = (np.array(one, dtype=np.float32)[:, None, None] for one in (own.mean, own.std))
    values = resample(np.asarray(pixels, dtype=np.float32), SIDE, SIDE) * std + mean
    return np.clip(255 * values, 0, 255).astype(np.uint8)
