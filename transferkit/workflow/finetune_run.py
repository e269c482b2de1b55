"""One strategy, fine-tuned by gradient on the images of a session: built, judged on its folds, then finished."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transferkit.core.errors import OptionError
from transferkit.core.paths import expand
from transferkit.core.provenance import environment
from transferkit.core.serialization import to_json
from transferkit.core.timing import timed
from transferkit.data.unlabelled import UnlabelledImages
from transferkit.decision import best_probe
from transferkit.features import choose_device
from transferkit.options import FitOptions
from transferkit.strategies import STRATEGIES, Plan, PlanSettings
from transferkit.workflow.activation_feed import ActivationFeed, cache_frozen_stages
from transferkit.workflow.picture_feed import PictureFeed, choose_augmentation
from transferkit.workflow.session import Session
from transferkit.workflow.training_folder import WORK, TrainingFolder
from transferkit.workflow.training_images import TrainingImages, select_images
from transferkit.workflow.unlabelled_pictures import describe_unlabelled, further_loss, open_beside

if TYPE_CHECKING:
    from transferkit.finetune import FineTuned, FineTuneTask, Judged, Runner
    from transferkit.finetune.deadline import Deadline
    from transferkit.finetune.watching import MakeWatch

__all__ = ["FineTuneRun", "begin_run", "build_task", "finish_run"]

SAME_TO_RESUME = ("seed", "device", "transferkit", "torch", "torchvision", "pytorch-lightning", "timm")
"""Parts of the environment that must be equal for a run to be resumed."""


@dataclass(frozen=True)
class FineTuneRun:
    """A run whose folds were trained.

    Args:
        images: Those that it trains on and is judged on.
        runner: Trains each fit.
        judged: What held-back images say of it.
    """

    images: TrainingImages
    runner: Runner
    judged: Judged


def begin_run(session: Session, plan: Plan, options: FitOptions, *, watch: MakeWatch | None = None) -> FineTuneRun:
    """Train the folds of a plan and judge them on held-back images.

    Args:
        session: Backbone, images, and what the frozen pass measured.
        plan: A strategy's, with phases.
        options: How to train, and the folder to resume from.
        watch: Makes what watches each fit.
    """
    from transferkit.finetune import judge_folds

    with timed(session.seconds, "fine-tune"):
        images, task, runner = build_task(session, plan, options, watch=watch)
        return FineTuneRun(images, runner, judge_folds(task, images.folds, runner))


def finish_run(session: Session, run: FineTuneRun) -> FineTuned:
    """Choose epochs and blend, and train again on all images or average the folds' networks."""
    from transferkit.finetune import fine_tune

    images, judged = run.images, run.judged
    with timed(session.seconds, "fine-tune"):
        return fine_tune(judged.task, images.folds, run.runner, judged=judged)


def build_task(
    session: Session, plan: Plan, options: FitOptions, *, watch: MakeWatch | None = None
) -> tuple[TrainingImages, FineTuneTask, Runner]:
    """All that training needs: images, task and runner; the folder to resume from is prepared."""
    from transferkit.finetune import Runner

    how, recipe = session.options, options.recipe
    if session.data.summary.task == "regression" and (recipe.mixup or recipe.cutmix):
        raise OptionError(
            "Mixup and cutmix mix classes or labels, not numbers. Leave train.mixup and train.cutmix out."
        )
    images = select_images(session.data, recipe, batch_size=how.batch_size, seed=how.seed)
    unlabelled = open_beside(session, options.unlabelled) if plan.further_loss else None
    whole, plan = plan, _without_first_phases(plan, images.recipe.epochs or 1)
    path = None if options.out is None else expand(options.out) / WORK / plan.strategy
    identity = _identity(session, plan, images, options, unlabelled)
    folder = TrainingFolder(path=path, identity=identity, resume=options.resume is not False, progress=how.progress)
    folder.prepare()
    runner = Runner(
        device=choose_device(how.device),
        folder=path,
        options=_trainer_options(session, options),
        progress=how.progress,
        deadline=_deadline(session, options),
        watch=watch,
    )
    augmentation = choose_augmentation(session, images, runner.notes)
    pictures = PictureFeed(session, images, augmentation)
    cached = None if unlabelled else cache_frozen_stages(session, plan, images, pictures, runner.notes)
    folder.note_feed("pictures" if cached is None else str(cached.table.dtype))
    if images.note:
        runner.notes.append(images.note)
    if (precision := runner.options.get("precision")) and "precision" not in (options.trainer or {}):
        runner.notes.append(
            f"Trained in {precision}, which is faster here; trainer.precision=32-true trains in single precision."
        )
    if len(plan.phases) < len(whole.phases):
        phases = ", ".join(phase.name for phase in whole.phases)
        runner.notes.append(f"There are fewer epochs than phases: of {phases} only the last are trained.")
    task = _task(session, plan, images, options, pictures if cached is None else cached)
    if unlabelled is not None:
        runner.notes.append(describe_unlabelled(unlabelled, plan.strategy))
        further = further_loss(session, plan, unlabelled, augmentation, task.labels)
        task = replace(task, further=further)
    return images, task, runner


