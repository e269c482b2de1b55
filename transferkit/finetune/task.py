"""What a fine-tuning run is about: its images, the plan, and the networks and probes that start from them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from transferkit.features import FeatureTable
from transferkit.finetune.losses import TASKS
from transferkit.finetune.module import TransferModule
from transferkit.finetune.targets import TargetScale, training_targets
from transferkit.finetune.unlabelled import FurtherLoss
from transferkit.measure import Selection
from transferkit.nn import Backbone, Tail, TransferModel
from transferkit.options import Recipe
from transferkit.probe.heads import HeadFit, choose_head, fit_heads
from transferkit.records import Fold, Folds
from transferkit.strategies import Plan

__all__ = ["Feed", "FineTuneTask", "Indices"]

Indices = npt.NDArray[np.int64]


class Feed(Protocol):
    """Function that returns an iterable of (images, targets) over some of the N images."""

    def __call__(self, positions: Indices, *, batch_size: int, training: bool) -> Iterable[Any]:
        """Batches, shuffled and augmented differently each epoch if training; else in order and unaugmented."""
        ...


@dataclass(frozen=True, kw_only=True)
class FineTuneTask:
    """Inputs of a fine-tuning run.

    Args:
        plan: A strategy's, with phases.
        probe: The closed-form plan to compare with.
        backbone: Not modified.
        table: Features of the N images, training first, then validation if there is any.
        folds: Their labels, and which of them are held back together.
        classes: K names.
        pooling: Of the features.
        feed: Function that returns batches.
        tail: The part of the backbone after the cut, if batches are activations; None if they are pictures.
        recipe: Training options.
        refit: Whether the returned network is trained on all images; else it is the average of the folds' networks.
        is_validated: Whether the one fold is a validation split.
        head, class_weight: As for `fit_closed_form`.
        selection: Feature selection on all training images, if computed already.
        seed: Of all randomness.
        start: Features of the single view that the network is trained on, to initialise its head, if `table` is the
            mean over several views; None uses `table`.
        further: Positions that a network is trained on -> a new loss of unlabelled images; None adds none.
    """

    plan: Plan
    probe: Plan
    backbone: Backbone
    table: FeatureTable
    folds: Folds
    classes: Sequence[str]
    pooling: str
    feed: Feed
    tail: Tail | None = None
    recipe: Recipe = field(default_factory=Recipe)
    refit: bool = True
    is_validated: bool = False
    head: str = "auto"
    class_weight: str = "none"
    selection: Selection | None = None
    seed: int = 0
    start: FeatureTable | None = None
    further: Callable[[Indices], FurtherLoss] | None = None

    @property
    def training_table(self) -> FeatureTable:
        """Features of the view that the network is trained on."""
        return self.table if self.start is None else self.start

    @property
    def labels(self) -> Indices:
        """(N,) int in [0, K)."""
        return self.folds.labels

    def batches(self, positions: Indices, batch_size: int) -> Iterable[Any]:
        """Batches to train on."""
        return self.feed(positions, batch_size=batch_size, training=True)

    @property
    def name(self) -> str:
        """ "single_label", "multi_label" or "regression"."""
        return "single_label" if self.folds.targets is None else self.folds.targets.task

    @property
    def scale(self) -> TargetScale | None:
        """Of the numbers that batches hold standardised; None for classes and labels."""
        targets = self.folds.targets
        return TargetScale.fit(targets.values) if targets is not None and not targets.is_labels else None

    def fold_scale(self, positions: Indices) -> TargetScale | None:
        """Of the standardised numbers of some images, which a network trained on them has outputs in units of."""
        if self.scale is None:
            return None
        return TargetScale.fit(training_targets(self.folds)[positions])

    def in_units(self, outputs: npt.NDArray[np.floating], positions: Indices) -> npt.NDArray[np.floating]:
        """(M, K) outputs of a network that was trained on these images, numbers in their own units."""
        own = self.fold_scale(positions)
        if own is None or self.scale is None:
            return outputs
        return np.asarray(self.scale.invert(own.invert(outputs)))

    def class_weights(self, positions: Indices) -> npt.NDArray[np.float64] | None:
        """(K,) weight of an image of each class, in training and in scoring; None for equal weights. Of labels, of the
        images with each."""
        targets = self.folds.targets
        if targets is not None:
            balanced = "balanced" if self.class_weight == "balanced" else "none"
            return TASKS[targets.task].weigh(targets.values[positions], len(self.classes), balanced)
        return TASKS["single_label"].weigh(self.labels[positions], len(self.classes), self.class_weight)

    def network(self, positions: Indices) -> TransferModule:
        """A new network with its head initialised as in the plan, from the images to train on."""
        backbone = copy.deepcopy(self.backbone).without_head()
        model = TransferModel(
            backbone, stages=self.plan.stages, pooling=self.pooling, classes=self.classes, task=self.name
        )
        features = self.training_table.take(positions).load(self.plan.stages)
        self._start(model.linear, positions)
        weights = self.class_weights(positions)
        module = TransferModule(
            model,
            self.plan,
            recipe=self.recipe,
            task=self.name,
            targets=None if self.scale is None else training_targets(self.folds)[positions],
            weights=None if weights is None else weights.tolist(),
            moments=(torch.from_numpy(features.mean(axis=0)), torch.from_numpy(features.std(axis=0))),
            tail=None if self.tail is None else self.tail.on(backbone),
            seed=self.seed,
        )
        module.further = None if self.further is None else self.further(positions)
        return module.to(memory_format=torch.channels_last)

    def _start(self, linear: torch.nn.Linear, positions: Indices) -> None:
        with torch.no_grad():
            if self.plan.start == "zero":
                linear.weight.zero_()
                linear.bias.zero_()
                return
            head = self._solve(self.training_table, self.plan, positions)
            weight, bias = self._standardised(head, positions)
            linear.weight.copy_(torch.from_numpy(weight))
            linear.bias.copy_(torch.from_numpy(bias))

    def _standardised(
        self, head: HeadFit, positions: Indices
    ) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
        """A head's weight and bias in the units that a network is trained in."""
        own = self.fold_scale(positions)
        if own is None or self.scale is None:
            return head.weight, head.bias
        std = np.asarray(self.scale.std) * own.std
        mean = np.asarray(self.scale.mean) + np.asarray(self.scale.std) * own.mean
        return head.weight / std[:, None], (head.bias - mean) / std

    def probe_logits(self, fold: Fold) -> npt.NDArray[np.floating]:
        """(M, K) logits of the held-back images from the probe fitted to the others."""
        head = self._solve(self.table, self.probe, fold.train)
        return self.table.take(fold.held_back).load(self.probe.stages) @ head.weight.T + head.bias

    def _solve(self, table: FeatureTable, plan: Plan, positions: Indices) -> HeadFit:
        """The head on a plan's features, fitted to some of the images."""
        fits = fit_heads(
            plan,
            table.take(positions),
            self.labels[positions],
            classes=len(self.classes),
            head=self.head,
            class_weight=self.class_weight,
            folds=self.folds.take(positions),
            seed=self.seed,
        )
        return choose_head(fits)
