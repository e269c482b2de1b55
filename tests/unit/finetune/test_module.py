"""TransferModule under plain trainers: what learns, how fast, from where, and what comes out."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

import transferkit as tk
from tests.unit.finetune.training_toys import (
    CLASSES,
    SIDE,
    Killed,
    Killer,
    draw,
    fit,
    head_then,
    is_statistic,
    loader,
    make_backbone,
    make_trainer,
    moved,
    phase,
    plan_of,
    quiet,
    states,
    trunk_names,
)
from tests.unit.nn.toy_networks import spec_of
from transferkit.core.errors import DataError, OptionError
from transferkit.finetune import CutBatch, TransferModule
from transferkit.finetune.adapters import is_adapter
from transferkit.finetune.averaging import EMA_DECAY
from transferkit.finetune.module import count_images
from transferkit.nn import Backbone, TransferModel, cut
from transferkit.nn.norm import AccumulatedBatchNorm
from transferkit.options import Recipe
from transferkit.strategies import HEAD, STRATEGIES

TRUNK = "model.backbone.trunk."
HEAD_NAMES = {"model.classifier.linear.weight", "model.classifier.linear.bias"}
GRADIENT = sorted(set(STRATEGIES) - {"linear_probe"})


def make_module(*phases, norm="keep", network=None, **options) -> TransferModule:
    plan = plan_of(*(phases or head_then(top=0.05)), norm=norm)
    return TransferModule(make_backbone() if network is None else network, plan, classes=CLASSES, **options)


def trained(names) -> set[str]:
    return {f"{TRUNK}{name}" for name in names}


# ---- What it starts as ----------------------------------------------------------------------------------------------


def test_a_new_head_says_nothing_yet():
    module = make_module().eval()
    assert torch.equal(module(draw(1)[0][0]), torch.zeros(4, CLASSES))
    assert module.model.classes == ("0", "1", "2")
    named = TransferModule(make_backbone(), "few_layers", classes=["a", "b"], stage="joined", pooling="avg")
    assert named.model.classes == ("a", "b")
    assert named.model.stages == ("stem", "middle", "top")
    assert named.model.pooling == "avg"


def make_model(stages=("stem", "top"), seed=3) -> TransferModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TransferModel(make_backbone(), stages=stages, pooling="avg+max", classes=["a", "b", "c"]).eval()


def test_a_models_own_head_is_where_training_starts():
    """Standardised or not: what the head reads is told apart from what it says."""
    images = draw(1)[0][0]
    expected = make_model()(images)
    width = make_model().linear.in_features
    moments = torch.linspace(-1, 1, width), torch.linspace(0.1, 30, width)
    for given in (None, moments):
        module = TransferModule(make_model(), plan_of(*head_then(top=0.1)), moments=given).eval()
        torch.testing.assert_close(module(images), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(module.finish()(images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("stages", "expected"), [(("middle",), ("stem", "middle")), (("stem", "middle", "top"), None)])
def test_a_strategy_by_name_is_for_the_stages_that_the_model_reads(stages, expected):
    """Else stages would be trained that no gradient reaches."""
    module = TransferModule(make_model(stages), "lp_ft", lr=0.01)
    learning = module.freeze_plan.learning_stages - {HEAD}
    assert learning == set(expected or ("stem", "middle", "top"))
    before = states(module)
    fit(module, 1)
    assert moved(before, states(module)) == {n for n, learns in module.freeze_plan.is_trained.items() if learns}


def test_stages_to_train_can_be_named():
    module = TransferModule(make_backbone(), "few_layers", classes=2, unfreeze=["middle"])
    assert {claim.stage for claim in module.freeze_plan.claims() if claim.lr > 0} == {"head", "middle"}
    with pytest.raises(OptionError, match="strategy=lp_ft settles that itself"):
        TransferModule(make_backbone(), "lp_ft", classes=2, unfreeze=1)


def test_a_head_that_was_fitted_before_learns_more_slowly_than_a_new_one():
    def rate_of_head(network, **options):
        (rate,) = {
            claim.lr
            for claim in TransferModule(network, "lp_ft", lr=0.01, **options).freeze_plan.claims()
            if claim.stage == HEAD
        }
        return rate

    assert rate_of_head(make_model()) < 0.01 < rate_of_head(make_backbone(), classes=2)


def test_images_are_counted_whatever_form_they_come_in():
    assert count_images(torch.zeros(5, 3, 4, 4)) == 5
    assert count_images(CutBatch(torch.zeros(5, 2), {"a": torch.zeros(5, 1)})) == 5


Y = torch.tensor([0, 1, 2, 1])
BAD_TARGETS = [
    (
        "single_label",
        Y.float(),
        r"has \(n,\) integers in \[0, 3\) as targets, got \(4,\) of float32. Give targets.long",
    ),
    ("single_label", Y[:, None], r"got \(4, 1\) of int64. Give targets.squeeze\(1\).long\(\)"),
    ("single_label", Y[:, None].float(), r"got \(4, 1\) of float32. Give targets.squeeze\(1\).long\(\)"),
    ("single_label", Y + 1, r"got labels from 1 to 3. Number the classes from 0, or name all of them in classes="),
    ("single_label", Y - 1, "got labels from -1 to 1"),
    ("single_label", F.one_hot(Y, 4).float(), r"For shares of classes, give \(n, 3\) floats; for numbers .*regression"),
    ("multi_label", Y, r"has \(n, 3\) values in \[0, 1\] as targets, got \(4,\) of int64. For one label an image use"),
    ("multi_label", 2 * F.one_hot(Y, 3), "got values from 0 to 2"),
    ("regression", Y.float(), r"has \(n, 3\) finite numbers as targets, got \(4,\)"),
    ("regression", torch.full((4, 3), torch.nan), "got some that are not finite"),
]


@pytest.mark.parametrize(("task", "targets", "message"), BAD_TARGETS)
def test_targets_of_a_batch_are_checked_in_words(task, targets, message):
    batches = [(images[:4], targets) for images, _ in draw(2)]
    module = TransferModule(make_backbone(), "lp_ft", classes=3, lr=1e-2, task=task)
    for use in ("fit", "validate"):
        with quiet(), pytest.raises(DataError, match=message):
            getattr(make_trainer(1), use)(module, loader(batches))


def test_batches_without_targets_are_named():
    with (
        quiet(),
        pytest.raises(DataError, match="Expected batches .images, targets. with tensors as targets, got Tensor"),
    ):
        make_trainer(1).fit(
            TransferModule(make_backbone(), "lp_ft", classes=3, lr=1e-2), loader([images for images, _ in draw(2)])
        )


def test_truth_values_and_shares_of_classes_are_targets():
    for targets in (torch.tensor([True, False, True, True]), torch.full((4, 2), 0.5), Y.clamp(max=1).to(torch.uint8)):
        module = TransferModule(make_backbone(), "lp_ft", classes=2, lr=1e-2)
        with quiet():
            make_trainer(1).fit(module, loader([(images[:4], targets) for images, _ in draw(2)]))


def test_a_checkpoint_is_loaded_with_what_the_module_was_made_of(tmp_path):
    options = {"strategy": "lp_ft", "classes": ["a", "b", "c"], "lr": 1e-2}
    module = TransferModule(make_backbone(), **options)
    trainer = make_trainer(2)
    with quiet():
        trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    again = TransferModule.load_from_checkpoint(
        tmp_path / "own.ckpt", network=make_backbone(seed=9), weights_only=False, **options
    )
    before, after = module.finish().state_dict(), again.finish().state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_has_nothing_to_train_or_no_classes_is_refused():
    with pytest.raises(OptionError, match="linear_probe learns nothing by gradient; transferkit.adapt solves"):
        TransferModule(make_backbone(), "linear_probe", lr=0.0, classes=2)
    with pytest.raises(OptionError, match="A new head needs its classes"):
        TransferModule(make_backbone(), "few_layers")
    with pytest.raises(OptionError, match="Unknown strategy 'few_layer'. Closest known: few_layers."):
        TransferModule(make_backbone(), "few_layer", classes=2)
    with pytest.raises(OptionError, match="Unknown task"):
        make_module(task="single_lable")


# ---- What learns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["keep", "frozen"])
@pytest.mark.parametrize("strategy", GRADIENT)
@pytest.mark.parametrize("stage", ["top", "joined"])
def test_what_moves_is_what_the_claims_say(strategy, norm, stage):
    backbone = make_backbone() if strategy != "lora" else wide_backbone()
    module = TransferModule(
        backbone, strategy, classes=CLASSES, lr=0.01, norm=norm, stage=stage, recipe=Recipe(weight_decay=0.1)
    )
    claims = module.freeze_plan.claims()
    before = states(module)
    fit(module, 2)
    changed = moved(before, states(module))
    learning = {name for name, learns in module.freeze_plan.is_trained.items() if learns}
    updated = {claim.stage for claim in claims if claim.statistics == "updated"}
    assert {name for name in changed if not is_statistic(name)} == learning
    statistics = {name.removeprefix(TRUNK) for name in changed if is_statistic(name)}
    assert {backbone.stage_of(name.rpartition(".")[0]) for name in statistics} == updated
    assert bool(updated) == (norm == "keep" and strategy != "lora")
    numbers = {claim.stage: claim.parameters for claim in claims if claim.lr > 0}
    named = dict(module.named_parameters())
    for stage_name, count in numbers.items():
        of_stage = {
            name
            for name in learning
            if (HEAD if name in HEAD_NAMES else backbone.stage_of(name.removeprefix(TRUNK).rpartition(".")[0]))
            == stage_name
        }
        assert sum(named[name].numel() for name in of_stage) == count


class Wide(nn.Module):
    """Layers that a low-rank update is smaller than, and no batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(32, 40, 1, 2), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(40, 48, 1, 2), nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.stem(images))).mean((2, 3))


