"""A whole training set-up examined before it runs: model, loss and optimizer on a batch, and the data behind the
loaders."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from transferkit.doctor.causes import ranked
from transferkit.doctor.checks import Skipped
from transferkit.doctor.class_order import check_class_order
from transferkit.doctor.examination import examine, run_check
from transferkit.doctor.leaks import check_leaks
from transferkit.doctor.loaders import (
    Sample,
    Unpack,
    all_labels,
    as_pair,
    check_classes,
    check_held_back,
    check_order,
    check_single_images,
    check_splits,
    check_workers,
    class_names,
    draw_sample,
)
from transferkit.doctor.penultimate import penultimate_features
from transferkit.doctor.pictures import check_pictures
from transferkit.doctor.plain_features import gradient_histograms
from transferkit.doctor.subject import Loss, cross_entropy, first_image, first_tensor, joined, seeded
from transferkit.measure import compare_label_maps, label_signal
from transferkit.records import Diagnosis, Preprocessing, Symptom

__all__ = ["examine_training"]

Floats = npt.NDArray[np.float64]

CHANCE = 2.5
"""Standard deviations above permuted labels below which labels have nothing to do with the images."""

WEAK = 8.0
"""The same below which edges are asked as well."""

FEWEST, PER_CLASS = 60, 3
"""Images, in all and per class, below which nothing is said about labels."""

JOINED = 8
"""Batches of a single image that are examined as one."""

EXCHANGED = 5.0
"""Standard deviations by which another numbering of the classes must explain held-back labels better."""

EXPLAINED = 0.6
"""Share of the accuracy among training images that the other numbering must reach."""


def examine_training(
    model: nn.Module,
    train: Iterable[Any],
    *,
    held_back: Iterable[Any] | None = None,
    loss: Loss = cross_entropy,
    optimizer: torch.optim.Optimizer | None = None,
    classes: int | None = None,
    preprocessing: Preprocessing | None = None,
    pictures: Sequence[Any] | None = None,
    images: int = 384,
    unpack: Unpack = as_pair,
    seed: int = 0,
) -> Diagnosis:
    """Check a training set-up with its data before its first step; nothing of it is changed.

    Args:
        model: Any PyTorch classifier, in the mode in which it will be trained.
        train: Loader of (inputs, targets), as the loop gets them; one that can be read more than once.
        held_back: Loader of the images that are evaluated on.
        loss: (outputs, targets) -> scalar.
        optimizer: As it will be used.
        classes: K; None where targets are no class numbers.
        preprocessing: What the backbone was trained with (`Backbone.spec.preprocessing`); None if it was not.
        pictures: The first of the held-back images, unprepared, in the loader's order: files, PIL images or (H, W, 3)
            arrays. With them channel order and normalisation are told for sure.
        images: Most images looked at in each split, >= 60.
        unpack: Batch -> (inputs, targets), for loaders of dictionaries or of more than two things.
        seed: Of what is random in the checks.

    Returns:
        Symptoms, alarms first and causes before consequences; what was checked and found well; what could not be.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> labels = torch.arange(120) % 3
        >>> rows = torch.randn(120, 6, generator=torch.Generator().manual_seed(0)) + 3 * torch.eye(6)[labels]
        >>> net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> wrong = DataLoader(TensorDataset(rows, labels[torch.randperm(120)]), batch_size=30, shuffle=True)
        >>> [one.cause for one in examine_training(net, wrong, optimizer=sgd, classes=3).alarms]
        ['labels_unrelated']
    """
    with seeded(seed), _keeping_order(train, held_back):
        ours = draw_sample(train, images=images, seed=seed, unpack=unpack)
        theirs = None if held_back is None else draw_sample(held_back, images=images, seed=seed, unpack=unpack)
        batch = _first_batch(train, seed, unpack)
        found = examine(
            model, batch, loss=loss, optimizer=optimizer, classes=classes, preprocessing=preprocessing, seed=seed
        )
        looks = _Looks(model, train, held_back, ours, theirs, classes, preprocessing, pictures, unpack, seed)
        symptoms, passed, skipped = list(found.symptoms), list(found.passed), dict(found.skipped)
        for name, look in looks.all.items():
            seen, why = run_check(look)
            symptoms += seen
            if why:
                skipped[name] = why
            elif not seen:
                passed.append(name)
    return Diagnosis(symptoms=ranked(symptoms), passed=tuple(passed), skipped=skipped)


def _first_batch(loader: Iterable[Any], seed: int, unpack: Unpack) -> tuple[Any, Any]:
    """The first batch; several where a batch has one image."""
    with seeded(seed):
        batches = iter(loader)
        inputs, targets = unpack(next(batches))
        if len(first_tensor(inputs, "Inputs")) > 1:
            return inputs, targets
        given = [(inputs, targets), *(unpack(one) for one in islice(batches, JOINED - 1))]
    return joined([one for one, _ in given]), joined([one for _, one in given])


@contextmanager
def _keeping_order(*loaders: Any) -> Iterator[None]:
    """Generators that the loaders have of their own are afterwards as before."""
    owners = [one for loader in loaders for one in (loader, getattr(loader, "sampler", None))]
    found = [getattr(one, "generator", None) for one in owners]
    states = [(one, one.get_state()) for one in found if isinstance(one, torch.Generator)]
    try:
        yield
    finally:
        for one, state in states:
            one.set_state(state)


@dataclass(frozen=True)
class _Looks:
    """The checks of the data, and what they look at."""

    model: nn.Module
    train: Any
    held_back: Any
    ours: Sample
    theirs: Sample | None
    classes: int | None
    preprocessing: Preprocessing | None
    pictures: Sequence[Any] | None
    unpack: Unpack
    seed: int
    known: dict[int, Floats] = field(default_factory=dict)

    @property
    def all(self) -> dict[str, Callable[[], Iterator[Symptom]]]:
        """Name -> check."""
        return {
            "classes": self._classes,
            "batches": self._batches,
            "order": self._order,
            "splits": self._splits,
            "held_back": self._held_back,
            "workers": self._workers,
            "labels": self._labels,
            "copies": self._copies,
            "pictures": self._pictures,
        }

    def _batches(self) -> Iterator[Symptom]:
        with seeded(self.seed):
            yield from check_single_images(self.train, copy.deepcopy(self.model), first_image(self.ours.inputs[0]))

    def _held_back(self) -> Iterator[Symptom]:
        if self.held_back is None:
            raise Skipped("held_back is not given")
        yield from check_held_back(self.held_back, seed=self.seed)

    def _classes(self) -> Iterator[Symptom]:
        ours, theirs = class_names(self.train), class_names(self.held_back)
        if ours and theirs and ours[: len(theirs)] != theirs:
            yield from check_class_order(ours, theirs)
        known = all_labels(self.train)
        if known is None and self.ours.is_whole:
            known = self.ours.labels
        if known is None or not self.classes or not len(known):
            raise Skipped("the class numbers of all training images are not known")
        yield from check_classes(known, None if self.theirs is None else self.theirs.labels, classes=self.classes)

    def _order(self) -> Iterator[Symptom]:
        if not len(self.ours.labels):
            raise Skipped("targets are not class numbers")
        yield from check_order(self.ours.labels)

    def _splits(self) -> Iterator[Symptom]:
        ours, theirs = self._both
        if ours.images.dim() != 4 or theirs.images.dim() != 4:
            raise Skipped("inputs are not (N, C, H, W) images")
        yield from check_splits(ours.images, theirs.images)

    def _workers(self) -> Iterator[Symptom]:
        if not getattr(self.train, "num_workers", 0):
            raise Skipped("the loader has no worker processes")
        with seeded(self.seed):
            yield from check_workers(self.train, unpack=self.unpack)

    def _pictures(self) -> Iterator[Symptom]:
        _, theirs = self._both
        if self.pictures is None or self.preprocessing is None:
            raise Skipped("pictures or preprocessing is not given")
        prepared = theirs.images[: len(self.pictures)]
        found = check_pictures(list(self.pictures)[: len(prepared)], prepared, self.preprocessing)
        if any(one.cause == "mean_std" for one in found) and any(check_held_back(self.held_back, seed=self.seed)):
            found = tuple(one for one in found if one.cause != "mean_std")  # random crops change mean and spread too
        yield from found

    def _copies(self) -> Iterator[Symptom]:
        ours, theirs = self._both
        if any(one.images.dim() != 4 or one.images.shape[1] != 3 for one in (ours, theirs)):
            raise Skipped("inputs are not (N, 3, H, W) images")
        rows = [self._of_network(one) for one in (ours, theirs)]
        if [len(one) for one in rows] != [len(one.images) for one in (ours, theirs)]:
            raise Skipped("images have several sizes")
        yield from check_leaks((ours.images, rows[0]), (theirs.images, rows[1]))

    def _labels(self) -> Iterator[Symptom]:
        labels = self.ours.labels
        fewest = max(FEWEST, PER_CLASS * len(np.unique(labels)))
        if not self.classes or len(labels) < fewest:
            raise Skipped(f"it takes {fewest} images with class numbers")
        describe, features = self._of_network, self._of_network(self.ours)
        signal = label_signal(features, labels, seed=self.seed)
        if signal.z < WEAK and self.ours.images.dim() == 4 and len(self.ours.images) == len(labels):
            # Features of a weak backbone may know less of the labels than edges do.
            plain = _of_edges(self.ours)
            other = label_signal(plain, labels, seed=self.seed)
            if other.z > signal.z:
                describe, features, signal = _of_edges, plain, other
        if signal.z < CHANCE:
            yield Symptom(
                cause="labels_unrelated",
                # Neither edges nor a network from scratch tell discs from squares in any place.
                severity="note" if self.preprocessing is None and self.ours.images.dim() == 4 else "alarm",
                evidence=f"Labels have nothing to do with the images: held-back accuracy on {signal.images} training "
                f"images is {100 * signal.accuracy:.0f} % ({100 * signal.chance:.0f} % by naming the largest class), "
                f"{signal.z:+.1f} standard deviations from that of permuted labels.",
                remedy="Look at a few images with their labels: were the two lists sorted or shuffled apart?",
            )
        elif self.theirs is not None and len(self.theirs.labels) >= FEWEST:
            others = describe(self.theirs)
            yield from _compare_maps(features, labels, others, self.theirs.labels, signal.accuracy)

    def _of_network(self, sample: Sample) -> Floats:
        """The network's features, computed once for all checks."""
        if id(sample) not in self.known:
            self.known[id(sample)] = _features(self.model, sample)
        return self.known[id(sample)]

    @property
    def _both(self) -> tuple[Sample, Sample]:
        if self.theirs is None:
            raise Skipped("held_back is not given")
        return self.ours, self.theirs


