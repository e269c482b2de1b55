"""What is wrong with the data before it reaches the network, told from the loaders: classes, order, sizes, values,
random augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from transferkit.core.errors import OptionError
from transferkit.doctor.checks.outputs import IGNORED
from transferkit.doctor.checks.registry import Skipped, listed
from transferkit.doctor.pixel_values import find_extent
from transferkit.doctor.subject import first_tensor, run_model, seeded
from transferkit.records import Symptom

__all__ = [
    "Sample",
    "Unpack",
    "all_labels",
    "as_pair",
    "check_classes",
    "check_held_back",
    "check_order",
    "check_single_images",
    "check_splits",
    "check_workers",
    "class_names",
    "draw_sample",
]

ORDERED = 8.0
"""Standard deviations of the number of neighbours with the same label from which on a loader is not shuffled."""

RATIOS = (0.77, 1.3)
"""Ratio of image sides between training and evaluation outside of which a difference is an alarm: a little larger in
evaluation is a known trick."""

STRETCHED, SHIFTED = 1.5, 0.25
"""Ratio of value ranges, and distance of their middles in units of the range, between two splits."""

NEARER = 3.0
"""How many times nearer the mean colour of one split must be to the other's in reverse order."""

APART = 6.0
"""Standard errors between mean colours from which on they differ."""

SAME_DRAW = 1e-6

DRAWN = 4
"""Held-back images that are drawn twice."""

Unpack = Callable[[Any], tuple[Any, Any]]
"""Batch of a loader -> (inputs, targets)."""


@dataclass(frozen=True)
class Sample:
    """Batches of a loader.

    Args:
        inputs: One entry a batch, as the loader gave them.
        labels: (N,) int of all of them; empty if targets are not class numbers.
        is_whole: Whether that is the whole loader.
    """

    inputs: tuple[Any, ...]
    labels: npt.NDArray[np.int64]
    is_whole: bool

    @property
    def images(self) -> torch.Tensor:
        """(N, ...) all first inputs; only of batches with the size of the first."""
        firsts = [first_tensor(one, "Inputs") for one in self.inputs]
        return torch.cat([one for one in firsts if one.shape[1:] == firsts[0].shape[1:]])


def as_pair(batch: Any) -> tuple[Any, Any]:
    """A batch of (inputs, targets).

    Raises:
        OptionError: It is none.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise OptionError(
            f"Expected batches of (inputs, targets), got {got}.\nSay which is which, for example "
            "unpack=lambda batch: (batch['image'], batch['label'])."
        )
    return batch[0], batch[1]


def draw_sample(loader: Iterable[Any], *, images: int, seed: int = 0, unpack: Unpack = as_pair) -> Sample:
    """The first batches of a loader, until there are enough images; the global generators are as before.

    Raises:
        OptionError: The loader is empty, can be read only once, or its batches are not pairs.
    """
    if isinstance(loader, Iterator):
        raise OptionError(
            f"Expected a loader that can be read more than once, got {type(loader).__name__}.\nPass the DataLoader "
            "itself, or a list of batches."
        )
    inputs, labels, count, is_whole = list[Any](), list[npt.NDArray[np.int64]](), 0, True
    with seeded(seed):
        for batch in loader:
            if count >= images:
                is_whole = False
                break
            given, targets = unpack(batch)
            inputs.append(given)
            count += len(first_tensor(given, "Inputs"))
            if isinstance(targets, torch.Tensor) and targets.dim() == 1 and not targets.is_floating_point():
                labels.append(targets.cpu().numpy().astype(np.int64))
    if not inputs:
        raise OptionError("The loader gives no batch: check batch_size, drop_last and the dataset's length.")
    return Sample(tuple(inputs), np.concatenate(labels) if labels else np.empty(0, dtype=np.int64), is_whole)


def all_labels(loader: Any) -> npt.NDArray[np.int64] | None:
    """(N,) all labels behind a loader, if its dataset keeps them where torchvision's do; None if it does not."""
    return _labels_of(getattr(loader, "dataset", None))