def wide_backbone() -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Backbone(Wide(), spec_of(SIDE))


@pytest.mark.parametrize("by", ["backbone", "model"])
def test_lora_adds_its_updates_and_merges_them(by):
    network = wide_backbone()
    plain = list(network.trunk.state_dict())
    if by == "model":
        network = TransferModel(network, stages=["top"], pooling="avg", classes=["a", "b", "c"])
    module = TransferModule(network, "lora", classes=CLASSES if by == "backbone" else None, lr=0.01)
    assert any(is_adapter(name) for name, _ in module.named_parameters())
    before = states(module)
    fit(module, 3)
    changed = moved(before, states(module)) - HEAD_NAMES
    assert changed
    assert all(is_adapter(name) for name in changed)
    images = draw(1)[0][0]
    with module.averaged():
        expected = module.eval()(images)
    model = module.finish()
    assert list(model.backbone.trunk.state_dict()) == plain
    torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_draws_the_updates(seed):
    drawn = [dict(TransferModule(wide_backbone(), "lora", classes=2, seed=number).state_dict()) for number in (seed, 5)]
    same = {name for name in drawn[0] if torch.equal(drawn[0][name], drawn[1][name])}
    assert {name for name in drawn[0] if "lora_A" in name}.isdisjoint(same)


