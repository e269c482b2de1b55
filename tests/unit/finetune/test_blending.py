"""Group normalisation that takes over step by step, under a plain trainer."""

from __future__ import annotations

from functools import partial

import pytest
import pytorch_lightning as pl
import torch

from tests.unit.finetune.training_toys import Killed, Killer, Own, draw, fit, make_backbone, phase, plan_of
from transferkit.core.errors import OptionError
from transferkit.finetune import BlendRamp, FreezePlanCallback
from transferkit.nn.norm import StandardisedGroupNorm, standardising, swap_norm

IMAGES = torch.cat([images for images, _ in draw(8)])
EVERYTHING = plan_of(phase("everything", stem=0.01, middle=0.01, top=0.01))


class Witness(pl.Callback):
    """Writes down what the layers blend at each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        (share,) = {layer.blend for layer in blended(pl_module)}
        self.seen.append(share)


def blended(module):
    return [layer for layer in module.modules() if isinstance(layer, StandardisedGroupNorm)]


def make_module(freeze):
    backbone = make_backbone()
    swap_norm(backbone.trunk, partial(standardising, blend=0), calibrate=IMAGES)
    return Own(freeze, backbone=backbone)


def train(epochs, *more, until=0.5, **options):
    freeze, witness = FreezePlanCallback(EVERYTHING), Witness()
    module = make_module(freeze)
    return module, witness, lambda: fit(module, epochs, [freeze, BlendRamp(until=until), witness, *more], **options)


def test_it_starts_as_the_source_and_ends_as_plain_group_normalisation():
    source = make_backbone().eval()
    module, witness, run = train(4)
    torch.testing.assert_close(module.backbone.eval()(IMAGES), source(IMAGES), rtol=1e-4, atol=1e-4)
    module.train()
    run()
    assert witness.seen == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, *[1] * 6])  # 3 steps an epoch
    layer = blended(module)[0]
    values = torch.randn(2, layer.num_channels, 5, 5)
    scaled = values * layer.scale.view(1, -1, 1, 1) + layer.shift.view(1, -1, 1, 1)
    plain = torch.nn.functional.group_norm(scaled, layer.num_groups, layer.weight, layer.bias, layer.eps)
    torch.testing.assert_close(layer(values), layer.act(plain))


def test_the_last_step_reaches_one():
    module, witness, run = train(2, until=1.0)
    run()
    assert witness.seen == pytest.approx([number / 6 for number in range(6)])
    assert {layer.blend for layer in blended(module)} == {1.0}


def test_a_run_that_is_taken_up_goes_on_where_it_was(tmp_path):
    _, seen, run = train(4)
    run()
    saving = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True)
    _, before, run = train(4, saving, Killer(2, 1))
    with pytest.raises(Killed):
        run()
    _, after, run = train(4, resume=tmp_path / "last.ckpt")
    run()
    assert before.seen[:6] + after.seen == seen.seen


def test_what_cannot_be_blended_is_said_before_the_first_step():
    with pytest.raises(OptionError, match=r"until must be a share of the steps in \(0, 1\], got 0"):
        BlendRamp(until=0)
    freeze = FreezePlanCallback(EVERYTHING)
    with pytest.raises(OptionError, match="no fitted group normalisation to blend. Before training"):
        fit(Own(freeze), 1, [freeze, BlendRamp()])
    _, _, run = train(-1, max_steps=-1)
    with pytest.raises(OptionError, match="pass max_epochs or max_steps to the trainer"):
        run()
