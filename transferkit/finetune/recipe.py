"""How gradient training goes, whatever it is that learns: length, optimizer, regularisation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

import torch

from transferkit.core.errors import OptionError, list_problems, unknown_name
from transferkit.decision import default_batch_size, default_epochs, default_folds
from transferkit.finetune.averaging import AVERAGES
from transferkit.finetune.schedule import SCHEDULES
from transferkit.finetune.sharding import is_sharded
from transferkit.records import N_SPLITS

__all__ = ["OPTIMIZERS", "Recipe"]

OPTIMIZERS = ("adamw", "sgd")
RATES = ("find", "rule")
AUGMENTS = ("auto", "none", "light", "medium", "strong")

MOMENTUM = 0.9

WHOLE = ("epochs", "batch_size", "patience", "views", "folds")
NUMBERS = (
    "lr_scale",
    "weight_decay",
    "warmup",
    "minimum",
    "label_smoothing",
    "dropout",
    "mixup",
    "cutmix",
    "l2_sp",
    "clip",
)

LEAST_PATIENCE = 3
"""Epochs without a better held-back loss that early stopping lets pass at least: single epochs are noisy."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is fine-tuned.

    Args:
        epochs: Passes over the training images, >= 1; None fits them to their number.
        batch_size: Images per optimizer step, of all processes together, >= 1; None fits it to their number.
        optimizer: "adamw", or "sgd" with Nesterov momentum 0.9.
        lr: Learning rate of the last stage; "rule" takes the decision's, "find" tests a range first. None tries three
            times the decision's as well, on the images held back first, unless `lr_scale` is given.
        lr_scale: The same as a share of the rate that the backbone was trained at, > 0, in place of the rule's 0.1;
            that rate alone is tried. Not together with `lr`.
        weight_decay: >= 0; not of norms and biases.
        schedule: "cosine", "linear", "exponential", "constant" or "plateau".
        warmup: Share of each phase in which rates rise, in [0, 1).
        minimum: What rates fall to, as a share of their highest, in [0, 1].
        patience: Epochs without a better held-back loss before it stops; None takes a third of the epochs, at least 3.
        label_smoothing: In [0, 1).
        dropout: Share of the head's input left out at random, in [0, 1).
        augment: "auto" (by the number of images), "none", "light", "medium" or "strong".
        flip: Whether images may be mirrored; None measures whether that confuses classes.
        mixup, cutmix: Strength of mixing images in pairs, >= 0; 0 is off.
        average: "ema", "swa" or "none": an average of the weights along the run is what is judged and kept. Where the
            best epoch lies in the middle of the schedule, rates are high and single weights noisy: on 200 noisy
            pictures of clothes, `few_layers` stopped there named 58 to 67 % of the test images, its average 67 to 69 %.
        l2_sp: Strength of the pull towards the pretrained weights, >= 0; 0 is off, weight decay acts then.
        views: Augmented versions of each image to cache when the first stages are frozen; 0 caches none of them
            and runs the whole network on fresh ones.
        folds: Times that a share of the images is held back to choose epochs and blend; None fits it to their number.
        clip: Norm that gradients are cut to, >= 0; 0 leaves them as they are.
    """

    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str = "adamw"
    lr: float | str | None = None
    lr_scale: float | None = None
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: float = 0.1
    minimum: float = 0.01
    patience: int | None = None
    label_smoothing: float = 0.0
    dropout: float = 0.0
    augment: str = "auto"
    flip: bool | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    average: str = "ema"
    l2_sp: float = 0.0
    views: int = 4
    folds: int | None = None
    clip: float = 1.0

    def __post_init__(self) -> None:
        problems = list(self._wrong_types()) or [message for right, message in self._conditions() if not right]
        if problems:
            raise OptionError(list_problems("Invalid training options:", problems))

    def _wrong_types(self) -> Iterator[str]:
        """A command line gives whatever was typed."""
        for field in fields(self):
            value: object = getattr(self, field.name)
            if value is None and "None" in str(field.type):
                continue
            kind, said = (Integral, "a whole number") if field.name in WHOLE else (Real, "a number")
            if field.name in (*WHOLE, *NUMBERS) and (isinstance(value, bool) or not isinstance(value, kind)):
                yield f"{field.name} must be {said}, got {value!r}."
        flip: object = self.flip
        if not isinstance(flip, bool | None):
            yield f"flip must be true, false or left out, got {flip!r}."

    def _conditions(self) -> list[tuple[bool, str]]:
        named = (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, tuple(SCHEDULES)),
            ("average", self.average, ("none", *AVERAGES)),
            ("augmentation", self.augment, AUGMENTS),
        )
        shares = ("warmup", "label_smoothing", "dropout")
        amounts = ("weight_decay", "mixup", "cutmix", "l2_sp", "clip")
        rate = self.lr in (None, *RATES) or (isinstance(self.lr, (int, float)) and 0 < self.lr < math.inf)
        share = self.lr_scale is None or 0 < self.lr_scale < math.inf
        return [
            *((value in known, unknown_name(name, value, known)) for name, value, known in named),
            *((0 <= getattr(self, n) < 1, f"{n} must be in [0, 1), got {getattr(self, n)!r}.") for n in shares),
            *((getattr(self, n) >= 0, f"{n} must be >= 0, got {getattr(self, n)!r}.") for n in amounts),
            (0 <= self.minimum <= 1, f"minimum must be in [0, 1], got {self.minimum!r}."),
            (self.schedule != "exponential" or self.minimum > 0, "schedule=exponential needs a minimum above 0."),
            (self.epochs is None or self.epochs >= 1, f"epochs must be >= 1, got {self.epochs!r}."),
            (self.batch_size is None or self.batch_size >= 1, f"batch_size must be >= 1, got {self.batch_size!r}."),
            (self.patience is None or self.patience >= 1, f"patience must be >= 1, got {self.patience!r}."),
            (
                self.folds is None or 1 <= self.folds <= N_SPLITS,
                f"folds must be 1 to {N_SPLITS}, got {self.folds!r}.",
            ),
            (self.views >= 0, f"views must be >= 0, got {self.views!r}."),
            (rate, f"lr must be > 0, 'find', 'rule' or left out, got {self.lr!r}."),
            (share, f"lr_scale must be finite and > 0, or left out, got {self.lr_scale!r}."),
            (
                self.lr is None or self.lr_scale is None,
                f"lr={self.lr} and lr_scale={self.lr_scale} both say how fast the last stage learns: leave one of them "
                "out.",
            ),
        ]

    @classmethod
    def named(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe with these values, the others as usual.

        Raises:
            OptionError: If there is no such value; the closest are offered.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise OptionError(unknown_name("training option", name, known))
        return cls(**values)

    def fitted(self, images: int, *, batch_size: int | None = None) -> Recipe:
        """The same with nothing left open that the number of images decides.

        Args:
            images: N to train on, >= 1.
            batch_size: What to take where the recipe names none; None fits it.
        """
        size = self.batch_size or batch_size or default_batch_size(images)
        return replace(
            self,
            batch_size=min(size, images),
            epochs=default_epochs(images) if self.epochs is None else self.epochs,
            folds=default_folds(images) if self.folds is None else self.folds,
        )

    def make_optimizer(self, groups: list[dict[str, Any]], *, mixed: bool = False) -> torch.optim.Optimizer:
        """The optimizer over these parameter groups.

        Args:
            groups: They bring their rates and weight decay along.
            mixed: Whether it trains in mixed precision.
        """
        # In one pass over memory: of a step of EfficientNet-Lite0 on a CPU the plain loop takes 7 milliseconds, this 3.
        # With mixed precision, and on a GPU, it would do the scaling of gradients itself, and Lightning could not cut
        # them then. Of sharded weights torch knows the plain loop alone.
        parameters = [parameter for group in groups for parameter in group["params"]]
        fused = not mixed and all(one.device.type == "cpu" and not is_sharded(one) for one in parameters)
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True, fused=fused)
        return torch.optim.AdamW(groups, fused=fused)

    @property
    def tries_rates(self) -> bool:
        """Whether nobody said how fast the last stage learns, so that more than the rule's rate is tried."""
        return self.lr is None and self.lr_scale is None

    @property
    def said(self) -> tuple[str, ...]:
        """Names of the options that are not as usual."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) != field.default)

    @property
    def stops_after(self) -> int:
        """Epochs without a better held-back loss that are let pass."""
        if self.patience is not None:
            return self.patience
        return max(LEAST_PATIENCE, round((self.epochs or 0) / 3))
