"""The freeze plan under a plain trainer, for a LightningModule that knows nothing of it."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st

import transferkit as tk
from tests.unit.finetune.training_toys import (
    Killed,
    Killer,
    Own,
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
from transferkit.core.errors import OptionError
from transferkit.finetune.callbacks import FreezePlanCallback, phase_starts
from transferkit.finetune.freeze import FreezePlan
from transferkit.strategies import Phase, Rule

# ---- Which epoch is in which phase ----------------------------------------------------------------------------------

shares = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6)


@given(shares, st.integers(1, 60))
def test_every_phase_has_its_share_of_the_epochs_and_one_at_least(parts, epochs):
    total = sum(parts)
    phases = [Phase(name=str(i), rules=(Rule(stage="*", lr=1.0),), share=part / total) for i, part in enumerate(parts)]
    if epochs < len(phases):
        with pytest.raises(OptionError, match=f"{len(phases)} phases need at least {len(phases)} epochs, got {epochs}"):
            phase_starts(phases, epochs)
        return
    starts = phase_starts(phases, epochs)
    lengths = [end - start for start, end in zip(starts, [*starts[1:], epochs], strict=True)]
    assert starts[0] == 0
    assert min(lengths) >= 1
    if min(phase.share for phase in phases) * epochs >= 2:  # no phase is so short that others give way
        for length, made in zip(lengths, phases, strict=True):
            assert abs(length - made.share * epochs) <= 1.01


# ---- What a trainer does --------------------------------------------------------------------------------------------


class Witness(pl.Callback):
    """Notes, epoch by epoch: phase, who asks for gradients, learning rates, and what has moved by its end."""

    def __init__(self) -> None:
        self.phases, self.asking, self.lrs, self.moved, self.modes = [], [], [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx:
            return
        self.before = states(module)
        self.phases.append(module.freeze_callback.freeze.phase)
        self.asking.append({name for name, p in module.named_parameters() if p.requires_grad})
        self.lrs.append([group["lr"] for group in trainer.optimizers[0].param_groups])
        self.modes.append({name for name, m in module.backbone.trunk.named_modules() if m.training})

    def on_train_epoch_end(self, trainer, module):
        self.moved.append(moved(self.before, states(module)))


def full(names, *, prefix="backbone.trunk.") -> set[str]:
    return {f"{prefix}{name}" for name in names}


HEAD = {"head.weight", "head.bias"}


@pytest.mark.parametrize("held_back", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_phases_come_in_turn_and_nothing_moves_before_its_phase(optimizer, held_back):
    """With momentum and weight decay, with and without validation, which puts all modules back as it found them."""
    phases = (phase("head", 0.4), phase("top", 0.3, top=0.1), phase("all but the head", 0.3, head=0, middle=0.1))
    callback = FreezePlanCallback(plan_of(*phases), weight_decay=0.1)
    module, witness = Own(callback, optimizer=optimizer), Witness()
    fit(module, 6, [callback, witness], held_back=loader() if held_back else None)
    assert witness.phases == [0, 0, 1, 1, 2, 2]
    top = [full(trunk_names(module.backbone, ["top"], statistics=also)) for also in (False, True)]
    middle = [full(trunk_names(module.backbone, ["middle"], statistics=also)) for also in (False, True)]
    assert witness.asking == 2 * [HEAD] + 2 * [HEAD | top[0]] + 2 * [middle[0]]
    assert witness.moved == 2 * [HEAD] + 2 * [HEAD | top[1]] + 2 * [middle[1]]
    assert witness.modes[0] == set()
    assert witness.modes[2] >= {"last.1", "last.3"}
    assert not {"stem.1", "middle.1"} & witness.modes[2]
    assert witness.modes[4] >= {"middle.1"}
    assert not {"stem.1", "last.1"} & witness.modes[4]


@pytest.mark.parametrize("processes", [1, 2])
def test_between_processes_gradients_flow_to_all_that_is_ever_trained_and_are_dropped_before_the_step(processes):
    """Lightning#20340: a distributed wrapper looks once at who asks for gradients."""
    callback = FreezePlanCallback(plan_of(phase("head", 0.25), phase("top", 0.5, top=0.1), phase("head again", 0.25)))
    module = Own(callback)
    stub = SimpleNamespace(world_size=processes, strategy=None, max_epochs=4, fast_dev_run=False, current_epoch=0)
    callback.setup(stub, module, "fit")
    optimizer = module.configure_optimizers()
    top = full(trunk_names(module.backbone, ["top"], statistics=False))
    for epoch, learning in ((0, HEAD), (1, HEAD | top), (3, HEAD)):
        stub.current_epoch = epoch
        callback.on_train_epoch_start(stub, module)
        optimizer.zero_grad()
        module.training_step(draw(1)[0], 0).backward()
        assert with_gradient(module) == (learning if processes == 1 else HEAD | top)
        callback.on_before_optimizer_step(stub, module, optimizer)
        assert with_gradient(module) == learning