def _trainer_options(session: Session, options: FitOptions) -> dict[str, Any]:
    """Those that were given, and the faster precision if none was."""
    from transferkit.finetune.precision import MIXED, trains_mixed

    mixed = trains_mixed(session.backbone.trunk, choose_device(session.options.device))
    return {**({"precision": MIXED} if mixed else {}), **(options.trainer or {})}


def _deadline(session: Session, options: FitOptions) -> Deadline:
    from transferkit.finetune.deadline import NEVER, Deadline

    budget = options.budget_seconds
    return NEVER if budget is None else Deadline(session.measured.since + budget)


def _task(
    session: Session, plan: Plan, images: TrainingImages, options: FitOptions, feed: PictureFeed | ActivationFeed
) -> FineTuneTask:
    from transferkit.finetune import FineTuneTask

    measured, how = session.measured, session.options
    probe = PlanSettings(strategy="linear_probe", stage=best_probe(measured.evidence))
    return FineTuneTask(
        plan=plan,
        probe=STRATEGIES["linear_probe"](probe, [stage.name for stage in session.backbone.stages]),
        backbone=session.backbone,
        table=measured.features(images.rows),
        start=measured.primary_features(images.rows),
        folds=images.known,
        classes=session.data.summary.classes,
        pooling=how.pooling,
        feed=feed,
        tail=feed.tail if isinstance(feed, ActivationFeed) else None,
        recipe=images.recipe,
        refit=images.refit,
        is_validated=images.has_validation,
        head=options.head,
        class_weight=how.class_weight,
        selection=None if images.has_validation else measured.selection,
        seed=how.seed,
    )


def _without_first_phases(plan: Plan, epochs: int) -> Plan:
    """The plan; with fewer epochs than phases without the first of these, which only lead up to the last one."""
    if epochs >= len(plan.phases):
        return plan
    kept = plan.phases[-epochs:]
    share = sum(phase.share for phase in kept)
    return replace(plan, phases=tuple(replace(phase, share=phase.share / share) for phase in kept))


def _identity(
    session: Session,
    plan: Plan,
    images: TrainingImages,
    options: FitOptions,
    unlabelled: UnlabelledImages | None,
) -> str:
    """What a run is: two with the same identity end with the same weights."""
    how = session.options
    held_back = b"".join(fold.held_back.tobytes() for fold in images.folds)
    versions = environment(seed=how.seed, device=choose_device(how.device).type)
    plain = {
        "plan": to_json(plan),
        "recipe": to_json(images.recipe),
        "weights": session.backbone.spec.weights_id,
        "data": _digest(session.data.content_ids[images.rows].tobytes()),
        "labels": _digest(images.targets.tobytes()),
        "held_back": _digest(held_back),
        "refit": images.refit,
        "preprocessing": to_json(session.backbone.spec.preprocessing),
        "pooling": how.pooling,
        "class_weight": how.class_weight,
        "head": options.head,
        "unlabelled": None if unlabelled is None else _digest(unlabelled.content_ids.tobytes()),
        "trainer": _trainer_options(session, options),
        **{name: versions[name] for name in SAME_TO_RESUME},
    }
    return json.dumps(plain, indent=1, sort_keys=True, default=lambda value: type(value).__name__)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