def test_weight_decay_spares_norms_and_biases_and_gives_way_to_the_pull_to_the_start():
    for recipe, expected in ((Recipe(weight_decay=0.3), 0.3), (Recipe(weight_decay=0.3, l2_sp=0.1), 0.0)):
        module = make_module(recipe=recipe)
        decays = {group["name"]: group["weight_decay"] for group in module.freeze_plan.groups()}
        assert decays == {"top": expected, "top (no decay)": 0, "head": expected, "head (no decay)": 0}


# ---- How fast -------------------------------------------------------------------------------------------------------


class Rates(pl.Callback):
    """The learning rates that every step is made with."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.seen.append({group["name"]: group["lr"] for group in optimizer.param_groups})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_group_follows_the_schedule_from_its_first_step_on(accumulate):
    """Linear, no warm-up: a line that falls over each phase's steps and would reach 0 at the next one."""
    recipe = Recipe(schedule="linear", warmup=0.0, minimum=0.0)
    module, rates = make_module(recipe=recipe), Rates()
    fit(module, 4, [rates], accumulate_grad_batches=accumulate, train=loader(draw(4)))
    per_phase = 2 * 4 // accumulate
    falling = [1 - step / per_phase for step in range(per_phase)]
    assert [step["head"] for step in rates.seen] == pytest.approx([0.05 * share for share in falling * 2])
    assert [step["top"] for step in rates.seen] == pytest.approx([0.0] * per_phase + [0.05 * x for x in falling])
    assert all(step[name] == step[f"{name} (no decay)"] for step in rates.seen for name in ("head", "top"))