def _labels_of(dataset: Any) -> npt.NDArray[np.int64] | None:
    if isinstance(dataset, Subset):
        inner = _labels_of(dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [_labels_of(one) for one in dataset.datasets]
        return None if any(one is None for one in parts) else np.concatenate([one for one in parts if one is not None])
    found = dataset.tensors[-1] if isinstance(dataset, TensorDataset) else None
    for name in ("targets", "labels"):
        found = getattr(dataset, name, None) if found is None else found
    if found is None:
        return None
    values = np.asarray(found)
    return values.astype(np.int64) if values.ndim == 1 and np.issubdtype(values.dtype, np.integer) else None


def check_classes(
    train: npt.NDArray[np.int64], held_back: npt.NDArray[np.int64] | None, *, classes: int
) -> Iterator[Symptom]:
    """Is every label a class number, and does every class have training images?"""
    outside = train[((train < 0) | (train >= classes)) & (train != IGNORED)]
    if len(outside):
        yield Symptom(
            cause="targets_out_of_range",
            severity="alarm",
            evidence=f"{len(outside)} training labels are {int(outside.min())} to {int(outside.max())}; {classes} "
            f"classes are numbered 0 to {classes - 1}.",
            remedy="Number the classes from 0, in one order for all splits.",
        )
    counts = np.bincount(train[(train >= 0) & (train < classes)], minlength=classes)
    missing = [str(one) for one in np.flatnonzero(counts == 0)]
    if missing:
        tested = 0 if held_back is None else int(np.isin(held_back, [int(one) for one in missing]).sum())
        also = f" {tested} held-back images have them." if tested else ""
        yield Symptom(
            cause="class_missing",
            severity="alarm",
            evidence=f"{len(missing)} of {classes} classes have no training image: numbers {listed(missing)}.{also}",
            remedy="Draw splits class by class, or leave the class out everywhere.",
            items=tuple(missing),
        )


def check_order(labels: npt.NDArray[np.int64]) -> Iterator[Symptom]:
    """Are training images shuffled, or do classes come one after the other?"""
    shares = np.bincount(labels - labels.min()) / max(len(labels), 1)
    same = float((shares**2).sum())
    pairs = len(labels) - 1
    if pairs < 16 or same > 0.9:
        return
    neighbours = float((labels[1:] == labels[:-1]).mean())
    if (neighbours - same) * np.sqrt(pairs / (same * (1 - same))) > ORDERED and neighbours > 2 * same:
        yield Symptom(
            cause="not_shuffled",
            severity="alarm",
            evidence=f"{100 * neighbours:.0f} % of successive training images have the same class; in random order it "
            f"would be {100 * same:.0f} %.",
            remedy="Shuffle the training images anew for each epoch (DataLoader(shuffle=True)).",
        )


def check_splits(train: torch.Tensor, held_back: torch.Tensor) -> Iterator[Symptom]:
    """Do (N, C, H, W) training images and (M, C, H', W') held-back ones have the same size, range and channel
    order?"""
    sizes = [tuple(one.shape[2:]) for one in (train, held_back)]
    if sizes[0] != sizes[1]:
        ratio = max(b / a for a, b in zip(*sizes, strict=True)), min(b / a for a, b in zip(*sizes, strict=True))
        yield Symptom(
            cause="size",
            severity="alarm" if ratio[0] > RATIOS[1] or ratio[1] < RATIOS[0] else "note",
            evidence=f"Training images have {sizes[0][0]} x {sizes[0][1]} pixels, held-back ones {sizes[1][0]} x "
            f"{sizes[1][1]}.",
            remedy="Resize as in training.",
        )
    if not (train.is_floating_point() and held_back.is_floating_point()) or train.shape[1] != held_back.shape[1]:
        return
    ours, theirs = find_extent(train), find_extent(held_back)
    spans = [(one.high - one.low).clamp_min(1e-6) for one in (ours, theirs)]
    stretch = spans[1] / spans[0]
    shift = ((theirs.high + theirs.low) - (ours.high + ours.low)).abs() / (2 * spans[0])
    if bool((stretch > STRETCHED).all() or (stretch < 1 / STRETCHED).all() or (shift > SHIFTED).all()):
        yield Symptom(
            cause="range" if float(stretch.max()) > 20 or float(stretch.min()) < 1 / 20 else "mean_std",
            severity="alarm",
            evidence=f"Values of training images run from {ours}, those of held-back images from {theirs}.",
            remedy="Normalise both alike.",
        )
    elif train.shape[1] == 3:
        yield from _compare_colours(train, held_back)


def _compare_colours(train: torch.Tensor, held_back: torch.Tensor) -> Iterator[Symptom]:
    """Whether red and blue are exchanged: their difference has the other sign, beyond doubt in both splits."""
    means = [one.float().mean(dim=(2, 3)) for one in (train, held_back)]
    warm = [one[:, 0] - one[:, 2] for one in means]
    if min(len(one) for one in warm) < 16:
        return
    centres = [float(one.mean()) for one in warm]
    errors = [float(one.std()) / len(one) ** 0.5 for one in warm]
    apart = abs(centres[0] - centres[1]) / max((errors[0] ** 2 + errors[1] ** 2) ** 0.5, 1e-9)
    if apart > APART and abs(centres[0] + centres[1]) * NEARER < abs(centres[0] - centres[1]):
        yield Symptom(
            cause="channel_order",
            severity="alarm",
            evidence=f"Red minus blue is {centres[0]:+.2g} on average in training images and {centres[1]:+.2g} in "
            "held-back ones: one of them is BGR.",
            remedy="Convert to the channel order of training (OpenCV reads BGR).",
        )


def check_single_images(loader: Any, model: nn.Module, inputs: Any) -> Iterator[Symptom]:
    """Can the model be trained on a batch of one image, if the loader gives one?

    Args:
        loader: Of training images.
        model: A copy, in the mode in which it is trained; its statistics change.
        inputs: One image.
    """
    size, drops = getattr(loader, "batch_size", None), getattr(loader, "drop_last", True)
    sampler: Any = getattr(loader, "sampler", None)
    if not size or not hasattr(sampler, "__len__"):
        raise Skipped("the size of the batches is not known")
    count = len(sampler)
    if size > 1 and (drops or count % size != 1):
        return
    norms = [
        name for name, one in model.named_modules() if isinstance(one, nn.modules.batchnorm._BatchNorm) and one.training
    ]
    try:
        with torch.no_grad():
            run_model(model, inputs)
    except ValueError as error:
        if "more than 1 value" not in str(error):
            raise
        told = "batch normalisation fails on it"
    else:
        if size > 1 or not norms:
            return
        told = f"{len(norms)} layers of batch normalisation take their statistics from it alone"
    where = "Each batch is" if size == 1 else f"{count} images in batches of {size} leave a last batch of"
    yield Symptom(
        cause="batch_of_one",
        severity="alarm",
        evidence=f"{where} a single image, and {told}.",
        remedy="Use larger batches and drop_last=True, keep batch normalisation in evaluation mode, or use group "
        "normalisation.",
        items=tuple(norms),
    )


def check_held_back(loader: Any, *, seed: int = 0) -> Iterator[Symptom]:
    """Are held-back images prepared alike each time?"""
    dataset: Any = getattr(loader, "dataset", None)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or not len(dataset):
        raise Skipped("the held-back loader has no dataset with an index")
    drawn = []
    for one in (seed, seed + 1):
        with seeded(one):
            drawn.append([dataset[index] for index in range(min(DRAWN, len(dataset)))])
    try:
        pairs = [tuple(first_tensor(one, "An item") for one in pair) for pair in zip(*drawn, strict=True)]
    except OptionError as error:
        raise Skipped("the dataset's items hold no tensor") from error
    if not all(_are_equal(*pair) for pair in pairs):
        yield Symptom(
            cause="augmented_held_back",
            severity="note",
            evidence="The same held-back image is another one each time: it is augmented at random.",
            remedy="Give held-back images a pipeline without random crops and flips; random_split hands on that of "
            "training.",
        )


def class_names(loader: Any) -> list[str] | None:
    """Names in label order, if the dataset keeps them where torchvision's do."""
    dataset = getattr(loader, "dataset", None)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    found = getattr(dataset, "classes", None)
    return list(found) if isinstance(found, (list, tuple)) and all(isinstance(one, str) for one in found) else None


def check_workers(loader: Any, *, unpack: Unpack = as_pair) -> Iterator[Symptom]:
    """Do worker processes, and epochs, draw different random augmentations?"""
    if not isinstance(loader, DataLoader) or not hasattr(loader.dataset, "__len__") or not len(loader.dataset):
        return
    workers = max(loader.num_workers, 1)
    draws = 2 * workers
    # The same image again and again: each worker's first draw, then each worker's second.
    repeated = DataLoader(
        Subset(loader.dataset, [0] * draws),
        batch_size=1,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        collate_fn=loader.collate_fn,
    )
    epochs = [[first_tensor(unpack(one)[0], "Inputs").clone() for one in repeated] for _ in range(2)]
    first, second = epochs[0][:workers], epochs[0][workers:]
    if all(_are_equal(one, epochs[0][0]) for one in epochs[0][1:]):
        return  # there is no random augmentation, or it is a function of the index
    between = workers > 1 and all(_are_equal(one, first[0]) for one in first[1:])
    if between and all(_are_equal(one, second[0]) for one in second[1:]):
        yield _repeated(
            f"All {workers} workers draw the same random numbers: the same image is augmented alike in each."
        )
    elif all(_are_equal(*pair) for pair in zip(epochs[0], epochs[1], strict=True)):
        yield _repeated("Every epoch repeats the augmentations of the first one.")


def _repeated(evidence: str) -> Symptom:
    return Symptom(
        cause="repeated_augmentation",
        severity="alarm",
        evidence=evidence,
        remedy="Draw from torch's generator, which differs by worker and epoch, or seed your own from "
        "torch.initial_seed() in worker_init_fn; do not keep a seeded generator in the dataset.",
    )


def _are_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool(((one.float() - other.float()).abs() <= SAME_DRAW).all())
