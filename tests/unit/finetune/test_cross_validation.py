"""Plan -> model: what is returned is what was judged, and never worse than the probe."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import nn

from tests.unit.features.features_toys import name_images
from tests.unit.finetune.training_toys import (
    CLASSES,
    SIDE,
    head_then,
    is_statistic,
    loader,
    make_backbone,
    moved,
    phase,
    plan_of,
    quiet,
    stage_of,
    states,
    trunk_names,
)
from transferkit.core.errors import OptionError
from transferkit.features import FeatureBank, frozen_pass
from transferkit.finetune import FineTuneTask, Runner, fine_tune, judge_folds, rate_race
from transferkit.finetune.checkpoint import RunCheckpoint
from transferkit.nn import Blend, TransferModel, logits_of
from transferkit.options import Recipe
from transferkit.records import Fold, Folds
from transferkit.strategies import Plan

IMAGES = 30
CPU = torch.device("cpu")
PROBE = Plan(strategy="linear_probe", stages=("top",), closed_form=True)


def draw_pictures(*, signal: float = 60.0, seed: int = 0):
    """(N, 3, S, S) uint8 noise with one channel brighter than the others; which one is the class."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(IMAGES) % CLASSES)
    pixels = rng.normal(110, 40, (IMAGES, 3, SIDE, SIDE)) + signal * np.eye(3)[labels][:, :, None, None]
    return np.clip(pixels, 0, 255).astype(np.uint8), labels


