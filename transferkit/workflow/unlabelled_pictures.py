"""Unlabelled images of a run: opened beside the labelled ones, and shown in batches to a further loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.distributed import rank_and_world_size
from transferkit.core.errors import OptionError
from transferkit.core.paths import expand
from transferkit.core.progress import track
from transferkit.core.random import draw_seed
from transferkit.data.augmentation import Augmentation
from transferkit.data.unlabelled import UnlabelledImages, open_unlabelled
from transferkit.strategies import Plan
from transferkit.workflow.session import Session

if TYPE_CHECKING:
    from transferkit.finetune.unlabelled import FurtherLoss

__all__ = ["MOST_UNLABELLED", "UnlabelledPictures", "describe_unlabelled", "further_loss", "open_beside"]

MOST_UNLABELLED = 6144
"""Unlabelled images at most, a random sample of more: 240 MB as pictures of 110 px, 150 MB as inner products."""


def open_beside(session: Session, source: Any) -> UnlabelledImages:
    """The unlabelled images that are no copies of labelled, validation or test images."""
    options = session.options
    return open_unlabelled(
        source,
        known={bytes(one) for one in session.data.content_ids},
        most=MOST_UNLABELLED,
        seed=options.seed,
        max_pixels=options.max_pixels,
        value_range=session.data.value_range,
        cache=None if options.cache is None else expand(Path(options.cache)),
        progress=options.progress,
    )


def describe_unlabelled(images: UnlabelledImages, strategy: str) -> str:
    """How many were trained on, how many not, and what held-back accuracy does not measure."""
    said = (
        f"Trained with {len(images):,} unlabelled images as well; {images.left_out:,} were left out (copies of "
        "labelled or held-out images, unreadable files, or beyond the limit)."
    )
    if strategy == "dann":
        said += " Held-back images are labelled ones, of the source: what is gained on the target is not measured."
    return said


class UnlabelledPictures:
    """Batches of unlabelled pictures, decoded once.

    Args:
        images: Where they are read.
        augmentation: How training shows labelled images; its mirroring is kept.
        seed: Of orders and augmentation.
        progress: Show a bar on a terminal.
    """

    def __init__(self, images: UnlabelledImages, augmentation: Augmentation, *, seed: int, progress: bool) -> None:
        self._views = {strong: replace(augmentation, preset=("light", "strong")[strong]) for strong in (False, True)}
        self._seed = seed
        stored = self._views[True].stored
        order = track(range(len(images)), "reading unlabelled images", total=len(images), enabled=progress)
        self._pictures = [torch.from_numpy(np.array(images.pixels(index, stored))) for index in order]

    def __deepcopy__(self, memo: dict[int, Any]) -> UnlabelledPictures:
        """Itself: it never changes, and pictures take memory."""
        return self

    def __call__(self, size: int, *, epoch: int, batch: int, strong: bool) -> torch.Tensor:
        """(size, 3, S, S) uint8, a function of seed, epoch and batch."""
        augmentation, seed = self._views[strong], partial(draw_seed, self._seed, "unlabelled")
        order = np.random.default_rng(seed(epoch)).permutation(len(self._pictures))
        places = batch * size + np.arange(size)
        chosen = order[places % len(order)]
        return torch.stack(
            [
                augmentation(self._pictures[position], seed(epoch, int(place), int(strong)))
                for place, position in zip(places, chosen, strict=True)
            ]
        )


def further_loss(
    session: Session, plan: Plan, images: UnlabelledImages, augmentation: Augmentation, labels: npt.NDArray[np.int64]
) -> Callable[[npt.NDArray[np.int64]], FurtherLoss]:
    """Function from the positions of the labelled images of a fit to its loss of unlabelled images.

    Raises:
        OptionError: There are several processes.
    """
    from transferkit.finetune.unlabelled import FURTHER_LOSSES

    if rank_and_world_size()[1] > 1:
        raise OptionError(f"strategy={plan.strategy} trains in one process. Use one device, or strategy=lp_ft.")
    options = session.options
    pictures = UnlabelledPictures(images, augmentation, seed=options.seed, progress=options.progress)
    make, classes = FURTHER_LOSSES[plan.further_loss], session.data.summary.num_classes
    return lambda positions: make(pictures, labels[positions], classes=classes, seed=options.seed)