def test_a_plateau_lowers_the_rate():
    recipe = Recipe(schedule="plateau", warmup=0.0)
    module, rates = make_module(phase("top", top=1e-9, head=1e-8), recipe=recipe), Rates()
    fit(module, 5, [rates], held_back=loader())
    assert rates.seen[-1]["head"] == pytest.approx(rates.seen[0]["head"] / 10)


def test_epochs_may_be_left_out_where_steps_are_counted_and_there_is_one_phase():
    recipe = Recipe(schedule="linear", warmup=0.0, minimum=0.0)
    module, rates = make_module(phase("top", top=0.02), recipe=recipe), Rates()
    fit(module, -1, [rates], max_steps=5)
    assert [step["top"] for step in rates.seen] == pytest.approx([0.02 * (1 - step / 5) for step in range(5)])


def test_a_trial_run_of_lightnings_comes_to_the_first_phase():
    module = make_module()
    before = states(module)
    trainer = fit(module, 1, held_back=loader(), fast_dev_run=2)
    assert trainer.global_step == 2
    assert moved(before, states(module)) == HEAD_NAMES


def test_a_run_without_an_end_has_no_schedule():
    module = make_module(phase("top", top=0.05))
    warnings.simplefilter("ignore")  # Lightning warns of it as well; pytest puts the filters back
    with pytest.raises(OptionError, match="max_epochs or max_steps"):
        fit(module, -1, train=EndlessLoader())


class EndlessLoader(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from draw()


def test_phases_are_where_the_epochs_are_though_steps_end_the_run():
    module, rates = make_module(), Rates()
    fit(module, 4, [rates], max_steps=8)
    assert len(rates.seen) == 8
    assert [step["top"] > 0 for step in rates.seen] == [False] * 6 + [True] * 2


# ---- What each step draws -------------------------------------------------------------------------------------------


def test_same_seed_same_weights_whatever_torchs_generator_is_in():
    ended = []
    for state in (1, 2):
        torch.manual_seed(state)
        module = make_module(recipe=Recipe(dropout=0.3), seed=7)
        fit(module, 2)
        ended.append(states(module))
    assert not moved(*ended)
    other = make_module(recipe=Recipe(dropout=0.3), seed=8)
    fit(other, 2)
    assert moved(ended[0], states(other))


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(dropout=0.3),
        Recipe(average="ema", optimizer="sgd"),
        Recipe(average="swa", schedule="plateau"),
        Recipe(l2_sp=0.1, schedule="linear"),
    ],
    ids=["dropout", "ema", "swa", "l2_sp"],
)
def test_a_killed_run_that_is_resumed_ends_with_the_same_weights(tmp_path, recipe, after):
    """Bit for bit, averages and starts included, killed in the middle of any epoch."""

    def run(epochs, *callbacks, resume=None):
        module = make_module(recipe=recipe)
        fit(module, epochs, list(callbacks), held_back=loader(draw(1, seed=9)), resume=resume)
        return module

    straight = run(4)
    with quiet():
        saving = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True, every_n_epochs=1)
        with pytest.raises(Killed):
            run(4, saving, Killer(after))
    resumed = run(4, resume=tmp_path / "last.ckpt")
    assert not moved(states(straight), states(resumed))
    assert torch.equal(straight.outputs, resumed.outputs)
    assert not moved(states(straight.finish()), states(resumed.finish()))


# ---- Activations in the place of images -----------------------------------------------------------------------------


def quiet_backbone():
    """Without dropout: what it draws depends on what runs before."""
    backbone = make_backbone()
    for module in backbone.trunk.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return backbone


