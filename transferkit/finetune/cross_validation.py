"""Fine-tuning with cross-validation, returning a model that is never worse than the probe.

1. Folds hold back images; on the others of each fold the probe is fitted and the network is trained. In the first folds
   it is also trained at a higher rate, unless the recipe sets a rate; the rate with the lower held-back loss is used
   for the rest.
2. The number of epochs is the one with the lowest held-back loss, over all folds.
3. Probe, network and averages of their logits compete on the held-back images.
4. If anything but the probe wins, the network is trained on all images for that many epochs. With a given validation
   split, the network scored on it is returned without refitting.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.distributed import broadcast, connect
from transferkit.decision import MIN_COMPARED_IMAGES
from transferkit.features import FeatureTable
from transferkit.finetune.checkpoint import RunCheckpoint
from transferkit.finetune.cut_batch import count_images
from transferkit.finetune.losses import TASKS
from transferkit.finetune.module import TransferModule
from transferkit.finetune.range_test import RangeTest, find_rate
from transferkit.finetune.runner import Runner
from transferkit.finetune.verify import Verdict, verify
from transferkit.measure import Selection
from transferkit.nn import Backbone, Blend, Classifier, Tail, TransferModel, is_out_of_memory
from transferkit.nn.norm import recalibrate_statistics
from transferkit.options import Recipe
from transferkit.probe.closed_form import fit_closed_form
from transferkit.probe.heads import HeadFit, choose_head, fit_heads
from transferkit.records import Candidate, Claim, Epoch, Fold, Folds, TrainingRecord
from transferkit.strategies import Plan, scaled_plan

__all__ = ["Feed", "FineTuned", "Judged", "FineTuneTask", "fine_tune", "judge_folds"]

Indices = npt.NDArray[np.int64]

FASTER = 3.0
"""Factor on the decision's rates that is tried as well. On 160 drawings (counting objects) `lp_ft` had 51 % test
accuracy at a tenth of the original rate and 75 % at three times that; on 580 letters in 29 typefaces 57 %, and it
diverged at three times that: no fixed rule fits both."""

SEPARATED = 1e-3
"""Loss below which rates are not compared: all images are classified correctly, and lower values are meaningless."""

JUDGED_AT_ONCE = 64
"""Batch size for held-back images."""


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
        head, class_weight: As for `fit_closed_form`.
        selection: Feature selection on all training images, if computed already.
        seed: Of all randomness.
        start: Features of the single view that the network is trained on, to initialise its head, if `table` is the
            mean over several views; None uses `table`.
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
    head: str = "auto"
    class_weight: str = "none"
    selection: Selection | None = None
    seed: int = 0
    start: FeatureTable | None = None

    @property
    def training_table(self) -> FeatureTable:
        """Features of the view that the network is trained on."""
        return self.table if self.start is None else self.start

    @property
    def labels(self) -> Indices:
        """(N,) int in [0, K)."""
        return self.folds.labels


@dataclass(frozen=True)
class FineTuned:
    """Result of fine-tuning.

    Args:
        model: The returned model, in evaluation mode, on the CPU.
        record: How it was trained and chosen.
        reason: A sentence with the held-back numbers.
    """

    model: Classifier
    record: TrainingRecord
    reason: str


@dataclass(frozen=True)
class _Trial:
    """Probe and training run of one fold."""

    fold: Fold
    probe: npt.NDArray[np.floating]
    checkpoint: RunCheckpoint
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class Judged:
    """Cross-validation results, before the network is refitted to all images.

    Args:
        task: With the learning rates used.
        trials: One per fold.
        best: The best epoch, from 0.
        verdict: Probe, network and averages.
        lr_factor: Factor of these rates over the original task's.
    """

    task: FineTuneTask
    trials: tuple[_Trial, ...]
    best: int
    verdict: Verdict
    lr_factor: float = 1.0


def judge_folds(task: FineTuneTask, folds: Sequence[Fold], runner: Runner) -> Judged:
    """The first half of `fine_tune`: cross-validation without the refit. Arguments as there."""
    task.backbone.anatomy, task.backbone.foldable  # noqa: B018 - computed once, not for each copy
    factor, begun = 1.0, list[_Trial]()
    if task.recipe.tries_rates:
        factor, begun = _compare_rates(task, folds, runner)
    elif task.recipe.lr == "find":
        factor = _find(task, folds[0], runner)
    task = _with_rates(task, factor)
    left = range(len(begun), len(folds))
    trials = (*begun, *(_try(task, folds[number], runner, f"fold-{number}") for number in left))
    best = _best_epoch(trials)
    held_back = np.concatenate([trial.fold.held_back for trial in trials])
    labels, counting = task.labels[held_back], task.folds.shares[held_back]
    tuned = np.concatenate([trial.checkpoint.outputs[best].numpy() for trial in trials])
    diverged = not np.isfinite(tuned).all()
    weights = _class_weights(task, task.labels)
    verdict = verify(
        np.concatenate([trial.probe for trial in trials]),
        np.zeros_like(tuned) if diverged else tuned,
        labels,
        counting if weights is None else counting * weights[labels],
        None if weights is None else counting,
    )
    if diverged:  # the zeros above must not win against a bad probe
        runner.notes.append("Training diverged (the loss was not finite). Try a lower train.lr.")
        verdict = replace(verdict, kept=verdict.candidates[0])
    best, verdict = broadcast((best, verdict))  # running statistics, and so outputs, differ between processes
    return Judged(task, trials, best, verdict, factor)


def fine_tune(
    task: FineTuneTask, folds: Sequence[Fold], runner: Runner, *, refit: bool, judged: Judged | None = None
) -> FineTuned:
    """Train with cross-validation, choose on held-back images, and refit to all images.

    Args:
        task: The inputs.
        folds: Positions to train on and to hold back; epochs and blend are chosen on the latter.
        runner: Runs the fits.
        refit: Whether the returned network is trained on all images of the folds. Without, there must be one fold.
        judged: Result of `judge_folds` on the same; None computes it.

    Returns:
        The probe, the network, or an average of both, at least as accurate as the probe on the held-back images.
    """
    judged = judge_folds(task, folds, runner) if judged is None else judged
    task, trials, best, verdict = judged.task, judged.trials, judged.best, judged.verdict
    module = _final(task, folds, trials, runner, best, verdict, refit=refit)
    if module is None:
        verdict = replace(verdict, kept=verdict.candidates[0])
    model = _compose(task, folds, verdict, module, refit=refit)
    record = TrainingRecord(
        claims=trials[0].claims,
        epochs=_mean_epochs(trials),
        best_epoch=best,
        held_back=_held_back(trials),
        how=_how(folds, best, verdict, refit=refit),
        candidates=verdict.candidates,
        kept=verdict.kept,
        notes=tuple(runner.notes),
        lr_factor=judged.lr_factor,
    )
    return FineTuned(model, record, _reason(record, weighted=_class_weights(task, task.labels) is not None))


def _with_rates(task: FineTuneTask, factor: float) -> FineTuneTask:
    return task if factor == 1 else replace(task, plan=scaled_plan(task.plan, factor))


def _compare_rates(task: FineTuneTask, folds: Sequence[Fold], runner: Runner) -> tuple[float, list[_Trial]]:
    """The better factor on the rates, and the runs with it on the folds used for the comparison."""
    faster = _with_rates(task, FASTER)
    slow: list[_Trial] = []
    fast: list[_Trial] = []
    for number, fold in enumerate(folds):
        slow.append(_try(task, fold, runner, f"fold-{number}"))
        fast.append(_try(faster, fold, runner, f"fold-{number}-faster", probe=slow[-1].probe))
        slowly, quickly = broadcast((_lowest_loss(slow), _lowest_loss(fast)))
        if _held_back(slow) >= MIN_COMPARED_IMAGES and max(slowly, quickly) > SEPARATED:
            break
    factor, trials = (FASTER, fast) if quickly < slowly else (1.0, slow)
    times = f"{FASTER:g} times "
    runner.notes.append(
        f"Learning rates are {times if factor > 1 else ''}those of the decision: on the first {_held_back(slow)} "
        f"held-back images the lowest loss was {slowly:.3g} at the decision's rates and {quickly:.3g} at {times}these."
    )
    return factor, trials


def _find(task: FineTuneTask, fold: Fold, runner: Runner) -> float:
    """The factor on the rates from a range test.

    Not stored in the run's folder: a resumed run repeats the test with the same result.
    """
    connect(runner.device)
    found = broadcast(_range_test(task, fold, runner.device))
    runner.notes.append(found.why)
    return found.factor


def _range_test(task: FineTuneTask, fold: Fold, device: torch.device) -> RangeTest:
    """Range test, with smaller batches if memory runs out: rates stable for these are stable for larger ones."""
    module, size = _module(task, fold.train), task.recipe.batch_size or JUDGED_AT_ONCE
    while True:
        try:
            return find_rate(module, _batches(task, fold.train)(size), seed=task.seed, device=device)
        except RuntimeError as error:
            if size < 4 or not is_out_of_memory(error):  # normalisation needs two images
                raise
        size //= 2
        torch.cuda.empty_cache()


def _try(
    task: FineTuneTask, fold: Fold, runner: Runner, name: str, *, probe: npt.NDArray[np.floating] | None = None
) -> _Trial:
    module = _module(task, fold.train)
    checkpoint = runner.fit(
        module,
        _batches(task, fold.train),
        task.feed(fold.held_back, batch_size=JUDGED_AT_ONCE, training=False),
        name=name,
        stop_after=task.recipe.epochs or 1,
    )
    return _Trial(fold, _probe_logits(task, fold) if probe is None else probe, checkpoint, module.freeze_plan.claims())


def _batches(task: FineTuneTask, positions: Indices) -> Callable[[int], Iterable[Any]]:
    return lambda batch_size: task.feed(positions, batch_size=batch_size, training=True)


def _probe_logits(task: FineTuneTask, fold: Fold) -> npt.NDArray[np.floating]:
    """(M, K) logits of the held-back images from the probe fitted to the others."""
    head = _solve(task, task.table, task.probe, fold.train)
    return task.table.take(fold.held_back).load(task.probe.stages) @ head.weight.T + head.bias


def _solve(task: FineTuneTask, table: FeatureTable, plan: Plan, positions: Indices) -> HeadFit:
    """The head on a plan's features, fitted to some of the images."""
    fits = fit_heads(
        plan,
        table.take(positions),
        task.labels[positions],
        classes=len(task.classes),
        head=task.head,
        class_weight=task.class_weight,
        folds=task.folds.take(positions),
        seed=task.seed,
    )
    return choose_head(fits)


