"""What is examined: a model with one batch, its loss and its optimizer."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from transferkit.core.errors import OptionError
from transferkit.records import Preprocessing

__all__ = ["Loss", "Subject", "cross_entropy", "first_image", "first_tensor", "joined", "run_model", "seeded"]

Loss = Callable[[Any, Any], torch.Tensor]
"""(outputs, targets) -> scalar."""


def cross_entropy(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of logits."""
    return nn.functional.cross_entropy(outputs, targets)


@dataclass(frozen=True)
class Subject:
    """A training set-up, as it is before the first step. No check changes it.

    Args:
        model: Called with `inputs`.
        inputs: One batch as the training loop gives it: a tensor, a tuple or list of the model's arguments, or a
            dictionary of its named ones. Two images or more, of different content.
        targets: (N, ...) of the same batch, or a tuple, list or dictionary of such.
        loss: (outputs, targets) -> scalar.
        optimizer: Of the model's parameters; checks that need one are skipped without.
        classes: K of a classifier; None where the targets are not class numbers.
        seed: Of random directions.
        preprocessing: What the backbone was trained with; None if it starts from scratch.

    Raises:
        OptionError: If there are fewer than two images, or targets of another number.
    """

    model: nn.Module
    inputs: Any
    targets: Any
    loss: Loss = cross_entropy
    optimizer: torch.optim.Optimizer | None = None
    classes: int | None = None
    seed: int = 0
    preprocessing: Preprocessing | None = None

    def __post_init__(self) -> None:
        images, targets = len(self.first_input), len(first_tensor(self.targets, "Targets"))
        if images < 2 or targets != images:
            raise OptionError(f"A batch of 2 images or more is needed, with a target each; got {images} and {targets}.")

    @property
    def first_input(self) -> torch.Tensor:
        """The first of the model's arguments."""
        return first_tensor(self.inputs, "Inputs")

    def take(self, rows: slice) -> tuple[Any, Any]:
        """Inputs and targets of some of the images; what has no row for each image is handed on as it is."""
        images = len(self.first_input)
        return _take(self.inputs, rows, images), _take(self.targets, rows, images)

    def run(self, model: nn.Module | None = None, inputs: Any = None) -> Any:
        """Outputs of a model (this one's by default) for inputs (these by default)."""
        return run_model(self.model if model is None else model, self.inputs if inputs is None else inputs)

    def copy(self) -> tuple[nn.Module, torch.optim.Optimizer | None]:
        """The model, and the optimizer over the copy's parameters, state included: both may be changed."""
        memo: dict[int, Any] = {}
        try:
            model = copy.deepcopy(self.model, memo)
        except (RuntimeError, TypeError) as error:
            raise OptionError(
                f"The model cannot be copied, and checks must not change it: {error}\nDo not keep outputs of a "
                "forward pass in the model, or detach() them; and examine it before wrappers and hooks are added."
            ) from error
        if self.optimizer is None:
            return model, None
        # Sharing the memo makes the copy of the optimizer hold the copied parameters, as this one holds the model's.
        return model, copy.deepcopy(self.optimizer, memo)

    @property
    def log_classes(self) -> float:
        """ln K, the loss of guessing; NaN without classes."""
        return math.log(self.classes) if self.classes else math.nan


def run_model(model: nn.Module, inputs: Any) -> Any:
    """Outputs for a tensor, a tuple or list of arguments, or a dictionary of named ones."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def first_tensor(batch: Any, what: str) -> torch.Tensor:
    """The first tensor of a batch, however it is nested."""
    found = next(_tensors(batch), None)
    if found is None:
        raise OptionError(
            f"{what} must be a tensor, or a tuple, list or dictionary of them, got {type(batch).__name__}."
        )
    return found


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, (tuple, list, Mapping)):
        for one in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(one)


def first_image(batch: Any) -> Any:
    """The first image of a batch, as a batch."""
    return _take(batch, slice(0, 1), len(first_tensor(batch, "Inputs")))


def joined(batches: Sequence[Any]) -> Any:
    """Batches of a few images as one."""
    first = batches[0]
    if isinstance(first, Mapping):
        return {name: joined([one[name] for one in batches]) for name in first}
    if isinstance(first, (tuple, list)):
        return type(first)(joined(parts) for parts in zip(*batches, strict=True))
    return torch.cat(list(batches)) if isinstance(first, torch.Tensor) and first.dim() else first


def _take(batch: Any, rows: slice, images: int) -> Any:
    if isinstance(batch, Mapping):
        return {name: _take(one, rows, images) for name, one in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(_take(one, rows, images) for one in batch)
    return batch[rows] if isinstance(batch, torch.Tensor) and batch.dim() and len(batch) == images else batch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside the block the generators of torch, NumPy and Python start from the seed; their state is put back
    afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    # Augmentations of other people draw from NumPy's global generator.
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)
