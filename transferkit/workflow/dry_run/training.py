"""What fine-tuning would take: fits, epochs and passes of a strategy at this machine's pace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from transferkit.core.errors import DataError, TransferkitError
from transferkit.data import Augmentation, choose_preset
from transferkit.decision import MIN_COMPARED_IMAGES, RACE_SHARE, STEP_COST, training_seconds, trains_all_stages
from transferkit.features import activation_bytes, choose_device
from transferkit.nn import Tail
from transferkit.options import AdaptOptions, Recipe
from transferkit.records import PlannedStep
from transferkit.strategies import STRATEGIES, Plan, PlanSettings
from transferkit.workflow.activation_feed import find_tail
from transferkit.workflow.decide import named_choice
from transferkit.workflow.dry_run.passes import memory_of_features
from transferkit.workflow.dry_run.prospect import Prospect
from transferkit.workflow.training_images import TrainingImages, select_images

__all__ = ["Training", "training_of"]

TRAINING_RANGE = (0.7, 1.7)
"""Of the predicted seconds: early stopping and a dropped learning rate end fits early, other jobs make them slower."""

TRAINING_MEMORY = 600 * 2**20
"""Of Lightning, its callbacks and the report of a run."""

AUGMENTED_SIDE = 1.3
"""Side of the pictures that are kept for augmentation, in units of the input's."""

BYTES_OF_WEIGHTS = 4

COPIES = 8
"""Networks in memory while one is trained: itself, gradients, two of AdamW's, the average, the best, checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The fits of one strategy.

    Args:
        step: Of the plan.
        members: Networks in the saved model at most.
        epochs: Of each fit.
        folds: That are held back in turn.
    """

    step: PlannedStep
    members: int
    epochs: int
    folds: int


def training_of(
    prospect: Prospect, options: AdaptOptions, strategy: str, *, share: float = 1.0, folds: int | None = None
) -> Training:
    """What it takes to fine-tune with a strategy.

    Args:
        prospect: Backbone, images and paces.
        options: Recipe, stages to train.
        strategy: A registered name of one that trains.
        share: Of the epochs, for trials that train for fewer.
        folds: Instead of the recipe's, and without a refit: a trial.

    Raises:
        DataError: No image can be held back.
        OptionError: The backbone or the strategy cannot do that.
    """
    recipe = options.recipe if folds is None else replace(options.recipe, folds=folds, refit=False)
    images = select_images(prospect.data, recipe, batch_size=options.batch_size, seed=options.seed)
    if not any(len(fold.held_back) for fold in images.folds):
        raise DataError("Fine-tuning needs held-back images, and a class has fewer than 2. Add images.")
    plan = _plan(prospect, options, strategy, len(images))
    epochs = max(1, round(share * (images.recipe.epochs or 1)))
    folded, refit = _passes(images), float(images.refit and folds is None)
    pace, basis = _step_seconds(prospect, options, strategy, plan, images.recipe)
    seconds = training_seconds(pace, images=len(images), epochs=epochs, passes=folded + refit)
    # Where the probe wins, nothing is trained again.
    least = training_seconds(pace, images=len(images), epochs=epochs, passes=folded) if refit else seconds
    tail, versions = (None, 0) if plan.further_loss else _tail(prospect, plan, images)
    rows = (1 + versions) * len(images) if tail is not None else 0
    disk = 0 if tail is None else activation_bytes(tail, rows, pooling=options.pooling)
    cached = f", activations up to {tail.stage!r} cached ({disk / 2**20:,.0f} MB)" if tail is not None else ""
    step = PlannedStep(
        name="fine-tune",
        what=f"{strategy}: {_counted(len(images.folds), 'fold')}{' and a refit' if refit else ''}, "
        f"{_counted(epochs, 'epoch')}, batches of {images.recipe.batch_size}{cached}.",
        images=len(images),
        passes=round(epochs * (folded + refit), 2),
        seconds_low=TRAINING_RANGE[0] * least,
        seconds_high=TRAINING_RANGE[1] * seconds + rows * prospect.image_seconds,
        basis=basis,
        memory_bytes=_memory(prospect, len(images), disk),
        disk_bytes_low=disk,
        disk_bytes_high=disk,
    )
    trained = images.recipe.snapshots * (1 if images.refit else len(images.folds))
    members = trained + 1  # an average with the probe has it as a member too
    return Training(step=step, members=members, epochs=epochs, folds=len(images.folds))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _plan(prospect: Prospect, options: AdaptOptions, strategy: str, images: int) -> Plan:
    spec = prospect.backbone.spec
    is_asked = strategy == options.strategy
    choice = named_choice(
        spec,
        strategy=strategy,
        stage=options.stage if is_asked else None,
        unfreeze=options.unfreeze if is_asked else None,
    )
    names = [stage.name for stage in prospect.backbone.stages]
    tuned: Sequence[str] = choice.tuned or (names if trains_all_stages(strategy, images) else ())
    return STRATEGIES[strategy](PlanSettings(strategy=strategy, stage=choice.stage, lr=1.0, tuned=tuple(tuned)), names)