def _compare_maps(features: Any, labels: Any, others: Any, other_labels: Any, accuracy: float) -> Iterator[Symptom]:
    found = compare_label_maps(features, labels, others, other_labels)
    if found.z > EXCHANGED and found.best > EXPLAINED * accuracy:
        yield Symptom(
            cause="label_map_changed",
            severity="alarm",
            evidence="Held-back labels have another numbering: training images predict "
            f"{100 * found.accuracy:.0f} % of them as they are, and {100 * found.best:.0f} % with "
            f"{len(found.moved)} class numbers exchanged.",
            remedy="Use one list of class names for all splits: sorted folders and dictionaries differ between tools.",
            items=tuple(map(str, found.moved)),
        )


def _of_edges(sample: Sample) -> Floats:
    found: Floats = gradient_histograms(sample.images).double().cpu().numpy()
    return found


def _features(model: nn.Module, sample: Sample) -> Floats:
    """(N, D) float of the images of a sample, from a copy of the model."""
    plain, rows = copy.deepcopy(model), []
    for inputs in sample.inputs:
        found = penultimate_features(plain, inputs)
        if found is None:
            raise Skipped("the model has no linear layer with a row for each image")
        rows.append(found.cpu().numpy())
    features = np.concatenate(rows).astype(np.float64)
    if not np.isfinite(features).all():
        raise Skipped("features are not finite")
    return features
