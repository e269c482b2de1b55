"""The images that a fine-tuning run trains on and is judged on, and the recipe that fits their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.data import Data
from transferkit.decision import MIN_VAL_IMAGES, refits
from transferkit.finetune import fit_recipe
from transferkit.finetune.targets import training_targets
from transferkit.options import Recipe
from transferkit.records import Fold, Folds

__all__ = ["TrainingImages", "select_images"]


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """Which images a run uses, and how.

    Args:
        rows: (N,) indices in the data: those of the training split, then those of a validation split that is chosen on.
        known: Their labels, and which of them are held back together.
        folds: Who is held back, in turn.
        has_validation: Whether epochs, rate and blend are chosen on the validation split.
        recipe: With everything set that depends on N.
        note: What to tell a person about a validation split that is not used; empty if there is none.
    """

    rows: npt.NDArray[np.int64]
    known: Folds
    folds: Sequence[Fold]
    has_validation: bool
    recipe: Recipe
    note: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def targets(self) -> npt.NDArray[Any]:
        """(N,) classes, (N, T) labels, or (N, T) standardised numbers: what batches hold."""
        return training_targets(self.known)

    @property
    def refit(self) -> bool:
        """Whether the network is trained once more, on all images."""
        wanted = self.recipe.refit
        return not self.has_validation and refits(len(self.folds)) if wanted is None else wanted

    @property
    def held_back(self) -> int:
        """Images that the run is judged on."""
        return sum(len(fold.held_back) for fold in self.folds)


def select_images(data: Data, recipe: Recipe, *, batch_size: int | None, seed: int) -> TrainingImages:
    """The training split, with a validation split that is large enough to choose on or must do.

    Args:
        data: The opened images.
        recipe: As it was given.
        batch_size: Images per optimizer step where the recipe has none; None fits it.
        seed: Of the folds.
    """
    train, val = data.indices("train"), data.indices("val")
    # A small split must do where no training image can be spared.
    has_validation = len(val) >= MIN_VAL_IMAGES or (len(val) > 0 and data.summary.fewest_groups < 2)
    rows = np.concatenate([train, val]) if has_validation else train
    known = data.folds.take(rows)
    fitted = fit_recipe(recipe, len(rows), batch_size=batch_size)
    make = partial(TrainingImages, rows=rows, known=known, has_validation=has_validation, recipe=fitted)
    if has_validation:
        return make(folds=[Fold(np.arange(len(train)), np.arange(len(train), len(rows)))])
    note = (
        f"The {len(val)} images of the validation split are too few to choose on ({MIN_VAL_IMAGES} would do): epochs "
        "and blend are chosen on training images held back in turn, and the split is left for the report."
    )
    return make(folds=known.split(fitted.folds or 1, seed=seed), note=note if len(val) else "")