def with_gradient(module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.grad is not None}


def test_with_norm_frozen_no_statistics_move_in_any_phase():
    callback = FreezePlanCallback(plan_of(*head_then(stem=0.1, middle=0.1, top=0.1), norm="frozen"))
    module, witness = Own(callback), Witness()
    fit(module, 4, [callback, witness])
    everything = full(trunk_names(module.backbone, ["stem", "middle", "top"], statistics=False))
    assert witness.moved == 2 * [HEAD] + 2 * [HEAD | everything]
    assert not any(is_statistic(name) for names in witness.moved for name in names)


def test_a_module_that_calls_train_itself_thaws_nothing():
    class Stubborn(Own):
        def training_step(self, batch, batch_idx):
            self.train()
            self.backbone.trunk.train()
            return super().training_step(batch, batch_idx)

    callback = FreezePlanCallback(plan_of(phase("top", top=0.1)))
    module = Stubborn(callback)
    before = states(module)
    fit(module, 2, [callback])
    learning = trunk_names(module.backbone, ["top"], statistics=True)
    assert moved(before, states(module)) == HEAD | full(learning)


def test_learning_rates_of_groups_that_are_unfrozen_later_follow_the_schedule():
    """Lightning#8720: a group added at unfreezing is unknown to the scheduler. Here it was there all along."""

    class Scheduled(Own):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)]

    callback = FreezePlanCallback(plan_of(*head_then(top=0.1)))
    module, witness = Scheduled(callback), Witness()
    fit(module, 4, [callback, witness])
    starts = [group["lr"] for group in callback.groups()]
    assert sorted(set(starts)) == [0.05, 0.1]
    for epoch, lrs in enumerate(witness.lrs):
        assert lrs == pytest.approx([lr * 0.5**epoch for lr in starts])


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_resumed_run_lands_in_the_right_phase_and_ends_with_the_same_weights(tmp_path, after):
    """Lightning#6891, #8502, #21901: frozen again, or not at all, after a resume."""

    def run(epochs, **options):
        torch.manual_seed(0)
        callback = FreezePlanCallback(plan_of(*head_then(top=0.1), norm="keep"))
        module, witness = Own(callback, optimizer="adamw"), Witness()
        dropout_off(module)
        trainer = fit(module, epochs, [callback, witness, *options.pop("callbacks", [])], **options)
        return module, witness, trainer

    straight, seen, _ = run(4)
    with quiet():
        saving = pl.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", save_last=True)
        with pytest.raises(Killed):
            run(4, callbacks=[saving, Killer(after)])
    resumed, rest, _ = run(4, resume=tmp_path / "last.ckpt")
    assert rest.phases == seen.phases[after:] == [0, 0, 1, 1][after:]
    assert rest.asking == seen.asking[after:]
    assert rest.modes == seen.modes[after:]
    assert not moved(states(straight), states(resumed))


def dropout_off(module) -> None:
    """What a person's own module draws is not ours to make repeatable."""
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    module.backbone.trunk.forward = lambda images: module.backbone.trunk.last(
        module.backbone.trunk.middle(module.backbone.trunk.stem(images))
    ).mean((2, 3))


# ---- Off again ------------------------------------------------------------------------------------------------------


def is_free(module) -> bool:
    hooks = sum(len(part._forward_pre_hooks) for part in module.modules())
    return hooks == 0 and all(parameter.requires_grad for parameter in module.parameters())


def test_after_the_fit_nothing_is_left_of_it_on_the_network():
    callback = FreezePlanCallback(plan_of(*head_then(top=0.1)))
    module = Own(callback)
    fit(module, 2, [callback])
    assert is_free(module)


@pytest.mark.parametrize("error", [Killed(), KeyboardInterrupt()])
def test_after_an_error_nothing_is_left_either(error):
    callback = FreezePlanCallback(plan_of(*head_then(top=0.1)))
    module = Own(callback)
    with pytest.raises((Killed, SystemExit)):
        fit(module, 2, [callback, Killer(0, error=error)])
    assert is_free(module)


