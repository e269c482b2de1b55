"""Fine-tuning with cross-validation, returning a model that is never worse than the probe.

1. Folds hold back images; on the others of each fold the probe is fitted and the network is trained. In the first folds
   a higher rate is tried as well for the first epochs, unless the recipe sets a rate; the rate with the lower held-back
   loss is used for the rest.
2. Probe, network and averages of their logits compete on the held-back images.
3. If anything but the probe wins, the network is trained on all images, for the number of epochs with the lowest
   held-back loss over all folds; or, without a refit, it is the average of the folds' networks.

Where a deadline ends training, what has been trained until then is judged in the same way; a further fold or the refit
is begun only if it would probably be finished in time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.distributed import broadcast
from transferkit.core.score_text import format_score
from transferkit.finetune.checkpoint import RunCheckpoint
from transferkit.finetune.cut_batch import count_images
from transferkit.finetune.fold_runs import (
    JUDGED_AT_ONCE,
    FoldRun,
    count_held_back,
    held_back_losses,
    mean_epochs,
    run_fold,
)
from transferkit.finetune.module import TransferModule
from transferkit.finetune.network import fold_scale
from transferkit.finetune.rate_race import find_factor, race_rates, with_rates
from transferkit.finetune.runner import Runner
from transferkit.finetune.task import FineTuneTask, Indices
from transferkit.finetune.verify import Verdict, verify
from transferkit.finetune.verify_targets import verify_targets
from transferkit.nn import Blend, Classifier, TransferModel
from transferkit.nn.norm import recalibrate_statistics
from transferkit.probe.closed_form import fit_closed_form
from transferkit.records import Candidate, Fold, HeldBackScores, TrainingRecord

__all__ = ["FineTuned", "Judged", "fine_tune", "judge_folds"]

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class FineTuned:
    """Result of fine-tuning.

    Args:
        model: The returned model, in evaluation mode, on the CPU.
        record: How it was trained and chosen.
        reason: A sentence with the held-back numbers.
        scores: Logits of the images that were held back.
    """

    model: Classifier
    record: TrainingRecord
    reason: str
    scores: HeldBackScores | None


@dataclass(frozen=True)
class Judged:
    """Cross-validation results, before the network is refitted to all images.

    Args:
        task: With the learning rates used.
        runs: One per fold.
        best: The best epoch over all folds, from 0.
        verdict: Probe, network and averages.
        lr_factor: Factor of these rates over the original task's.
    """

    task: FineTuneTask
    runs: tuple[FoldRun, ...]
    best: int
    verdict: Verdict
    lr_factor: float = 1.0


def judge_folds(task: FineTuneTask, folds: Sequence[Fold], runner: Runner) -> Judged:
    """The first half of `fine_tune`: cross-validation without the refit. Arguments as there."""
    task.backbone.anatomy, task.backbone.foldable  # noqa: B018 - computed once, not for each copy
    factor, begun = 1.0, list[FoldRun]()
    if task.recipe.tries_rates:
        factor, begun = race_rates(task, folds, runner)
    elif task.recipe.lr == "find":
        factor = find_factor(task, folds[0], runner)
    task = with_rates(task, factor)
    runs = _run_folds(task, folds, runner, begun)
    best = _best_epoch(runs) if task.recipe.snapshots == 1 else len(mean_epochs(runs)) - 1
    task = _without_refit(task, runs, best, runner)
    held_back = np.concatenate([run.fold.held_back for run in runs])
    labels, counting = task.labels[held_back], task.folds.shares[held_back]
    tuned = np.concatenate([task.in_units(_outputs(run, best if task.refit else None), run.fold.train) for run in runs])
    diverged = not np.isfinite(tuned).all()
    tuned, probe = np.zeros_like(tuned) if diverged else tuned, np.concatenate([run.probe for run in runs])
    if task.folds.targets is not None:
        verdict = verify_targets(probe, tuned, task.folds.take(held_back))
    else:
        weights = task.class_weights(_everyone(folds))
        verdict = verify(
            probe,
            tuned,
            labels,
            counting if weights is None else counting * weights[labels],
            None if weights is None else counting,
        )
    if diverged:  # the zeros above must not win against a bad probe
        runner.notes.append("Training diverged (the loss was not finite). Try a lower train.lr.")
        verdict = replace(verdict, kept=verdict.candidates[0])
    best, verdict = broadcast((best, verdict))  # running statistics, and so outputs, differ between processes
    return Judged(task, runs, best, verdict, factor)


def fine_tune(task: FineTuneTask, folds: Sequence[Fold], runner: Runner, *, judged: Judged | None = None) -> FineTuned:
    """Train with cross-validation, choose on held-back images, and refit to all images or average the folds' networks.

    Args:
        task: The inputs.
        folds: Positions to train on and to hold back; epochs and blend are chosen on the latter.
        runner: Runs the fits.
        judged: Result of `judge_folds` on the same; None computes it.

    Returns:
        The probe, the network, or an average of both, at least as accurate as the probe on the held-back images.
    """
    judged = judge_folds(task, folds, runner) if judged is None else judged
    task, runs, best, verdict = judged.task, judged.runs, judged.best, judged.verdict
    for number, run in enumerate(runs[1:], start=2):
        _note_capsule(run.checkpoint, runner, f"fold {number}")
    networks = _networks(judged, runner)
    if not networks:
        verdict = replace(verdict, kept=verdict.candidates[0])
    record = TrainingRecord(
        claims=runs[0].claims,
        epochs=mean_epochs(runs),
        best_epoch=best,
        held_back=count_held_back(runs),
        how=_how(judged, verdict),
        candidates=verdict.candidates,
        kept=verdict.kept,
        notes=tuple(runner.notes),
        lr_factor=judged.lr_factor,
        monitor=None if runs[0].checkpoint.watch is None else runs[0].checkpoint.watch.record(),
    )
    weighted = task.class_weights(_everyone(folds)) is not None
    return FineTuned(
        model=_compose(task, folds, verdict, networks),
        record=record,
        reason=_reason(record, weighted=weighted),
        scores=_held_back_scores(judged, verdict),
    )


def _run_folds(
    task: FineTuneTask, folds: Sequence[Fold], runner: Runner, begun: Sequence[FoldRun]
) -> tuple[FoldRun, ...]:
    """All folds, or as many as the deadline allows, at least one."""
    runs = list(begun)
    for number in range(len(begun), len(folds)):
        if runs and not runner.deadline.allows(max(run.seconds for run in runs)):
            runner.notes.append(f"The budget left no time for more than {len(runs)} of {len(folds)} folds.")
            break
        runs.append(run_fold(task, folds[number], runner, f"fold-{number}"))
    epochs = task.recipe.epochs or 1
    if ended := [run for run in runs if not run.checkpoint.finished and len(run.checkpoint.epochs) < epochs]:
        trained = len(ended[-1].checkpoint.epochs)
        runner.notes.append(f"The budget ended training after {trained} of {epochs} epochs.")
    return tuple(runs)


def _without_refit(task: FineTuneTask, runs: Sequence[FoldRun], best: int, runner: Runner) -> FineTuneTask:
    """The task, without the refit if the deadline leaves no time for it."""
    if not task.refit:
        return task
    images = len(_everyone([run.fold for run in runs]))
    each = max(run.seconds / len(run.checkpoint.epochs) * images / len(run.fold.train) for run in runs)
    if runner.deadline.allows((best + 1) * each):
        return task
    runner.notes.append("The budget left no time to train the network once more on all images.")
    return replace(task, refit=False)


def _best_epoch(runs: Sequence[FoldRun]) -> int:
    """The epoch with the lowest held-back loss."""
    return int(np.argmin(held_back_losses(runs)))


def _outputs(run: FoldRun, epoch: int | None) -> Array:
    """(M, K) logits of the held-back images after an epoch; None is the fold's own best one. The mean of snapshots."""
    found: Array = run.checkpoint.kept_outputs(epoch).numpy()
    return found


