"""The set-up that `adapt` would train, built but not trained: network, an augmented batch, loss and optimizer.

Beside it, some images as they were prepared for training and as a finished model would be given them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from transferkit.core.errors import OptionError
from transferkit.data import DeepImages, predictable_pixels
from transferkit.features import choose_device
from transferkit.nn.model import normalise
from transferkit.options import AdaptOptions
from transferkit.records import DataSummary, Decision, Preprocessing
from transferkit.workflow.checks import check_clocks
from transferkit.workflow.decide import check_stages, decide_session
from transferkit.workflow.finetune_run import build_task
from transferkit.workflow.fit import plan_decision
from transferkit.workflow.picture_feed import PictureFeed
from transferkit.workflow.session import Session, open_session

if TYPE_CHECKING:
    from transferkit.finetune import FineTuneTask

__all__ = ["TrainingSetup", "TrainingStart", "build_setup"]

COMPARED = 8
"""Images that are prepared for training and for use."""

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class TrainingStart:
    """A network before its first step, in the mode in which it is trained.

    Args:
        module: Images -> logits, in the last phase of its plan.
        images, targets: A training batch, normalised.
        loss: (outputs, targets) -> scalar.
        optimizer: At the plan's rates, without warm-up.
        preprocessing: What the backbone was trained with; None for random weights.
    """

    module: nn.Module
    images: torch.Tensor
    targets: torch.Tensor
    loss: Callable[[Any, Any], torch.Tensor]
    optimizer: torch.optim.Optimizer
    preprocessing: Preprocessing | None


@dataclass(frozen=True)
class TrainingSetup:
    """What `adapt` would train.

    Args:
        data: The images.
        decision: The strategy, and why.
        start: The network; None for a classifier that is solved for.
        trained, served: (n, 3, S, S) the same images as prepared for training, without augmentation, and for
            predictions; None for tensors that were prepared outside.
    """

    data: DataSummary
    decision: Decision
    start: TrainingStart | None
    trained: Pixels | None
    served: Pixels | None


def build_setup(model: str | nn.Module, data: Any, options: AdaptOptions) -> TrainingSetup:
    """Measure, decide, and build what would be trained first.

    Args:
        model, data, options: As for `adapt`; nothing is written.

    Raises:
        OptionError: The strategy can be chosen only by training (`mode="search"`).
        TransferkitError: What `adapt` would raise.
    """
    if options.mode == "search":
        raise OptionError("mode=search chooses a strategy by training. Name one to examine, such as strategy=lp_ft.")
    # Every image is run through the whole network: activations that are cached would be computed for all of them.
    options = replace(options, out=None, train=replace(options.recipe, views=0))
    check_clocks(options)
    session = open_session(
        model,
        data,
        options,
        budget=options.budget_seconds,
        trains=options.strategy != "linear_probe",
        needs_classes="doctor training",
        check=lambda backbone: check_stages(backbone, options),
    )
    decided = decide_session(session, options)
    session = decided.session
    plan = plan_decision(session, decided.decision)
    train = session.data.indices("train")
    shown = np.unique(np.linspace(0, len(train) - 1, COMPARED).round().astype(np.int64))
    served = _served(session, train[shown])
    if plan.closed_form:
        trained = None if served is None else _as_measured(session, train[shown])
        return TrainingSetup(session.data.summary, decided.decision, None, trained, served)
    images, task, _ = build_task(session, plan, options)
    assert isinstance(task.feed, PictureFeed)
    trained = None if served is None else np.stack([task.feed.version(int(row), 0).numpy() for row in shown])
    positions = images.folds[0].train
    start = _start(task, positions, choose_device(options.device))
    return TrainingSetup(session.data.summary, decided.decision, start, trained, served)


def _served(session: Session, indices: npt.NDArray[np.int64]) -> Pixels | None:
    """(n, 3, S, S) of images as `Result.predict` prepares them."""
    if session.data.normalised:
        return None
    wants = session.backbone.spec.preprocessing.primary
    named = predictable_pixels(
        [session.data.original(int(index)) for index in indices],
        wants,
        max_pixels=session.options.max_pixels,
        deep=DeepImages(wants.value_range),
    )
    return np.stack([pixels for _, pixels in named if not isinstance(pixels, Exception)])


def _as_measured(session: Session, indices: npt.NDArray[np.int64]) -> Pixels:
    """(n, 3, S, S) of images as the frozen pass prepares them."""
    wants = session.backbone.spec.preprocessing.primary
    return np.stack([session.data.pixels(int(index), wants) for index in indices])


def _start(task: FineTuneTask, positions: npt.NDArray[np.int64], device: torch.device) -> TrainingStart:
    from transferkit.finetune.last_phase import last_optimizer, start_last_phase

    module = task.network(positions).to(device)
    start_last_phase(module)
    images, targets = next(iter(task.batches(positions, max(2, task.recipe.batch_size or 0))))
    weights, smoothing = module.class_weights, task.recipe.label_smoothing

    def loss(outputs: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """Of the task; the pull to the start (`l2_sp`), which is 0 there, is left out."""
        cast = None if weights is None else weights.to(outputs.dtype)
        return module.task.loss(outputs, given, smoothing=smoothing, weights=cast)

    spec = task.backbone.spec
    return TrainingStart(
        module=module,
        images=normalise(images, spec.preprocessing).to(device),
        targets=targets.to(device),
        loss=loss,
        optimizer=last_optimizer(module),
        preprocessing=spec.preprocessing.primary if spec.pretrained else None,
    )