def test_the_plan_is_not_on_while_a_network_is_only_judged():
    callback = FreezePlanCallback(plan_of(*head_then(top=0.1)))
    module = Own(callback)
    with quiet():
        make_trainer(1, [callback]).validate(module, loader(), verbose=False)
    assert is_free(module)
    with pytest.raises(OptionError, match="There is no freeze plan before the trainer's setup"):
        callback.groups()


def test_one_callback_serves_one_network_after_the_other():
    """Folds of a cross-validation: the second network has parameters of its own."""
    callback = FreezePlanCallback(plan_of(phase("top", top=0.1)))
    for seed in (0, 1):
        module = Own(callback, backbone=make_backbone(seed))
        before = states(module)
        fit(module, 1, [callback])
        learning = trunk_names(module.backbone, ["top"], statistics=True)
        assert moved(before, states(module)) == HEAD | full(learning)


# ---- How it is asked for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["few_layers", "many_layers", "lp_ft", "norm_only", "bias_only", "surgical"])
def test_a_strategys_name_is_enough(strategy):
    callback = tk.FreezePlanCallback(strategy, lr=1e-2)
    module = Own(callback)
    before = states(module)
    fit(module, 2, [callback])
    changed = moved(before, states(module))
    learning = {name for name, is_trained in callback.freeze.is_trained.items() if is_trained}
    assert changed == learning > HEAD
    assert not any(is_statistic(name) for name in changed)


def test_stages_to_train_can_be_named_with_it():
    callback = tk.FreezePlanCallback("surgical", lr=1e-2, unfreeze="middle")
    module = Own(callback)
    before = states(module)
    fit(module, 2, [callback])
    assert moved(before, states(module)) == HEAD | full(trunk_names(module.backbone, ["middle"], statistics=False))


def test_a_freeze_plan_that_was_made_before_is_used_as_it_is():
    module = Own(FreezePlanCallback("few_layers"))
    plan = FreezePlan(module, [phase("top", top=0.1)], norm="frozen")
    module.freeze_callback = callback = FreezePlanCallback(plan)
    assert callback.freeze is plan
    before = states(module)
    fit(module, 1, [callback])
    assert moved(before, states(module)) == HEAD | full(trunk_names(module.backbone, ["top"], statistics=False))


def test_adapters_are_to_be_added_first():
    callback = tk.FreezePlanCallback("lora", lr=1e-2)
    with pytest.raises(OptionError, match="TransferModule adds"):
        fit(Own(callback), 1, [callback])


def test_phases_need_epochs_to_be_shares_of():
    callback = FreezePlanCallback(plan_of(*head_then(top=0.1)))
    with pytest.raises(OptionError, match="pass max_epochs to the trainer"):
        fit(Own(callback), -1, [callback], max_steps=4)
    callback = FreezePlanCallback(plan_of(*head_then(top=0.1)))
    with pytest.raises(OptionError, match="2 phases need at least 2 epochs, got 1"):
        fit(Own(callback), 1, [callback])


def test_a_single_phase_may_be_counted_in_steps():
    callback = FreezePlanCallback(plan_of(phase("top", top=0.1)))
    module = Own(callback)
    before = states(module)
    trainer = fit(module, -1, [callback], max_steps=4)
    assert trainer.global_step == 4
    assert moved(before, states(module)) == HEAD | full(trunk_names(module.backbone, ["top"], statistics=True))


def test_a_trial_run_of_lightnings_comes_to_the_first_phase():
    callback = FreezePlanCallback(plan_of(*head_then(top=0.1)))
    module = Own(callback)
    before = states(module)
    fit(module, 1, [callback], fast_dev_run=True)
    assert moved(before, states(module)) == HEAD


def test_rules_that_do_not_fit_are_told_before_the_first_step():
    wrong = plan_of(Phase(name="x", rules=(Rule(stage="layer4", lr=1.0), Rule(stage="*", lr=1.0))))
    callback = FreezePlanCallback(wrong)
    with pytest.raises(OptionError, match="rule 'layer4' claims no parameter"):
        fit(Own(callback), 1, [callback])


def test_what_learns_is_said_by_any_trainer(caplog):
    freeze = FreezePlanCallback(plan_of(phase("everything", stem=0.01, middle=0.01, top=0.01)))
    with caplog.at_level("INFO"):
        fit(Own(freeze), 1, [freeze])
    assert "Trained parameters:" in caplog.text
    assert re.search(r"everything +middle +\S+ +\d+ +0.01", caplog.text)