def _held_back_scores(judged: Judged, verdict: Verdict) -> HeldBackScores | None:
    """Logits of what is returned: probe and network weighted, each with its temperature, as in `_compose`; None of
    labels and numbers."""
    if judged.task.folds.targets is not None:
        return None
    task, weight = judged.task, verdict.kept.weight
    rows = np.concatenate([run.fold.held_back for run in judged.runs])
    logits = np.concatenate([run.probe for run in judged.runs]) * ((1 - weight) / verdict.temperatures[0])
    if weight > 0:
        tuned = [_outputs(run, judged.best if task.refit else None) for run in judged.runs]
        logits = logits + np.concatenate(tuned) * (weight / verdict.temperatures[1])
    return HeldBackScores(labels=task.labels[rows], logits=logits.astype(np.float32), rows=rows)


def _networks(judged: Judged, runner: Runner) -> list[TransferModule]:
    """The networks to return; none if the probe won, or training on all images diverged."""
    if judged.verdict.kept.weight == 0:
        return []
    task = judged.task
    if task.refit:
        return _refit(judged, runner)
    kept = [(run.fold.train, state) for run in judged.runs for state in run.checkpoint.kept_states]
    return [_restored(task.network(positions), state) for positions, state in kept]


def _restored(module: TransferModule, state: Mapping[str, torch.Tensor]) -> TransferModule:
    module.load_state_dict(state)
    return module


