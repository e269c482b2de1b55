"""Trainers of one's own, alone or shared out among processes that Lightning starts; test_distributed.py starts this.

python own_trainer.py OUT DEVICES module|callback
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

import transferkit as tk
from transferkit.core.distributed import is_first
from transferkit.options import Recipe

IMAGES, BATCH, CLASSES, EPOCHS = 48, 16, 3, 4


class Own(pl.LightningModule):
    """Somebody's module, who shards it themselves."""

    def __init__(self, backbone: tk.Backbone, freeze: tk.FreezePlanCallback) -> None:
        super().__init__()
        self.network, self.freeze = nn.Sequential(backbone, nn.Linear(64, CLASSES)), freeze

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            fully_shard(self.network, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.freeze.groups(), momentum=0.9)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])


class Held(pl.Callback):
    """Notes how many numbers this process holds of weights, gradients and the optimizer's state after a step."""

    def on_before_zero_grad(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
        weights = list(module.parameters())
        kept = [weight.grad for weight in weights if weight.grad is not None]
        kept += [value for state in optimizer.state.values() for value in state.values() if value.ndim]
        parts = [getattr(tensor, "_local_tensor", tensor) for tensor in (*weights, *kept)]
        self.numbers = sum(part.numel() for part in parts)


def loader(devices: int) -> DataLoader[Any]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, IMAGES)
    images = rng.standard_normal((IMAGES, 3, 64, 64), dtype=np.float32)
    images[np.arange(IMAGES), labels] += 0.5
    data = TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
    # In order, which Lightning's own would not be: batches of all processes together are the same.
    mine = DistributedSampler(data, devices, rank=int(os.environ.get("LOCAL_RANK", "0")) % devices, shuffle=False)
    return DataLoader(data, batch_size=BATCH // devices, sampler=mine)


def main(out: str, count: str, what: str) -> None:
    devices = int(count)
    pl.seed_everything(0, verbose=False)
    backbone = tk.load_backbone("timm/test_vit", pretrained=False, image_size=64)
    held, freeze = Held(), tk.FreezePlanCallback("many_layers", stage="top", lr=1e-2)
    own: pl.LightningModule
    if what == "callback":
        own, callbacks = Own(backbone, freeze), [held, freeze]
    else:
        recipe = Recipe(average="ema", l2_sp=0.1, optimizer="sgd")
        own, callbacks = tk.TransferModule(backbone, "few_layers", classes=CLASSES, lr=1e-2, recipe=recipe), [held]
    strategy: Any = "auto"
    if devices > 1:
        strategy = pl.strategies.ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1)
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=devices, strategy=strategy, callbacks=callbacks, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
        use_distributed_sampler=False,
    )  # fmt: skip
    images = loader(devices)
    found: dict[str, Any] = {}
    if isinstance(own, tk.TransferModule):
        trainer.fit(own, images, images)  # Lightning judges two batches before the first step
        found["asking"] = [name for name, weight in own.named_parameters() if weight.requires_grad]
        trainer.test(own, images, verbose=False)
        # A different number of batches in each process.
        mine = Subset(images.dataset, range(IMAGES if is_first() else BATCH))
        found["probabilities"] = torch.cat(trainer.predict(own, DataLoader(mine, batch_size=BATCH)))
        trainer.save_checkpoint(f"{out}.ckpt")
        model = own.finish()
        assert model.backbone.trunk is backbone.trunk
        found["hooks"] = sum(len(module._forward_pre_hooks) for module in model.modules())
        found["state"] = model.state_dict()
    else:
        trainer.fit(own, images)
        found["state"] = {name: getattr(t, "full_tensor", lambda t=t: t)() for name, t in own.state_dict().items()}
    found["frozen"] = [name for name, weight in own.named_parameters() if not weight.requires_grad]
    found["numbers"] = held.numbers
    if is_first():
        torch.save(found, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