def _module(task: FineTuneTask, positions: Indices) -> TransferModule:
    """A new network with its head initialised as in the plan."""
    backbone = copy.deepcopy(task.backbone).without_head()
    model = TransferModel(backbone, stages=task.plan.stages, pooling=task.pooling, classes=task.classes)
    features = task.training_table.take(positions).load(task.plan.stages)
    _start(task, model.linear, positions)
    weights = _class_weights(task, task.labels[positions])
    module = TransferModule(
        model,
        task.plan,
        recipe=task.recipe,
        weights=None if weights is None else weights.tolist(),
        moments=(torch.from_numpy(features.mean(axis=0)), torch.from_numpy(features.std(axis=0))),
        tail=None if task.tail is None else task.tail.on(backbone),
        seed=task.seed,
    )
    return module.to(memory_format=torch.channels_last)


def _class_weights(task: FineTuneTask, labels: Indices) -> npt.NDArray[np.float64] | None:
    """(K,) weight of an image of each class, in training and in scoring; None for equal weights."""
    return TASKS["single_label"].weigh(labels, len(task.classes), task.class_weight)


def _start(task: FineTuneTask, linear: torch.nn.Linear, positions: Indices) -> None:
    with torch.no_grad():
        if task.plan.start == "zero":
            linear.weight.zero_()
            linear.bias.zero_()
            return
        head = _solve(task, task.training_table, task.plan, positions)
        linear.weight.copy_(torch.from_numpy(head.weight))
        linear.bias.copy_(torch.from_numpy(head.bias))