def _note_capsule(checkpoint: RunCheckpoint, runner: Runner, fit: str) -> None:
    """Name the file with the first step that was not finite, of a fit whose monitor is not in the record."""
    seen = None if checkpoint.watch is None else checkpoint.watch.record()
    if seen is not None and seen.capsule:
        runner.notes.append(
            f"A step of {fit} was not finite. It is kept in {seen.capsule}; transferkit doctor replay names the layer."
        )


def _refit(judged: Judged, runner: Runner) -> list[TransferModule]:
    """The network trained on all images, or its snapshots; none if that diverged."""
    task, everyone = judged.task, _everyone([run.fold for run in judged.runs])
    module = task.network(everyone)
    module.expected_losses = [epoch.val_loss for epoch in mean_epochs(judged.runs)]
    batches = partial(task.batches, everyone)
    checkpoint = runner.fit(module, batches, None, name="all", stop_after=judged.best + 1)
    _note_capsule(checkpoint, runner, "the training on all images")
    states = checkpoint.kept_states
    if not all(tensor.isfinite().all() for state in states for tensor in state.values()):
        runner.notes.append("Training on all images diverged, although it had not with fewer. Try a lower train.lr.")
        return []
    networks = [module, *(task.network(everyone) for _ in states[1:])]
    for network, state in zip(networks, states, strict=True):
        network.load_state_dict(state)
    if module.average is not None and module.average.kind == "swa":
        # Under the plan: without it, statistics of frozen stages would be re-estimated too.
        module.freeze_plan.start(len(task.plan.phases) - 1)
        recalibrate_statistics(module.train(), (images for images, _ in batches(JUDGED_AT_ONCE)), size=count_images)
    for network in networks:
        network.average = None  # the kept weights are the average already
    return networks


def _everyone(folds: Sequence[Fold]) -> Indices:
    return np.unique(np.concatenate([np.concatenate([fold.train, fold.held_back]) for fold in folds]))


