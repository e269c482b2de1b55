"""How a network is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from transferkit.core.errors import OptionError, list_problems, unknown_name
from transferkit.core.limits import LAYER_DECAY, N_SPLITS
from transferkit.options.fields import documented, option, value_problem

__all__ = ["AUGMENTS", "AVERAGES", "OPTIMIZERS", "SCHEDULES", "Recipe"]

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("constant", "plateau", "linear", "exponential", "cosine")
AVERAGES = ("ema", "swa")
AUGMENTS = ("auto", "none", "light", "medium", "strong")
RATES = ("find", "rule")

MIN_PATIENCE = 3
"""Epochs without a lower held-back loss that early stopping allows at least: single epochs are noisy."""


def _check_rate(value: object) -> None:
    if value is None or (isinstance(value, str) and value in RATES):
        return
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise OptionError(f"lr must be > 0, 'find', 'rule' or left out, got {value!r}.")


@documented
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is fine-tuned."""

    epochs: int | None = option(None, "Passes over the training images, >= 1; None fits them to their number.")
    batch_size: int | None = option(
        None, "Images per optimizer step, of all processes together, >= 1; None: by their number."
    )
    optimizer: str = option("adamw", "adamw, or sgd with Nesterov momentum.")
    momentum: float = option(0.9, "Momentum of sgd, and of adamw's mean gradient (beta 1), in [0, 1).")
    lr: Any = option(
        None,
        "Learning rate of the last stage; rule takes the decision's, find runs a range test first. None tries three "
        "times the decision's as well, on the images held back first, unless lr_scale is given.",
        check=_check_rate,
    )
    lr_scale: float | None = option(
        None,
        "The same as a share of the rate that the backbone was trained at, > 0, instead of the rule's 0.1; that rate "
        "alone is tried. Not together with lr.",
    )
    layer_decay: float = option(LAYER_DECAY, "Rate of each stage relative to the one above it, in (0, 1].")
    weight_decay: float = option(0.01, "Weight decay, >= 0; not of norms and biases.")
    schedule: str = option("cosine", "cosine, linear, exponential, constant or plateau.")
    warmup: float = option(0.1, "Share of each phase in which rates rise, in [0, 1).")
    minimum: float = option(0.01, "What rates fall to, as a share of their highest, in [0, 1].")
    patience: int | None = option(
        None,
        "Epochs without a lower held-back loss before training stops; None: a third, at least 3.",
    )
    label_smoothing: float = option(0.0, "Label smoothing, in [0, 1).")
    dropout: float = option(0.0, "Share of the head's input left out at random, in [0, 1).")
    augment: str = option("auto", "auto (by the number of images), none, light, medium or strong.")
    flip: bool | None = option(None, "Whether images may be mirrored; None measures whether that confuses classes.")
    start_size: float = option(
        1.0, "Progressive image size: share of the side in the first epoch, in (0, 1]; 1 is off."
    )
    mixup: float = option(0.0, "Mixup: strength of mixing images in pairs, >= 0; 0 is off.")
    cutmix: float = option(0.0, "CutMix: strength of mixing images in pairs, >= 0; 0 is off.")
    # Where the best epoch lies in the middle of the schedule, rates are high and single weights noisy: on 200 noisy
    # pictures of clothes `few_layers` stopped there had a test accuracy of 58 to 67 %, its average of 67 to 69 %.
    average: str = option(
        "ema", "ema, swa or none: the average of the weights along the run that is evaluated and kept."
    )
    l2_sp: float = option(
        0.0, "L2-SP: strength of the pull towards the pretrained weights, >= 0; 0 is off, weight decay acts then."
    )
    snapshots: int = option(
        1,
        "Networks of one training, each the end of a cosine cycle, whose answers are averaged; all are run to predict. "
        "1 is off.",
    )
    views: int = option(
        4,
        "Augmented versions of each image to cache where the first stages are frozen; 0 caches none of them and runs "
        "the whole network on fresh ones.",
    )
    folds: int | None = option(
        None, "Times that a share of the images is held back to choose epochs and blend; None: by their number."
    )
    refit: bool | None = option(
        None,
        "Whether the network is trained once more, on all images; false averages the folds' networks, which are run "
        "together. None: false for two folds or a validation split.",
    )
    clip: float = option(1.0, "Norm that gradients are clipped to, >= 0; 0 leaves them as they are.")
    monitor: int = option(20, "Steps between two whose updates, gradients and units are monitored; 0 monitors none.")

    def __post_init__(self) -> None:
        found = (value_problem(one, getattr(self, one.name)) for one in fields(self))
        problems = [problem for problem in found if problem is not None]
        problems = problems or [message for right, message in self._conditions() if not right]
        if problems:
            raise OptionError(list_problems("Invalid training options:", problems))

    def _conditions(self) -> list[tuple[bool, str]]:
        named = (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("average", self.average, ("none", *AVERAGES)),
            ("augmentation", self.augment, AUGMENTS),
        )
        shares = ("warmup", "label_smoothing", "dropout", "momentum")
        amounts = ("weight_decay", "mixup", "cutmix", "l2_sp", "clip")
        counts = ("epochs", "batch_size", "patience", "snapshots")
        scale = self.lr_scale is None or 0 < self.lr_scale < math.inf
        return [
            *((value in known, unknown_name(name, value, known)) for name, value, known in named),
            *((0 <= getattr(self, n) < 1, f"{n} must be in [0, 1), got {getattr(self, n)!r}.") for n in shares),
            *((getattr(self, n) >= 0, f"{n} must be >= 0, got {getattr(self, n)!r}.") for n in amounts),
            *((_at_least_one(getattr(self, n)), f"{n} must be >= 1, got {getattr(self, n)!r}.") for n in counts),
            (0 < self.start_size <= 1, f"start_size must be in (0, 1], got {self.start_size!r}."),
            (0 < self.layer_decay <= 1, f"layer_decay must be in (0, 1], got {self.layer_decay!r}."),
            (0 <= self.minimum <= 1, f"minimum must be in [0, 1], got {self.minimum!r}."),
            (self.schedule != "exponential" or self.minimum > 0, "schedule=exponential needs a minimum above 0."),
            (self.folds is None or 1 <= self.folds <= N_SPLITS, f"folds must be 1 to {N_SPLITS}, got {self.folds!r}."),
            (self.monitor >= 0, f"monitor must be >= 0, got {self.monitor!r}."),
            (self.views >= 0, f"views must be >= 0, got {self.views!r}."),
            (
                self.snapshots == 1 or (self.schedule == "cosine" and self.average != "swa"),
                f"snapshots={self.snapshots} needs schedule=cosine, whose cycles they end, and average=ema or none.",
            ),
            (scale, f"lr_scale must be finite and > 0, or left out, got {self.lr_scale!r}."),
            (
                self.lr is None or self.lr_scale is None,
                f"lr={self.lr} and lr_scale={self.lr_scale} both say how fast the last stage learns: leave one of them "
                "out.",
            ),
        ]

    @classmethod
    def named(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe with these values, the others at their defaults.

        Raises:
            OptionError: If there is no such value; the closest are offered.
        """
        known = [one.name for one in fields(cls)]
        for name in values:
            if name not in known:
                raise OptionError(unknown_name("training option", name, known))
        return cls(**values)

    @property
    def tries_rates(self) -> bool:
        """Whether no learning rate was given, so that more than the rule's rate is tried."""
        return self.lr is None and self.lr_scale is None

    @property
    def changed(self) -> dict[str, Any]:
        """Name -> value of the options that are not at their defaults."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {one.name: values[one.name] for one in fields(self) if values[one.name] != one.default}

    @property
    def allowed_patience(self) -> int:
        """Epochs without a lower held-back loss that early stopping allows."""
        return self.patience if self.patience is not None else max(MIN_PATIENCE, round((self.epochs or 0) / 3))


def _at_least_one(value: int | None) -> bool:
    return value is None or value >= 1
