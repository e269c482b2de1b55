"""Targets by task: checks, class weights, and the scale of regression targets.

Uses only training targets; `losses` uses them in a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import DataError, OptionError, list_problems
from transferkit.probe.weighting import choose_weighting, class_weights
from transferkit.records import Folds

__all__ = [
    "TargetScale",
    "check_batch_classes",
    "check_batch_labels",
    "check_batch_numbers",
    "check_classes",
    "check_labels",
    "check_numbers",
    "training_targets",
    "weigh_classes",
    "weigh_labels",
    "weigh_numbers",
]

Array = npt.NDArray[Any]


def weigh_classes(targets: Array, outputs: int, weighting: str) -> npt.NDArray[np.float64] | None:
    """(K,) weights with equal total weight per class and mean 1 over images; None for no weights.

    Args:
        targets: (N,) int in [0, K), of the training images.
        outputs: K. A class without images has weight 1.
        weighting: One of `CLASS_WEIGHTS`.

    Example:
        >>> weigh_classes(np.array([0, 0, 0, 1]), 2, "auto").round(2).tolist()
        [0.67, 2.0]
    """
    per_image = class_weights(targets, choose_weighting(np.bincount(targets, minlength=outputs), weighting))
    if per_image is None:
        return None
    weights = np.ones(outputs)
    weights[targets] = per_image
    return weights


def weigh_labels(targets: Array, outputs: int, weighting: str) -> npt.NDArray[np.float64] | None:
    """(K,) weights with which a label's positives and negatives have equal total weight; None for no weights.

    Args:
        targets: (N, K) 0 or 1, of the training images.
        outputs: K.
        weighting: One of `CLASS_WEIGHTS`; "auto" decides per label, and leaves some at 1.

    Example:
        >>> weigh_labels(np.array([[1, 1], [0, 1], [0, 0], [0, 0]]), 2, "auto").tolist()
        [3.0, 1.0]
    """
    positive = np.asarray(targets).sum(axis=0)
    counts = np.stack([positive, len(targets) - positive], axis=1)
    wanted = [choose_weighting(pair, weighting) == "balanced" and pair.min() > 0 for pair in counts]
    if not any(wanted):
        return None
    return np.divide(counts[:, 1], counts[:, 0], out=np.ones(outputs), where=wanted)


def weigh_numbers(targets: Array, outputs: int, weighting: str) -> None:
    """Always None: regression targets have no classes to weight.

    Raises:
        OptionError: If weighting was requested.
    """
    if choose_weighting([], weighting) == "balanced":
        raise OptionError("A regression has no classes to balance. Use the weighting 'none' or 'auto'.")


def check_classes(targets: Array, names: Sequence[str]) -> None:
    """Raise unless targets are (N,) integers in [0, K), of at least 2 classes.

    Raises:
        DataError: If not.
    """
    targets = np.asarray(targets)
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        raise DataError(
            f"A single-label task needs (N,) integer labels, got {targets.shape} of {targets.dtype}. "
            "For several labels per image use task 'multi_label', for numbers 'regression'."
        )
    if wrong := sorted({int(label) for label in targets if not 0 <= label < len(names)}):
        raise DataError(f"Labels must be in [0, {len(names)}), the known classes; got {_some(wrong)}.")
    if len(np.unique(targets)) < 2:
        raise DataError("All images are of one class, so there is nothing to classify. Add images of another class.")


def check_labels(targets: Array, names: Sequence[str]) -> None:
    """Raise unless targets are (N, K), 0 or 1, and each of the K labels is on some images but not all.

    Raises:
        DataError: If not; all labels are reported at once.
    """
    targets = np.asarray(targets)
    _check_shape(targets, names, "A multi-label task")
    if not np.isin(targets, (0, 1)).all():
        raise DataError(f"Labels must be 0 or 1, got {_some(sorted(set(targets.ravel().tolist()) - {0, 1}))}.")
    share = targets.mean(axis=0)
    problems = [
        f"label {name!r} is on {'no' if share[k] == 0 else 'every'} image: leave it out, or add images"
        for k, name in enumerate(names)
        if share[k] in (0, 1)
    ]
    if problems:
        raise DataError(list_problems("Some labels cannot be learned:", problems))


def check_numbers(targets: Array, names: Sequence[str]) -> None:
    """Raise unless targets are (N,) or (N, R) finite numbers, and each of the R targets varies.

    Raises:
        DataError: If not; all targets are reported at once.
    """
    targets = np.asarray(targets)
    columns = targets[:, None] if targets.ndim == 1 else targets
    _check_shape(columns, names, "A regression")
    problems = [
        f"target {name!r} has {bad} values that are not finite: leave these images out"
        for name, bad in zip(names, (~np.isfinite(columns)).sum(axis=0), strict=True)
        if bad
    ]
    problems += [
        f"target {name!r} is {column[0]} for all images: leave it out"
        for name, column in zip(names, columns.T, strict=True)
        if (column == column[0]).all()
    ]
    if problems:
        raise DataError(list_problems("Some targets cannot be learned:", problems))


def _check_shape(targets: Array, names: Sequence[str], what: str) -> None:
    if targets.ndim != 2 or targets.shape[1] != len(names) or len(targets) == 0 or targets.dtype.kind not in "biuf":
        raise DataError(
            f"{what} with {len(names)} outputs needs targets (N, {len(names)}), numbers, N >= 1; "
            f"got {targets.shape} of {targets.dtype}."
        )


def check_batch_classes(targets: torch.Tensor, outputs: int, *, values: bool = True) -> None:
    """Raise unless the targets of a batch are (n,) integers in [0, K), or (n, K) class shares, as from mixup.

    Args:
        targets: Of a batch.
        outputs: Number of outputs of the network.
        values: Whether to check values, not only shape and dtype.

    Raises:
        DataError: If not.
    """
    if targets.is_floating_point() and targets.ndim == 2 and targets.shape[1] == outputs:
        return
    expected = f"A batch of a single-label task with {outputs} classes has (n,) integers in [0, {outputs}) as targets"
    if targets.is_floating_point() or targets.ndim != 1:
        hint = "Use targets.long()" if targets.ndim == 1 else f"For class shares, pass (n, {outputs}) floats"
        if targets.ndim == 2 and targets.shape[1] == 1:
            hint = "Use targets.squeeze(1).long()"
        raise DataError(
            f"{expected}, got {_describe(targets)}. {hint}; for numbers to predict use task='regression', for several "
            "labels per image task='multi_label'."
        )
    if values and len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < outputs):
        raise DataError(
            f"{expected}, got labels from {int(targets.min())} to {int(targets.max())}. Number the classes from 0, or "
            "name all of them in classes=."
        )


def check_batch_labels(targets: torch.Tensor, outputs: int, *, values: bool = True) -> None:
    """Raise unless the targets of a batch are (n, K) in [0, 1].

    Args:
        targets: Of a batch.
        outputs: Number of outputs of the network.
        values: Whether to check values, not only shape and dtype.

    Raises:
        DataError: If not.
    """
    expected = f"A batch of a multi-label task with {outputs} labels has (n, {outputs}) values in [0, 1] as targets"
    if targets.ndim != 2 or targets.shape[1] != outputs:
        raise DataError(f"{expected}, got {_describe(targets)}. For one label per image use task='single_label'.")
    if values and len(targets) and not (float(targets.min()) >= 0 and float(targets.max()) <= 1):
        raise DataError(f"{expected}, got values from {float(targets.min()):g} to {float(targets.max()):g}.")


def check_batch_numbers(targets: torch.Tensor, outputs: int, *, values: bool = True) -> None:
    """Raise unless the targets of a batch are (n, R) finite numbers, or (n,) for R = 1.

    Args:
        targets: Of a batch.
        outputs: Number of outputs of the network.
        values: Whether to check values, not only shape and dtype.

    Raises:
        DataError: If not.
    """
    expected = f"A batch of a regression with {outputs} outputs has (n, {outputs}) finite numbers as targets"
    columns = targets.shape[1] if targets.ndim == 2 else 1
    if targets.ndim not in (1, 2) or columns != outputs:
        raise DataError(f"{expected}, got {_describe(targets)}. classes= must name one output per number.")
    if values and not bool(torch.isfinite(targets).all()):
        raise DataError(f"{expected}, got values that are not finite. Leave out the images without a number.")


def _describe(targets: torch.Tensor) -> str:
    return f"{tuple(targets.shape)} of {str(targets.dtype).removeprefix('torch.')}"


def _some(values: Iterable[Any]) -> str:
    first = list(values)
    return ", ".join(map(str, first[:5])) + (", ..." if len(first) > 5 else "")


@dataclass(frozen=True, kw_only=True)
class TargetScale:
    """Mean and standard deviation of regression targets; networks are trained on standardised targets.

    Args:
        mean: Of each of R targets; one for targets (N,).
        std: Of each, > 0.

    Example:
        >>> scale = TargetScale.fit(np.array([1.0, 3.0]))
        >>> scale.apply(np.array([4.0])).tolist(), scale.invert(np.array([2.0])).tolist()
        ([2.0], [4.0])
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(0 < std < np.inf for std in self.std):
            raise DataError(f"Every target needs a finite standard deviation > 0, got {self.std}.")

    @classmethod
    def fit(cls, targets: Array) -> TargetScale:
        """The scale of (N,) or (N, R) training targets."""
        columns = np.asarray(targets, dtype=np.float64).reshape(len(targets), -1)
        return cls(mean=tuple(columns.mean(axis=0).tolist()), std=tuple(columns.std(axis=0).tolist()))

    def apply(self, targets: Array) -> Array:
        """Standardise targets: mean 0, standard deviation 1 on the training images."""
        return (np.asarray(targets) - self.mean) / self.std

    def invert(self, outputs: Array) -> Array:
        """Convert a network's outputs to the units of the targets."""
        return np.asarray(outputs) * self.std + self.mean


def training_targets(folds: Folds) -> Array:
    """What batches hold of these images: (N,) classes, (N, T) float labels, or (N, T) numbers, standardised.

    Numbers are standardised over all images before they become single precision, which would round large ones.
    """
    if folds.targets is None:
        return folds.labels
    if folds.targets.is_labels:
        return folds.targets.values.astype(np.float32)
    return TargetScale.fit(folds.targets.values).apply(folds.targets.values).astype(np.float32)
