"""A training script, in pieces that a bug can be planted in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from planted.networks import SIZE, build_network
from planted.pictures import Pictures, Pipeline, Task
from transferkit.finetune.freeze import FreezePlan
from transferkit.finetune.plans import plan_for
from transferkit.finetune.recipe import make_optimizer
from transferkit.nn import TransferModel
from transferkit.options import Recipe
from transferkit.records import Preprocessing
from transferkit.strategies import Phase, Rule

__all__ = ["STRATEGIES", "Script", "write_script"]

BATCH = 16

WEIGHT_DECAY = 0.01

HEAD_RATE = 1e-3

RATE, SMALL_RATE = 1e-4, 1e-3
"""Of AdamW over all layers; of a network of some thousand parameters."""

STRATEGIES = ("head", "few_layers", "many_layers", "lp_ft", "norm_only", "bias_only", "surgical", "plain", "sgd")
"""The toolkit's strategies; "head": a classifier by gradient on a frozen backbone; "plain": all layers at one rate with
AdamW, "sgd" with SGD and momentum, as people write it."""


@dataclass
class Script:
    """All that a person's script holds; a bug changes some of it.

    Args:
        task: Its images.
        network, strategy: Names.
        model: Trained in place.
        expected: What the backbone was trained with.
        train_pipeline, held_back_pipeline: Prepare the images.
        serving_pipeline: Prepares images in use.
        optimizer: As in the loop.
        loss: (outputs, targets) -> scalar.
        served_names: Names of the outputs in use.
        workers: Of the training loader.
        shuffle: Whether that shuffles.
        zero_gradients: Whether the loop does.
        evaluates: Whether the loop calls eval() before evaluating.
        freeze: The plan that keeps frozen layers in evaluation mode; None for a loop without.
        in_step: Called in each step after backward().
        keeps_generator: Whether the dataset has a generator of its own.
        seed: Of the loader.
    """

    task: Task
    network: str
    strategy: str
    model: nn.Module
    expected: Preprocessing
    train_pipeline: Pipeline
    held_back_pipeline: Pipeline
    serving_pipeline: Pipeline
    optimizer: torch.optim.Optimizer
    loss: Callable[[Any, Any], torch.Tensor] = nn.functional.cross_entropy
    served_names: tuple[str, ...] = ()
    workers: int = 0
    shuffle: bool = True
    zero_gradients: bool = True
    evaluates: bool = True
    freeze: FreezePlan | None = None
    in_step: Callable[[], None] = field(default=lambda: None)
    keeps_generator: bool = False
    seed: int = 0

    @property
    def train(self) -> DataLoader[Any]:
        """The training loader."""
        generator = np.random.default_rng(0) if self.keeps_generator else None
        data = Pictures(*self.task.train, self.train_pipeline, generator)
        return DataLoader(data, batch_size=BATCH, shuffle=self.shuffle, num_workers=self.workers, drop_last=True)

    @property
    def held_back(self) -> DataLoader[Any]:
        """The evaluation loader."""
        return DataLoader(Pictures(*self.task.held_back, self.held_back_pipeline), batch_size=BATCH)

    def run(self, steps: int, observe: Callable[[torch.Tensor], None]) -> list[float]:
        """The loop: `steps` of training, evaluated in the middle and at the end; returns the losses."""
        torch.manual_seed(self.seed)
        losses = list[float]()
        self._train_mode()
        for step, (images, labels) in enumerate(_repeat(self.train, steps)):
            if self.zero_gradients:
                self.optimizer.zero_grad()
            loss = self.loss(self.model(images), labels)
            observe(loss.detach())
            losses.append(loss.item())
            loss.backward()
            self.in_step()
            self.optimizer.step()
            if step in (steps // 2, steps - 1):
                self._evaluate()
        return losses

    def _train_mode(self) -> None:
        self.model.train()
        if self.freeze is not None:
            self.freeze.set_modes()

    def _evaluate(self) -> None:
        if self.evaluates:
            self.model.eval()
        with torch.no_grad():
            for number, (images, _) in enumerate(self.held_back):
                self.model(images)
                if number:
                    break
        self._train_mode()


def _repeat(loader: DataLoader[Any], steps: int) -> Iterator[Any]:
    done = 0
    while done < steps:
        for batch in loader:
            yield batch
            done += 1
            if done == steps:
                return


def write_script(task: Task, network: str, strategy: str, *, pretraining: Task, seed: int = 0) -> Script:
    """A healthy script."""
    model = build_network(network, task.classes, pretraining=pretraining, seed=seed)
    wanted = model.preprocessing
    held_back = Pipeline(SIZE, wanted.mean, wanted.std)
    freeze, optimizer = _train_with(model, strategy, rate=SMALL_RATE if network == "tiny" else RATE)
    script = Script(
        task=task,
        network=network,
        strategy=strategy,
        model=model,
        expected=wanted,
        train_pipeline=replace(held_back, augment=True),
        held_back_pipeline=held_back,
        serving_pipeline=held_back,
        optimizer=optimizer,
        served_names=task.classes,
        freeze=freeze,
        seed=seed,
    )
    script._train_mode()
    return script


def _train_with(model: TransferModel, strategy: str, *, rate: float) -> tuple[FreezePlan | None, torch.optim.Optimizer]:
    if strategy in ("plain", "sgd"):
        groups = decayed_apart(model)
        if strategy == "sgd":
            return None, torch.optim.SGD(groups, lr=0.005, momentum=0.9)
        return None, torch.optim.AdamW(groups, lr=rate)
    if strategy == "head":
        rules = (Rule(stage="head", lr=HEAD_RATE), Rule(stage="*"))
        freeze = FreezePlan(model, [Phase(name="head", rules=rules)], norm="frozen", weight_decay=WEIGHT_DECAY)
    else:
        plan = plan_for(strategy, model.backbone, stage="top")
        freeze = FreezePlan(model, plan.phases, norm=plan.norm, weight_decay=WEIGHT_DECAY)
    freeze.start(len(freeze.phases) - 1)
    return freeze, make_optimizer(Recipe(), freeze.groups())


def decayed_apart(model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups: weights with decay, norms and biases without."""
    trained = [one for one in model.parameters() if one.requires_grad]
    return [
        {"params": [one for one in trained if one.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [one for one in trained if one.dim() <= 1], "weight_decay": 0.0},
    ]