@pytest.mark.parametrize("norm", ["keep", "frozen"])
def test_training_on_cached_activations_is_training_on_the_images(norm):
    """The stages up to the cut are frozen in every phase, so their outputs never change."""

    def make(tail_at=None):
        backbone = quiet_backbone()
        tail = cut(backbone, tail_at) if tail_at else None
        model = TransferModel(backbone, stages=["stem", "top"], pooling="avg+max", classes=["a", "b", "c"])
        nn.init.zeros_(model.linear.weight)
        nn.init.zeros_(model.linear.bias)
        # Its own dropout, at the end, is drawn from the seed of the step alone.
        return TransferModule(model, plan_of(*head_then(top=0.05), norm=norm), tail=tail)

    whole, cached = make(), make("middle")
    prefix = cut(quiet_backbone(), "middle")
    batches = []
    with torch.no_grad():
        for images, labels in draw():
            activation, pooled = prefix.activations(images, pooling="avg+max", names=["stem"])
            batches.append((CutBatch(activation, pooled), labels))
    fit(whole, 4, held_back=loader())
    fit(cached, 4, train=loader(batches), held_back=loader(batches))
    torch.testing.assert_close(cached.outputs, whole.outputs, atol=1e-4, rtol=1e-3)
    one, other = whole.finish(), cached.finish()
    for (name, expected), found in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3, msg=name)


# ---- Averages of the weights ----------------------------------------------------------------------------------------


class Recorder(pl.Callback):
    """The trained tensors after every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append(states(module))


def average_by_hand(steps: list[torch.Tensor]) -> torch.Tensor:
    """Polyak with the decay's warm-up, in double."""
    average = steps[0].double()
    for t, value in enumerate(steps[1:], start=1):
        decay = min(EMA_DECAY, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * value.double()
    return average


def test_what_is_judged_tested_predicted_and_returned_is_the_average():
    module, recorder = make_module(recipe=Recipe(average="ema", optimizer="sgd")), Recorder()
    trainer = fit(module, 3, [recorder], held_back=loader())
    name = f"{TRUNK}last.0.weight"
    raw = module.state_dict()[name].clone()
    expected = average_by_hand([step[name] for step in recorder.steps]).float()
    assert not torch.allclose(raw, expected, atol=1e-4)
    with module.averaged():
        torch.testing.assert_close(module.state_dict()[name], expected, atol=1e-5, rtol=1e-5)
        module.eval()
        outputs = torch.cat([module(images) for images, _ in draw()])
    torch.testing.assert_close(module.outputs, outputs, atol=1e-6, rtol=1e-6)
    assert torch.equal(module.state_dict()[name], raw)
    with quiet():
        judged = trainer.validate(module, loader(), verbose=False)[0]
        tested = trainer.test(module, loader(), verbose=False)[0]
        predicted = torch.cat(trainer.predict(module, loader()))
    assert tested["test_loss"] == pytest.approx(judged["val_loss"])
    torch.testing.assert_close(predicted, outputs.softmax(1), atol=1e-6, rtol=1e-6)
    model = module.finish()
    torch.testing.assert_close(model.backbone.trunk.last[0].weight, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(draw()[0][0]), outputs[:4], atol=1e-4, rtol=1e-4)


def test_swa_averages_the_ends_of_the_last_epochs():
    module, recorder = make_module(recipe=Recipe(average="swa")), Recorder()
    fit(module, 8, [recorder])
    name = "model.classifier.linear.weight"
    ends = [recorder.steps[3 * epoch + 2][name] for epoch in (6, 7)]  # a quarter of eight
    with module.averaged():
        torch.testing.assert_close(module.state_dict()[name], (ends[0] + ends[1]) / 2)


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_trainer_that_shards_another_way_is_refused_before_it_sets_anything_up(stage, monkeypatch):
    """Lightning makes none on a CPU, so this one only says that it shards."""
    module = make_module()
    module.trainer = make_trainer(1)
    module.setup(stage)
    monkeypatch.setattr(pl.Trainer, "strategy", pl.strategies.FSDPStrategy())
    with pytest.raises(OptionError, match=r"FSDPStrategy shares weights out .* ModelParallelStrategy\(data_parallel"):
        module.setup(stage)


# ---- Other precisions than single -----------------------------------------------------------------------------------


class Watcher(pl.Callback):
    """Notes the type of what the module says in training, and the norms of the gradients that steps were taken with."""

    def __init__(self) -> None:
        self.types: set[torch.dtype] = set()
        self.norms: list[float] = []

    def on_fit_start(self, trainer, module):
        module.register_forward_hook(lambda _, images, logits: self.types.add(logits.dtype))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.norms.append(float(nn.utils.get_total_norm(p.grad for p in module.parameters() if p.grad is not None)))


@pytest.mark.filterwarnings("ignore:You passed .*precision='16-mixed'")  # on a CPU it is bf16-mixed
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_gradients_are_cut_in_mixed_precision(optimizer, precision):
    module, watcher = make_module(recipe=Recipe(optimizer=optimizer)), Watcher()
    before = states(module)
    fit(module, 4, [watcher], held_back=loader(), precision=precision, gradient_clip_val=0.01)
    assert watcher.types == {torch.bfloat16}
    assert max(watcher.norms) == pytest.approx(0.01, rel=1e-3)
    assert moved(before, states(module)) >= HEAD_NAMES
    assert types_in(module.finish()) == {torch.float32}


def types_in(network: nn.Module) -> set[torch.dtype]:
    return {tensor.dtype for tensor in network.state_dict().values() if tensor.is_floating_point()}


def as_bytes() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(images.mul(40).add(128).clamp(0, 255).byte(), labels) for images, labels in draw()]