def _mean_epochs(trials: Sequence[_Trial]) -> tuple[Epoch, ...]:
    """Epochs averaged over folds, weighted by held-back images, for epochs that all folds ran; seconds are summed."""
    sizes = [len(trial.fold.held_back) for trial in trials]

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.average(known, weights=sizes)) if len(known) == len(sizes) else None

    return tuple(
        replace(
            same[0],
            train_loss=float(np.mean([epoch.train_loss for epoch in same])),
            seconds=sum(epoch.seconds for epoch in same),
            val_loss=mean([epoch.val_loss for epoch in same]),
            val_accuracy=mean([epoch.val_accuracy for epoch in same]),
        )
        for same in zip(*(trial.checkpoint.epochs for trial in trials), strict=False)
    )


def _losses(trials: Sequence[_Trial]) -> npt.NDArray[np.float64]:
    """(epochs,) held-back loss, with inf for values that are not finite."""
    losses = np.array([epoch.val_loss for epoch in _mean_epochs(trials)], dtype=np.float64)
    return np.where(np.isfinite(losses), losses, np.inf)


def _best_epoch(trials: Sequence[_Trial]) -> int:
    """The epoch with the lowest held-back loss."""
    return int(np.argmin(_losses(trials)))


def _lowest_loss(trials: Sequence[_Trial]) -> float:
    return float(_losses(trials).min())


def _held_back(trials: Sequence[_Trial]) -> int:
    return sum(len(trial.fold.held_back) for trial in trials)


