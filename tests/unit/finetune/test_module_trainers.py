"""TransferModule in trainers of other precisions, strategies and packages, and with the data module."""

from __future__ import annotations

import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import transferkit as tk
from tests.unit.finetune.training_toys import (
    HEAD_NAMES,
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
from transferkit.core.errors import OptionError
from transferkit.options import Recipe


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_trainer_that_shards_another_way_is_refused_before_it_sets_anything_up(stage, monkeypatch):
    """Lightning makes none on a CPU, so this one only says that it shards."""
    module = make_module()
    module.trainer = make_trainer(1)
    module.setup(stage)
    monkeypatch.setattr(pl.Trainer, "strategy", pl.strategies.FSDPStrategy())
    with pytest.raises(OptionError, match=r"FSDPStrategy shards weights .* ModelParallelStrategy\(data_parallel"):
        module.setup(stage)


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