TRUE = {"bf16-true": torch.bfloat16, "64-true": torch.float64}


@pytest.mark.parametrize("precision", TRUE)
@pytest.mark.parametrize("batches", [draw, as_bytes])
@pytest.mark.parametrize(
    "options", [{}, {"l2_sp": 0.1, "average": "none", "optimizer": "sgd"}], ids=["usual", "pulled"]
)
def test_a_network_trained_in_another_precision_is_in_single_precision_again(options, batches, precision):
    module, watcher = make_module(recipe=Recipe(**options), weights=[1.0, 2.0, 1.0]), Watcher()
    trainer = fit(module, 4, [watcher], train=loader(batches()), held_back=loader(batches()), precision=precision)
    assert watcher.types == {TRUE[precision]}
    assert types_in(module) == {module.dtype} == {torch.float32}
    assert module.class_weights.dtype == torch.float32
    judged = module.outputs
    with quiet():
        trainer.test(module, loader(batches()), verbose=False)
    model = module.finish()
    assert types_in(model) == {torch.float32}
    outputs = torch.cat([model(model.normalise(images)) for images, _ in batches()])
    torch.testing.assert_close(outputs, judged, atol=0.05, rtol=0.05)


def test_a_fit_that_failed_leaves_single_precision_as_well():
    module = make_module()
    with pytest.raises(Killed):
        fit(module, 2, [Killer(1)], precision="bf16-true")
    assert types_in(module.finish()) == {torch.float32}


def test_a_network_in_double_precision_stays_so():
    module = make_module().double()
    fit(module, 2, train=loader([(images.double(), labels) for images, labels in draw()]))
    assert types_in(module.finish()) == {torch.float64}


# ---- What comes out -------------------------------------------------------------------------------------------------


def test_finished_it_is_a_plain_model_in_evaluation_mode_free_of_the_plan():
    module = make_module()
    fit(module, 2, held_back=loader())
    images = draw(1)[0][0]
    with module.averaged():
        expected = module.eval()(images)
    model = module.finish()
    assert type(model) is TransferModel
    assert type(model.classifier) is nn.Linear
    assert not any(part.training for part in model.modules())
    assert sum(len(part._forward_pre_hooks) for part in model.modules()) == 0
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)
    assert module.finish() is model
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@pytest.mark.parametrize("tail", [False, True])
def test_a_copy_under_its_plan_trains_apart_from_the_original(clone, tail):
    module = make_module()
    module.tail = cut(module.model.backbone, "middle") if tail else None
    module.freeze_plan.start(0)
    before = states(module)
    other = clone(module)
    fit(other, 4)
    assert moved(before, states(other)) == HEAD_NAMES | trained(
        trunk_names(other.model.backbone, ["top"], statistics=True)
    )
    assert not moved(before, states(module))
    if tail:
        assert other.tail.backbone.trunk is other.model.backbone.trunk
    module.freeze_plan.release()


