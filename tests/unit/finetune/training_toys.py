"""A network whose stages are told by the names of its parameters, images for it, and a quiet trainer."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import transferkit as tk
from tests.unit.nn.toy_networks import spec_of
from transferkit.finetune import TransferModule
from transferkit.nn import Backbone
from transferkit.strategies import HEAD, Phase, Plan, Rule

STAGES = ("stem", "middle", "top")
OWNERS = {"stem": "stem", "middle": "middle", "last": "top"}
"""First part of a path inside the toy's trunk -> the stage that it belongs to, by construction."""

SIDE, CLASSES = 16, 3

TRUNK = "model.backbone.trunk."
HEAD_NAMES = {"model.classifier.linear.weight", "model.classifier.linear.bias"}
"""Names in the state of a `TransferModule`."""

QUIET = (
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*you defined a `validation_step` but have no `val_dataloader`.*",
)


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Everything that can move or draw while it is in training mode."""
    return nn.Sequential(
        # Without a bias: in front of a batch's own mean it would get no gradient.
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Dropout(0.5),
    )


class Staged(nn.Module):
    """Three stages of 4, 6 and 8 channels, each with batch normalisation and dropout; one more dropout, outside of any
    module, at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.last = block(3, 4), block(4, 6), block(6, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        vectors = self.last(self.middle(self.stem(images))).mean((2, 3))
        return F.dropout(vectors, 0.5, self.training)


def make_backbone(seed: int = 0) -> Backbone:
    """Weights and statistics that are not the initial ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Staged()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = 0.3 * torch.randn(module.num_features)
                module.running_var = torch.rand(module.num_features) + 0.5
        return Backbone(network, spec_of(SIDE))


def stage_of(name: str) -> str:
    """The stage of a parameter or buffer of the trunk, read off its name."""
    return OWNERS[name.partition(".")[0]]


def phase(name: str, share: float = 1.0, **lrs: float) -> Phase:
    """Stages with their learning rates, by keyword; the others are frozen. The head learns unless it is named."""
    named = {HEAD: 0.05, **lrs}
    rest = [Rule(stage="*")] if set(STAGES) - set(lrs) else []
    return Phase(name=name, share=share, rules=(*(Rule(stage=stage, lr=lr) for stage, lr in named.items()), *rest))


def plan_of(*phases: Phase, norm: str = "keep") -> Plan:
    return Plan(strategy="made up", stages=("top",), closed_form=False, phases=phases, start="zero", norm=norm)


def head_then(**lrs: float) -> tuple[Phase, Phase]:
    """The head alone for half of the epochs, then these stages with it."""
    return phase("head", 0.5), phase("stages", 0.5, **lrs)


def make_module(*phases: Phase, norm: str = "keep", network: Any = None, **options: Any) -> TransferModule:
    """A module whose head is trained first and its last stage from the middle on, or by other phases."""
    plan = plan_of(*(phases or head_then(top=0.05)), norm=norm)
    return TransferModule(make_backbone() if network is None else network, plan, classes=CLASSES, **options)


def draw(steps: int = 3, size: int = 4, *, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of normalised noise, and labels that are no noise: the brightest channel."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(steps, size, 3, SIDE, SIDE, generator=generator)
    images += 0.5 * torch.randn(steps, size, 3, 1, 1, generator=generator)
    return [(batch, batch.mean((2, 3)).argmax(1)) for batch in images]


def loader(batches: Sequence[Any] | None = None) -> DataLoader[Any]:
    return DataLoader(list(draw() if batches is None else batches), batch_size=None)


def states(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights and buffers."""
    return copy.deepcopy(dict(module.state_dict()))


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names whose bits differ."""
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def trunk_names(backbone: Backbone, stages: Sequence[str], *, statistics: bool) -> set[str]:
    """Names of the trunk's parameters in some stages, with or without its running statistics."""
    return {
        name
        for name in backbone.trunk.state_dict()
        if stage_of(name) in stages and (statistics or not is_statistic(name))
    }


def trained(names: Iterable[str]) -> set[str]:
    """Names of the trunk's parameters and buffers, as the module's state has them."""
    return {f"{TRUNK}{name}" for name in names}


class Own(pl.LightningModule):
    """What a person writes: a backbone of ours, a head, an optimizer over the plan's groups, nothing else."""

    def __init__(self, freeze: tk.FreezePlanCallback, *, optimizer: str = "sgd", backbone: Backbone | None = None):
        super().__init__()
        self.backbone = (make_backbone() if backbone is None else backbone).without_head()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.head = nn.Linear(8, CLASSES)
        self.freeze_callback, self.optimizer_name = freeze, optimizer

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, labels = batch
        return F.cross_entropy(self.head(self.backbone(images)), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        groups = self.freeze_callback.groups()
        if self.optimizer_name == "adamw":
            return torch.optim.AdamW(groups)
        return torch.optim.SGD(groups, momentum=0.9)


class Killed(Exception):
    """What stops a run in the middle."""


class Killer(pl.Callback):
    """Raises before one step of one epoch."""

    def __init__(self, epoch: int, step: int = 1, *, error: Exception | None = None) -> None:
        self.at = (epoch, step)
        self.error = Killed() if error is None else error

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == self.at:
            raise self.error


def make_trainer(epochs: int, callbacks: Sequence[pl.Callback] = (), **options: Any) -> pl.Trainer:
    usual = {
        "max_epochs": epochs,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    with quiet():
        return pl.Trainer(callbacks=list(callbacks), **{**usual, **options})


def fit(
    module: pl.LightningModule,
    epochs: int,
    callbacks: Sequence[pl.Callback] = (),
    *,
    train: Any = None,
    held_back: Any = None,
    resume: Any = None,
    **options: Any,
) -> pl.Trainer:
    """A plain trainer's fit."""
    trainer = make_trainer(epochs, callbacks, **options)
    with quiet():
        trainer.fit(module, loader() if train is None else train, held_back, ckpt_path=resume, weights_only=False)
    return trainer


class quiet(warnings.catch_warnings):
    """Without Lightning's warnings of what is meant to be so here."""

    def __enter__(self) -> None:
        super().__enter__()
        for message in QUIET:
            warnings.filterwarnings("ignore", message)