@pytest.fixture
def make_task(tmp_path):
    def make(*phases, norm="keep", signal=60.0, labels=None, **recipe):
        pictures, truth = draw_pictures(signal=signal)
        labels = truth if labels is None else labels
        backbone = make_backbone()
        table = frozen_pass(
            backbone,
            pictures.__getitem__,
            name_images(*range(IMAGES)),
            bank=FeatureBank(tmp_path / "bank"),
            pooling="avg",
            device="cpu",
            progress=False,
        ).table

        def feed(positions, *, batch_size, training):
            order = np.random.default_rng(0).permutation(positions) if training else positions
            steps = np.array_split(order, max(1, len(order) // batch_size))
            return loader([(torch.from_numpy(pictures[step]), torch.from_numpy(labels[step])) for step in steps])

        return FineTuneTask(
            plan=plan_of(*(phases or head_then(top=0.02)), norm=norm),
            probe=PROBE,
            backbone=backbone,
            table=table,
            folds=Folds.alone(labels),
            classes=[f"class {number}" for number in range(CLASSES)],
            pooling="avg",
            feed=feed,
            recipe=Recipe(**{"epochs": 4, "batch_size": 8, "patience": 9, "lr": "rule", **recipe}),
        )

    return make


@dataclass(frozen=True)
class NotingRunner(Runner):
    """A runner that notes what it ran: name of the fit -> its checkpoint and its highest learning rate."""

    checkpoints: dict[str, RunCheckpoint] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)

    def fit(self, module, *arguments, name, **options):
        self.rates[name] = max(claim.lr for claim in module.freeze_plan.claims())
        self.checkpoints[name] = super().fit(module, *arguments, name=name, **options)
        return self.checkpoints[name]


class SpoilingRunner(Runner):
    """A runner whose last fit, on all images, diverges."""

    def fit(self, *arguments, name, **options):
        checkpoint = super().fit(*arguments, name=name, **options)
        if name == "all":
            checkpoint.best_state["model.classifier.linear.weight"].fill_(float("nan"))
        return checkpoint


def run(task, *, folds=None, refit=False, keep=None, stop_after=None, runner=None):
    """Fine-tune; with `keep` or `stop_after`, whatever the held-back images say, the candidate of this weight is kept
    and the network is trained for so many epochs."""
    everyone = np.arange(IMAGES)
    folds = [Fold(everyone[:20], everyone[20:])] if folds is None else folds
    runner = Runner(device=CPU, progress=False) if runner is None else runner
    judged, task = None, replace(task, refit=refit)
    with quiet():
        if keep is not None or stop_after is not None:
            judged = judge_folds(task, folds, runner)
        if keep is not None:
            (chosen,) = (c for c in judged.verdict.candidates if c.weight == keep)
            judged = replace(judged, verdict=replace(judged.verdict, kept=chosen))
        if stop_after is not None:
            judged = replace(judged, best=stop_after - 1)
        return fine_tune(task, folds, runner, judged=judged)


def members(model) -> list[TransferModel]:
    return list(model.parts) if isinstance(model, Blend) else [model]


def network_of(tuned) -> TransferModel:
    """The fine-tuned one of a blend comes first."""
    assert tuned.record.kept.weight > 0
    return members(tuned.model)[0]


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("average", ["none", "ema", "swa"])
def test_what_is_returned_is_what_was_judged(make_task, weight, average):
    """Without a refit, the model must answer the held-back images as its candidate did: temperatures, weights,
    averages and the folded head included."""
    tuned = run(make_task(average=average), keep=weight)
    assert tuned.record.kept.weight == weight
    assert len(members(tuned.model)) == (2 if 0 < weight < 1 else 1)
    pictures, labels = draw_pictures()
    logits = logits_of(tuned.model, pictures[20:], device=CPU).double().numpy()
    assert (logits.argmax(1) == labels[20:]).mean() == pytest.approx(tuned.record.kept.accuracy)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    assert log_loss(labels[20:], shares, labels=range(CLASSES)) == pytest.approx(tuned.record.kept.log_loss, abs=1e-4)


@pytest.mark.parametrize("norm", ["keep", "frozen"])
@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("average", ["none", "ema", "swa"])
def test_frozen_stages_come_back_bit_for_bit(make_task, average, refit, norm):
    """After averaging, estimating statistics anew, refitting and folding."""
    task = make_task(phase("top", top=0.02), average=average, norm=norm)
    before = states(task.backbone.trunk)
    tuned = run(task, refit=refit, keep=1.0)
    changed = moved(before, states(network_of(tuned).backbone.trunk))
    assert changed
    assert changed <= trunk_names(task.backbone, ["top"], statistics=norm == "keep")
    assert not moved(before, states(task.backbone.trunk))  # the one that was given is left alone
    updated = {claim.stage for claim in tuned.record.claims if claim.statistics == "updated"}
    assert updated == ({"top"} if norm == "keep" else set())


def test_statistics_of_averaged_weights_are_those_of_the_images(make_task):
    task = make_task(phase("all", stem=0.02, middle=0.02, top=0.02), average="swa", epochs=4)
    model = network_of(run(task, refit=True, keep=1.0, stop_after=4))
    pictures, _ = draw_pictures()
    images = model.normalise(torch.from_numpy(pictures))
    seen = []
    model.backbone.trunk.stem[1].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(images)
    stem = model.backbone.trunk.stem[1]
    torch.testing.assert_close(stem.running_mean, seen[0].mean((0, 2, 3)), atol=1e-3, rtol=1e-3)
    # Of batches, each about its own mean: a little less than that of all together.
    ratio = stem.running_var / seen[0].var((0, 2, 3))
    assert float(ratio.min()) > 0.8
    assert float(ratio.max()) < 1.1


def test_a_run_that_diverges_returns_the_probe_however_bad_it_is(make_task):
    """What says nothing names the first class, and all held-back images are of that one."""
    labels = 1 + np.arange(IMAGES) % 2
    labels[:2] = labels[20:] = 0
    task = make_task(
        phase("all", stem=1e30, middle=1e30, top=1e30, head=1e30),
        signal=0.0,
        labels=labels,
        optimizer="sgd",
        clip=0.0,
        warmup=0.0,
    )
    tuned = run(task)
    assert tuned.record.kept.name == "probe"
    assert tuned.record.kept.accuracy < tuned.record.candidates[-1].accuracy
    assert any("Training diverged" in note for note in tuned.record.notes)
    assert all(torch.isfinite(value).all() for value in tuned.model.state_dict().values())
    assert not moved(states(task.backbone.trunk), states(tuned.model.backbone.trunk))


def test_a_last_training_that_diverges_returns_the_probe(make_task):
    """It is judged on nothing, so nothing else would tell."""
    tuned = run(make_task(), refit=True, keep=0.5, runner=SpoilingRunner(device=CPU, progress=False))
    assert tuned.record.kept.name == "probe"
    assert isinstance(tuned.model, TransferModel)
    assert all(torch.isfinite(value).all() for value in tuned.model.state_dict().values())
    assert "Training on all images diverged" in tuned.record.notes[-1]


def test_folds_choose_and_all_images_are_trained_on(make_task):
    task = make_task(epochs=3)
    folds = task.folds.split(2)
    tuned = run(task, folds=folds, refit=True, keep=0.5)
    record = tuned.record
    assert record.held_back == sum(len(fold.held_back) for fold in folds)
    assert len(record.epochs) == 3
    assert 0 <= record.best_epoch < 3
    assert [candidate.weight for candidate in record.candidates] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert "2 folds" in record.how
    assert f"the network for {record.best_epoch + 1} epochs" in record.how
    assert f"{record.held_back} held-back images" in tuned.reason
    again = run(make_task(epochs=3), folds=folds, refit=True, keep=0.5)
    assert not moved(states(tuned.model), states(again.model))


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_without_a_refit_the_networks_of_the_folds_are_averaged(make_task, weight):
    task = make_task(epochs=3)
    folds = task.folds.split(2)
    runner = NotingRunner(device=CPU, progress=False)
    tuned = run(task, folds=folds, keep=weight, runner=runner)
    assert list(runner.checkpoints) == ["fold-0", "fold-1"]
    *networks, last = members(tuned.model)
    networks = [*networks, last] if weight == 1 else networks
    assert len(networks) == 2
    held_back = [network_logits(network, fold.held_back) for network, fold in zip(networks, folds, strict=True)]
    for logits, checkpoint in zip(held_back, runner.checkpoints.values(), strict=True):
        judged = checkpoint.outputs[checkpoint.best_epoch]
        factor = float((logits * judged).sum() / (judged * judged).sum())  # its share over the temperature
        assert factor > 0
        torch.testing.assert_close(logits, factor * judged, rtol=1e-3, atol=1e-4)
    everything = network_logits(tuned.model, np.arange(IMAGES))
    torch.testing.assert_close(everything, sum(network_logits(one, np.arange(IMAGES)) for one in members(tuned.model)))
    assert "the network is the average of the networks of the 2 folds" in tuned.record.how
    assert ("the probe was fitted to all of them" in tuned.record.how) == (weight < 1)


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_snapshots_answer_together_as_they_were_judged(make_task, weight, refit):
    runner = NotingRunner(device=CPU, progress=False)
    task = make_task(phase("all", stem=0.02, middle=0.02, top=0.02), epochs=6, snapshots=3)
    tuned = run(task, keep=weight, refit=refit, runner=runner)
    fits = ["fold-0", "all"] if refit else ["fold-0"]
    assert [(name, list(one.snapshots)) for name, one in runner.checkpoints.items()] == [
        (fit, [1, 3, 5]) for fit in fits
    ]
    assert tuned.record.best_epoch == 5
    assert "A training has 3 cycles" in tuned.record.how
    networks = members(tuned.model)[:3]
    assert len(members(tuned.model)) == 3 + (weight < 1)
    trunks = [states(one.backbone.trunk) for one in networks]
    assert all(moved(one, other) for one, other in itertools.pairwise(trunks))
    fitted = runner.checkpoints["all" if refit else "fold-0"]
    for network, state in zip(networks, fitted.snapshots.values(), strict=True):
        torch.testing.assert_close(network.backbone.trunk.stem[0].weight, state["model.backbone.trunk.stem.0.weight"])
    if refit:
        return
    logits = network_logits(tuned.model, np.arange(20, IMAGES)).double().numpy()
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    found = log_loss(draw_pictures()[1][20:], shares, labels=range(CLASSES))
    assert found == pytest.approx(tuned.record.kept.log_loss, abs=1e-4)


def test_more_snapshots_than_epochs_are_refused(make_task):
    with pytest.raises(OptionError, match=r"snapshots=5 needs as many epochs in the last phase, which has 2"):
        run(make_task(epochs=4, snapshots=5))


def network_logits(model, positions):
    return logits_of(model, draw_pictures()[0][positions], device=CPU)


def test_the_probe_alone_needs_no_second_training(make_task):
    runner = NotingRunner(device=CPU, progress=False)
    tuned = run(make_task(), refit=True, keep=0.0, runner=runner)
    assert list(runner.checkpoints) == ["fold-0"]
    assert isinstance(tuned.model, TransferModel)
    assert isinstance(tuned.model.classifier, nn.Linear)


def test_a_plateau_is_met_on_all_images_where_it_was_met_on_those_held_back(make_task):
    task = make_task(phase("all", top=5.0), schedule="plateau", epochs=14, patience=20, warmup=0.0, average="none")
    runner = NotingRunner(device=CPU, progress=False)
    run(task, refit=True, keep=1.0, stop_after=14, runner=runner)
    fold, everything = ([epoch.lr for epoch in runner.checkpoints[name].epochs] for name in ("fold-0", "all"))
    assert min(fold) < max(fold)
    assert everything == fold


def test_where_classes_are_weighted_they_are_so_in_judging_too(make_task):
    labels = np.array([0] * 24 + [1] * 3 + [2] * 3)
    folds = [Fold(np.arange(0, 30, 2), np.arange(1, 30, 2))]
    plain = make_task(labels=labels)
    balanced = replace(plain, class_weight="balanced")
    found = {task.class_weight: run(task, folds=folds).record for task in (plain, balanced)}
    _, counts = np.unique(labels[folds[0].held_back], return_counts=True)
    assert found["none"].candidates[0].accuracy * counts.sum() == pytest.approx(
        round(found["none"].candidates[0].accuracy * counts.sum())
    )
    weights = 1 / np.bincount(labels)[labels[folds[0].held_back]]
    right = [c.accuracy for c in found["balanced"].candidates]
    shares = {float(np.round(np.dot(weights, mask) / weights.sum(), 6)) for mask in _subsets_by_class(labels, folds)}
    assert {round(value, 6) for value in right} <= shares


def _subsets_by_class(labels, folds):
    """Every number of images right in each class, as a mask over those held back."""
    held_back = labels[folds[0].held_back]
    places = [np.flatnonzero(held_back == label) for label in range(3)]
    for counts in itertools.product(*(range(len(place) + 1) for place in places)):
        mask = np.zeros(len(held_back))
        for place, count in zip(places, counts, strict=True):
            mask[place[:count]] = 1
        yield mask


def test_claims_are_those_of_the_plan(make_task):
    record = run(make_task()).record
    found = {(claim.phase, claim.stage): (claim.lr, claim.statistics) for claim in record.claims}
    assert found == {
        ("head", "stem"): (0.0, "fixed"),
        ("head", "middle"): (0.0, "fixed"),
        ("head", "top"): (0.0, "fixed"),
        ("head", "head"): (0.05, "none"),
        ("stages", "stem"): (0.0, "fixed"),
        ("stages", "middle"): (0.0, "fixed"),
        ("stages", "top"): (0.02, "updated"),
        ("stages", "head"): (0.05, "none"),
    }
    assert {stage_of(n) for n in make_backbone().trunk.state_dict() if is_statistic(n)} == {"stem", "middle", "top"}


def rates_of(tuned):
    return [claim.lr for claim in tuned.record.claims]


@pytest.mark.parametrize("rate", [0.1, 1.0], ids=["too low", "high enough"])
def test_rates_are_raised_where_that_lowers_the_loss_on_what_is_held_back_first(make_task, rate):
    phases = (phase("everything", head=rate, top=rate / 10),)
    slow, tried = (run(make_task(*phases, lr=lr)) for lr in ("rule", None))
    fast = run(make_task(*[phase("everything", head=3 * rate, top=3 * rate / 10)], lr="rule"))
    for epochs, clear in ((2, 1.3), (3, 0.0)):  # a third or half of four, and two thirds
        lowest = [min(epoch.val_loss for epoch in tuned.record.epochs[:epochs]) for tuned in (slow, fast)]
        if max(lowest) > clear * min(lowest):
            break
    better, factor = (fast, 3) if lowest[1] < lowest[0] else (slow, 1)
    assert factor == (3 if rate < 1 else 1)
    assert tried.record.lr_factor == factor
    assert rates_of(tried) == pytest.approx(rates_of(better))
    assert [epoch.val_loss for epoch in tried.record.epochs] == [epoch.val_loss for epoch in better.record.epochs]
    (note,) = (note for note in tried.record.notes if "Learning rates are" in note)
    assert note.startswith("Learning rates are 3 times those" if factor == 3 else "Learning rates are those")
    assert f"was {lowest[0]:.3g} at the decision's rates and {lowest[1]:.3g} at 3 times these" in note
    assert f"after {epochs} epochs the lowest loss on the first 10 held-back images" in note


@pytest.mark.parametrize(
    ("enough", "separated", "both"), [(1, 0.0, 1), (10_000, 0.0, 2), (1, np.inf, 2)], ids=["told", "few", "tied"]
)
def test_folds_run_at_both_rates_until_these_can_be_told_apart_and_then_at_the_better(
    make_task, monkeypatch, enough, separated, both
):
    monkeypatch.setattr(rate_race, "MIN_COMPARED_IMAGES", enough)
    monkeypatch.setattr(rate_race, "SEPARATED", separated)
    folds = Folds.alone(draw_pictures()[1]).split(2)
    runner = NotingRunner(device=CPU, progress=False)
    task = make_task(phase("everything", head=0.1, top=0.01), lr=None)
    tuned = run(task, folds=folds, refit=True, keep=1.0, runner=runner)
    second = [("fold-1", 0.1), ("fold-1-faster", 0.3)] if both == 2 else [("fold-1", 0.3)]
    assert list(runner.rates.items()) == [
        (name, pytest.approx(lr)) for name, lr in [("fold-0", 0.1), ("fold-0-faster", 0.3), *second, ("all", 0.3)]
    ]
    ran = {name: len(checkpoint.epochs) for name, checkpoint in runner.checkpoints.items()}
    assert {ran.pop("fold-0"), *(ran.pop(name) for name, lr in second if lr == 0.1)} <= {2, 3}  # of four
    assert {ran.pop("fold-0-faster"), ran.pop(second[-1][0])} == {4}
    images = sum(len(fold.held_back) for fold in folds[:both])
    assert any(f"on the first {images} held-back images" in note for note in tuned.record.notes)


@pytest.mark.parametrize("said", [{"lr": 0.1}, {"lr": "rule"}, {"lr": None, "lr_scale": 0.1}], ids=str)
def test_where_a_rate_was_said_only_that_is_run(said, make_task):
    runner = NotingRunner(device=CPU, progress=False)
    run(make_task(phase("everything", head=0.1, top=0.01), **{"epochs": 1, **said}), runner=runner)
    assert runner.rates == {"fold-0": pytest.approx(0.1)}
