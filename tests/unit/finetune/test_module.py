"""TransferModule under plain trainers: what it starts as, what is trained, and what comes out."""

from __future__ import annotations

import copy
import pickle

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import transferkit as tk
from tests.unit.finetune.training_toys import (
    CLASSES,
    HEAD_NAMES,
    SIDE,
    TRUNK,
    draw,
    fit,
    head_then,
    is_statistic,
    loader,
    make_backbone,
    make_module,
    moved,
    phase,
    plan_of,
    states,
    trained,
    trunk_names,
)
from tests.unit.nn.toy_networks import spec_of
from transferkit.core.errors import OptionError
from transferkit.finetune import CutBatch, TransferModule
from transferkit.finetune.adapters import is_adapter
from transferkit.finetune.cut_batch import count_images
from transferkit.nn import Backbone, TransferModel, cut
from transferkit.nn.norm import AccumulatedBatchNorm
from transferkit.options import Recipe
from transferkit.strategies import HEAD, STRATEGIES

GRADIENT = sorted(set(STRATEGIES) - {"linear_probe"})


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


@pytest.mark.parametrize(
    ("stages", "expected"), [(("middle",), {"stem", "middle"}), (("stem", "middle", "top"), {"middle", "top"})]
)
def test_a_strategy_by_name_is_for_the_stages_that_the_model_reads(stages, expected):
    """Else stages would be trained that no gradient reaches."""
    module = TransferModule(make_model(stages), "lp_ft", lr=0.01)
    assert module.freeze_plan.learning_stages - {HEAD} == expected
    before = states(module)
    fit(module, 1)
    assert moved(before, states(module)) == {n for n, learns in module.freeze_plan.is_trained.items() if learns}


def test_stages_to_train_can_be_named():
    module = TransferModule(make_backbone(), "few_layers", classes=2, unfreeze=["middle"])
    assert {claim.stage for claim in module.freeze_plan.claims() if claim.lr > 0} == {"head", "middle"}
    with pytest.raises(OptionError, match="strategy=norm_only does not accept it"):
        TransferModule(make_backbone(), "norm_only", classes=2, unfreeze=1)


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


def test_what_has_nothing_to_train_or_no_classes_is_refused():
    with pytest.raises(OptionError, match="linear_probe trains nothing by gradient; transferkit.adapt fits its head"):
        TransferModule(make_backbone(), "linear_probe", lr=0.0, classes=2)
    with pytest.raises(OptionError, match="A new head needs its classes"):
        TransferModule(make_backbone(), "few_layers")
    with pytest.raises(OptionError, match="Unknown strategy 'few_layer'. Closest known: few_layers."):
        TransferModule(make_backbone(), "few_layer", classes=2)
    with pytest.raises(OptionError, match="Unknown task"):
        make_module(task="single_lable")


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