def _passes(images: TrainingImages) -> float:
    """Of all folds in an epoch; the first ones begin at two learning rates."""
    held_back, passes = 0, 0.0
    for fold in images.folds:
        is_compared = images.recipe.tries_rates and held_back < MIN_COMPARED_IMAGES
        passes += len(fold.train) / len(images) * (1 + RACE_SHARE * is_compared)
        held_back += len(fold.held_back)
    return passes


def _step_seconds(
    prospect: Prospect, options: AdaptOptions, strategy: str, plan: Plan, recipe: Recipe
) -> tuple[float, str]:
    """Seconds of an image in a training step, and where they come from."""
    known = prospect.paces.step_seconds.get(strategy)
    if known is not None and not (options.unfreeze is not None and strategy == options.strategy):
        return known, "remembered" if prospect.paces.remembered else "measured now"
    from transferkit.finetune.precision import trains_mixed
    from transferkit.finetune.step_pace import step_seconds

    device = choose_device(options.device)
    mixed = trains_mixed(prospect.backbone.trunk, device)
    try:
        size = max(2, min(16, recipe.batch_size or 16))
        return step_seconds(prospect.backbone, plan, batch_size=size, device=device, mixed=mixed), "measured now"
    except (RuntimeError, TransferkitError):
        return STEP_COST * prospect.paces.image_seconds, "estimated"


def _tail(prospect: Prospect, plan: Plan, images: TrainingImages) -> tuple[Tail | None, int]:
    """The part behind the frozen stages where their activations are cached; and augmented versions of each image."""
    recipe, backbone = images.recipe, prospect.backbone
    preset = choose_preset(recipe.augment, images=len(images), epochs=recipe.epochs)
    augmentation = Augmentation(preset=preset, preprocessing=backbone.spec.preprocessing.primary, flip=False)
    tail = find_tail(
        backbone,
        plan,
        recipe,
        augments=augmentation.changes,
        classes=prospect.data.summary.classes,
        pooling=prospect.options.pooling,
        notes=[],
    )
    return tail, min(recipe.views, recipe.epochs or 1) if augmentation.changes else 0


def _memory(prospect: Prospect, images: int, activations: int) -> int:
    height, width = prospect.backbone.spec.preprocessing.height_width
    pictures = min(2**30, 3 * images * math.ceil(AUGMENTED_SIDE**2 * height * width))
    networks = COPIES * BYTES_OF_WEIGHTS * prospect.backbone.spec.parameters
    if torch.cuda.is_available() and choose_device(prospect.options.device).type == "cuda":
        networks //= 2  # of the rest, the GPU's memory
    return memory_of_features(prospect, images) + TRAINING_MEMORY + pictures + networks + activations