def _final(
    task: FineTuneTask,
    folds: Sequence[Fold],
    trials: Sequence[_Trial],
    runner: Runner,
    best: int,
    verdict: Verdict,
    *,
    refit: bool,
) -> TransferModule | None:
    """The network to return; None if the probe won, or training on all images diverged."""
    if verdict.kept.weight == 0:
        return None
    if not refit:
        module = _module(task, folds[0].train)
        module.load_state_dict(trials[0].checkpoint.best_state)
        return module
    everyone = _everyone(folds)
    module = _module(task, everyone)
    module.expected_losses = [epoch.val_loss for epoch in _mean_epochs(trials)]
    batches = _batches(task, everyone)
    checkpoint = runner.fit(module, batches, None, name="all", stop_after=best + 1)
    if not all(tensor.isfinite().all() for tensor in checkpoint.best_state.values()):
        runner.notes.append("Training on all images diverged, although it had not with fewer. Try a lower train.lr.")
        return None
    module.load_state_dict(checkpoint.best_state)
    if module.average is not None and module.average.kind == "swa":
        # Under the plan: without it, statistics of frozen stages would be re-estimated too.
        module.freeze_plan.start(len(task.plan.phases) - 1)
        recalibrate_statistics(module.train(), (images for images, _ in batches(JUDGED_AT_ONCE)), size=count_images)
    module.average = None  # the best weights are the average already
    return module


def _everyone(folds: Sequence[Fold]) -> Indices:
    return np.unique(np.concatenate([np.concatenate([fold.train, fold.held_back]) for fold in folds]))


def _compose(
    task: FineTuneTask, folds: Sequence[Fold], verdict: Verdict, module: TransferModule | None, *, refit: bool
) -> Classifier:
    """Probe, network or both, with temperatures and weights folded into their classifiers."""
    weight = verdict.kept.weight
    members = []
    if module is not None:
        members.append(_scaled(module.finish(), weight / verdict.temperatures[1]))
    if weight < 1:
        positions = _everyone(folds) if refit else folds[0].train
        probe = fit_closed_form(
            task.probe,
            copy.deepcopy(task.backbone),
            task.table.take(positions),
            task.labels[positions],
            classes=task.classes,
            pooling=task.pooling,
            head=task.head,
            class_weight=task.class_weight,
            selection=task.selection,
            folds=task.folds.take(positions),
            seed=task.seed,
        ).model
        members.append(_scaled(probe, (1 - weight) / verdict.temperatures[0]))
    return members[0] if len(members) == 1 else Blend(members).eval()


def _scaled(model: TransferModel, factor: float) -> TransferModel:
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.mul_(factor)
    return model.to("cpu").eval()


# ---- Words ----------------------------------------------------------------------------------------------------------


def _how(folds: Sequence[Fold], best: int, verdict: Verdict, *, refit: bool) -> str:
    images = sum(len(fold.held_back) for fold in folds)
    if not refit:
        what = {
            "probe": "the probe was fitted to",
            "fine-tuned": f"the network is the one of epoch {best + 1}, trained on",
        }.get(verdict.kept.name, f"probe and network, the one of epoch {best + 1}, were trained on")
        return (
            f"Epochs and blend were chosen on the {images:,} images of the validation split; {what} the training split "
            "only."
        )
    where = f"{len(folds)} folds" if len(folds) > 1 else "one fifth of the training images"
    what, epochs = {
        "probe": ("the probe was", ""),
        "fine-tuned": ("the network was", f", for {best + 1} epochs"),
    }.get(verdict.kept.name, ("network and probe were", f", the network for {best + 1} epochs"))
    after = f"{what} then fitted to all of them{epochs}"
    return f"Epochs and blend were chosen on {images:,} held-back images ({where}); {after}."


def _reason(record: TrainingRecord, *, weighted: bool) -> str:
    probe, tuned = record.candidates[0], record.candidates[-1]
    weighting = ", all classes weighted equally" if weighted else ""
    return (
        f"Accuracy on {record.held_back:,} held-back images{weighting}: the probe {_percent(probe)}, the "
        f"fine-tuned network {_percent(tuned)}; returned is {_named(record.kept)}, {_percent(record.kept)}."
    )


def _named(kept: Candidate) -> str:
    if kept.name != "average":
        return f"the {'probe' if kept.name == 'probe' else 'fine-tuned network'}"
    return f"their average with weight {100 * kept.weight:.0f} % on the network"


def _percent(candidate: Candidate) -> str:
    return f"{100 * candidate.accuracy:.1f} %"
