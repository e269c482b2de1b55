"""Seeds, checkpoints and averages of the weights of TransferModule."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch

from tests.unit.finetune.training_toys import (
    TRUNK,
    Killed,
    Killer,
    draw,
    fit,
    loader,
    make_backbone,
    make_module,
    make_trainer,
    moved,
    quiet,
    states,
)
from transferkit.finetune import TransferModule
from transferkit.finetune.averaging import EMA_DECAY
from transferkit.options import Recipe


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