# ---- Kinds of targets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "make", "metric", "link"),
    [
        ("single_label", lambda labels: labels, "val_accuracy", lambda z: z.softmax(1)),
        ("multi_label", lambda labels: F.one_hot(labels, CLASSES).float(), "val_mean_average_precision", torch.sigmoid),
        ("regression", lambda labels: F.one_hot(labels, CLASSES).float(), "val_r2", lambda z: z),
    ],
)
def test_each_kind_of_target_is_learnt_and_judged_by_its_own_measure(task, make, metric, link):
    batches = [(images, make(labels)) for images, labels in draw(6)]
    module = make_module(phase("all", stem=0.02, middle=0.02, top=0.02, head=0.05), task=task)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    fit(module, 1, train=loader(batches), held_back=loader(batches))
    first = float(module.trainer.callback_metrics["val_loss"])
    fit(module, 25, train=loader(batches), held_back=loader(batches))
    metrics = module.trainer.callback_metrics
    assert {"train_loss", "val_loss", metric} <= set(metrics)
    assert float(metrics["val_loss"]) < first
    with quiet():
        predicted = torch.cat(make_trainer(1).predict(module, loader(batches)))
    torch.testing.assert_close(predicted, link(module.outputs), atol=1e-5, rtol=1e-5)


def test_class_weights_reach_the_loss():
    images, labels = draw(1)[0]
    plain, weighted = make_module(), make_module(weights=[1.0, 5.0, 0.5])
    for module in (plain, weighted):
        module.log = lambda *_, **__: None
    expected = float(np.log(CLASSES))  # a new head: every image costs log K, times its class's weight
    assert plain.training_step((images, labels), 0).item() == pytest.approx(expected)
    weights = torch.tensor([1.0, 5.0, 0.5])[labels]
    assert weighted.training_step((images, labels), 0).item() == pytest.approx(expected * float(weights.mean()))
    assert "class_weights" not in weighted.state_dict()


def test_the_held_back_loss_is_that_of_calibrated_logits_and_of_all_images_together():
    """An overconfident network is not taken for a worse one."""
    module = make_module(phase("top", top=1e-9, head=1e-9))
    with torch.no_grad():
        module.model.classifier.linear.weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(50)
    batches = draw(5, seed=3)
    fit(module, 1, train=loader(), held_back=loader(batches))
    labels = torch.cat([labels for _, labels in batches])
    losses = [float(F.cross_entropy(module.outputs / t, labels)) for t in np.geomspace(0.01, 100, 400)]
    assert float(module.trainer.callback_metrics["val_loss"]) == pytest.approx(min(losses), abs=2e-3)
    accuracy = float((module.outputs.argmax(1) == labels).float().mean())
    assert float(module.trainer.callback_metrics["val_accuracy"]) == pytest.approx(accuracy)


# ---- With the data module, and the other package of Lightning's -----------------------------------------------------


def test_with_the_data_module_and_a_plain_trainer(stripes):
    backbone = make_backbone()
    data = tk.TransferDataModule(
        stripes, preprocessing=backbone.spec.preprocessing, batch_size=8, workers=0, val=0.25, progress=False
    )
    module = tk.TransferModule(backbone, "many_layers", classes=data.classes, lr=1e-2)
    with quiet():
        trainer = make_trainer(3, num_sanity_val_steps=2)
        trainer.fit(module, data)
        tested = trainer.test(module, data, verbose=False)[0]
        predicted = torch.cat(trainer.predict(module, data))
    assert set(tested) == {"test_loss", "test_accuracy"}
    assert predicted.shape == (12, 3)
    torch.testing.assert_close(predicted.sum(1), torch.ones(12))
    model = module.finish()
    assert model.classes == data.classes == ("across", "down", "slant")
    pictures = torch.stack(
        [torch.from_numpy(data.data.pixels(int(i), backbone.spec.preprocessing)) for i in data.data.indices("test")]
    )
    torch.testing.assert_close(model(model.normalise(pictures)).softmax(1), predicted, atol=1e-4, rtol=1e-4)