def _compose(
    task: FineTuneTask, folds: Sequence[Fold], verdict: Verdict, networks: Sequence[TransferModule]
) -> Classifier:
    """Probe, networks or both, with temperatures and weights folded into their classifiers."""
    weight = verdict.kept.weight
    share = weight / verdict.temperatures[1] / max(1, len(networks))
    members = [_scaled(_in_units(network.finish(), task), share) for network in networks]
    if weight < 1:
        # A probe that won against a network trained without the held-back images is judged without them as well.
        positions = folds[0].train if not task.refit and len(folds) == 1 else _everyone(folds)
        probe = fit_closed_form(
            task.probe,
            copy.deepcopy(task.backbone),
            task.table.take(positions),
            task.labels[positions],
            classes=task.classes,
            pooling=task.pooling,
            head=task.head,
            class_weight=task.class_weight,
            # One made with all labels would have seen those that the probe is judged on.
            selection=task.selection if len(positions) == len(task.labels) else None,
            folds=task.folds.take(positions),
            seed=task.seed,
        ).model
        members.append(_scaled(probe, (1 - weight) / verdict.temperatures[0]))
    model = members[0] if len(members) == 1 else Blend(members).eval()
    model.thresholds = verdict.thresholds
    return model


def _in_units(model: TransferModel, task: FineTuneTask) -> TransferModel:
    """The same, its numbers in their own units."""
    if task.scale is not None:
        fold_scale(model.linear, task.scale)
    return model


def _scaled(model: TransferModel, factor: float) -> TransferModel:
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.mul_(factor)
    return model.to("cpu").eval()


# ---- Words ----------------------------------------------------------------------------------------------------------


def _how(judged: Judged, verdict: Verdict) -> str:
    task, count, best = judged.task, len(judged.runs), judged.best + 1
    where = "one fifth of the training images" if count == 1 else f"{count} folds"
    where = "the validation split" if task.is_validated else where
    then = _how_refitted(verdict.kept.name, best) if task.refit else _how_kept(verdict.kept.name, count, best)
    chosen = "The blend was" if task.recipe.snapshots > 1 else "Epochs and blend were"
    found = f"{chosen} chosen on {count_held_back(judged.runs):,} held-back images ({where}); {then}."
    if task.recipe.snapshots == 1 or verdict.kept.weight == 0:
        return found
    cycles = f"{task.recipe.snapshots} cycles of the learning rate"
    return f"{found} A training has {cycles}; the networks at their ends are averaged, and all are run to predict."


def _how_refitted(kept: str, epochs: int) -> str:
    what, how_long = {
        "probe": ("the probe was", ""),
        "fine-tuned": ("the network was", f", for {epochs} epochs"),
    }.get(kept, ("network and probe were", f", the network for {epochs} epochs"))
    return f"{what} then fitted to all of them{how_long}"


def _how_kept(kept: str, folds: int, epoch: int) -> str:
    if folds == 1:
        probe, network = "fitted to the others only", f"the one of epoch {epoch}, trained on the others only"
    else:
        probe, network = "fitted to all of them", f"the average of the networks of the {folds} folds"
    return {"probe": f"the probe was {probe}", "fine-tuned": f"the network is {network}"}.get(
        kept, f"the network is {network}, the probe was {probe}"
    )


def _reason(record: TrainingRecord, *, weighted: bool) -> str:
    probe, tuned = record.candidates[0], record.candidates[-1]
    weighting = ", all classes weighted equally" if weighted and record.kept.measure == "accuracy" else ""
    measure = f"{record.kept.measure[:1].upper()}{record.kept.measure[1:]}"
    return (
        f"{measure} on {record.held_back:,} held-back images{weighting}: the probe {_percent(probe)}, the "
        f"fine-tuned network {_percent(tuned)}; returned is {_named(record.kept)}, {_percent(record.kept)}."
    )


def _named(kept: Candidate) -> str:
    if kept.name != "average":
        return f"the {'probe' if kept.name == 'probe' else 'fine-tuned network'}"
    return f"their average with weight {100 * kept.weight:.0f} % on the network"


def _percent(candidate: Candidate) -> str:
    return format_score(candidate.accuracy, candidate.measure)