UNIFIED = """
import warnings
warnings.simplefilter("ignore")
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
import transferkit as tk
from tests.unit.nn.toy_networks import Pyramid, spec_of
from transferkit.nn import Backbone

quiet = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
             enable_model_summary=False)
data = DataLoader([(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])) for _ in range(3)], batch_size=None)
module = tk.TransferModule(Backbone(Pyramid(), spec_of()), "few_layers", classes=3, lr=1e-2)
assert isinstance(module, pl.LightningModule)
stem = {name: value.clone() for name, value in module.state_dict().items() if ".stem." in name}
pl.Trainer(max_epochs=2, **quiet).fit(module, data, data)
assert all(torch.equal(value, module.state_dict()[name]) for name, value in stem.items())
data_module = tk.TransferDataModule("builtin/digits", preprocessing=module.model.preprocessing, workers=0,
                                    batch_size=256, progress=False)
assert isinstance(data_module, pl.LightningDataModule)

class Own(pl.LightningModule):
    def __init__(self, freeze):
        super().__init__()
        self.backbone, self.head, self.freeze_callback = Backbone(Pyramid(), spec_of()), torch.nn.Linear(16, 3), freeze
    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.freeze_callback.groups())

freeze = tk.FreezePlanCallback("few_layers", lr=1e-2)
pl.Trainer(max_epochs=2, callbacks=[freeze], **quiet).fit(Own(freeze), data)
import sys
assert not any(name == "pytorch_lightning" or name.startswith("pytorch_lightning.") for name in sys.modules)
print("fits", type(module.finish()).__name__)
"""


def test_with_the_package_called_lightning():
    pytest.importorskip("lightning.pytorch", reason="the other package is not installed")
    done = subprocess.run([sys.executable, "-c", UNIFIED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("fits TransferModel")


# ---- Batches that a step adds up -------------------------------------------------------------------------------------


def test_batches_whose_gradients_are_added_up_are_normalised_together():
    network = make_backbone()
    tk.swap_norm(network.trunk, "accumulated")
    pooled = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            layer = next(module for module in pl_module.modules() if isinstance(module, AccumulatedBatchNorm))
            pooled.append((layer.batches, int(layer.pooled_batches)))

    everything = phase("everything", stem=0.01, middle=0.01, top=0.01)
    fit(make_module(everything, network=network), 2, [Watch()], accumulate_grad_batches=2)
    assert pooled == [(2, 1), (2, 0), (2, 1)] * 2  # the third of an epoch is a step of its own, pooled with nothing


# ---- All training targets at hand ------------------------------------------------------------------------------------


def brightness(batches):
    """Numbers far from 0, told by the pictures."""
    return [(images, 500 + 40 * images.float().mean(dim=(1, 2, 3)).double()) for images, _ in batches]


def test_numbers_are_learnt_in_units_of_their_spread_and_told_in_their_own():
    batches = brightness(draw(6))
    targets = torch.cat([numbers for _, numbers in batches])
    plan = plan_of(phase("everything", stem=0.01, middle=0.01, top=0.01))
    module = TransferModule(make_backbone(), plan, classes=["brightness"], task="regression", targets=targets)
    assert module.scale.mean[0] == pytest.approx(targets.mean().item())
    trainer = fit(module, 3, train=loader(batches), held_back=loader(batches))
    assert trainer.callback_metrics["train_loss"] < 5  # of raw numbers it would be hundreds
    with quiet():
        told = torch.cat(trainer.predict(module, loader(batches)))
    assert (told.mean() - targets.mean()).abs() < 3 * targets.std()
    model = module.finish()
    images = torch.cat([images for images, _ in batches])
    with torch.no_grad():
        torch.testing.assert_close(model(model.normalise(images)), told, rtol=1e-4, atol=1e-2)
    with quiet():  # finished, the module says the same
        torch.testing.assert_close(torch.cat(trainer.predict(module, loader(batches))), told, rtol=1e-4, atol=1e-2)


def test_weights_are_told_from_the_targets():
    labels = np.array([[1, 1], [0, 1], [0, 0], [0, 0]])
    plan = plan_of(*head_then(top=0.05))
    module = TransferModule(
        make_backbone(), plan, classes=["rare", "even"], task="multi_label", targets=labels, weights="auto"
    )
    assert module.class_weights.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "auto"}, "weights='auto' are computed from the training targets: give targets as well"),
        ({"weights": [1.0, 2.0]}, r"There are 3 outputs, so 3 weights are needed; got \(2,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        make_module(**options)


def test_targets_are_checked():
    with pytest.raises(DataError, match=r"Labels must be in \[0, 3\), the classes known; got 7"):
        make_module(targets=[0, 1, 7])
