"""Fine-tuning at every batch size with every treatment of normalisation: `bench_norm.py tune`.

All trials of a task start from the same weights and the same kind of head, fitted in closed form on the treated
network, and use the same number of images. All layers are trained, earlier ones at lower rates (`lp_ft`), at a tenth of
the
original rate for the batch size, or 3 or 10 times that: the rate is chosen on the first seed's test images, at a small
and at a large batch, for each treatment. There is no validation split: the result is the test accuracy of the averaged
weights.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from regret.running import pick, shrink
from torch.utils.data import DataLoader, TensorDataset

from transferkit.data import Data, open_data
from transferkit.decision import starting_rate
from transferkit.features import FeatureBank
from transferkit.finetune import BlendRamp, TransferModule
from transferkit.nn import Backbone, TransferModel, logits_of
from transferkit.nn.model import normalise
from transferkit.nn.norm import recalibrate_statistics, standardising, swap_norm
from transferkit.options import Recipe
from transferkit.probe import choose_head, fit_heads
from transferkit.records import TOP
from transferkit.strategies import STRATEGIES, PlanSettings
from transferkit.workflow.measure import read_features
from transferkit.workflow.session import load_backbone

PER_CLASS = 20
EPOCHS = 10
BATCHES = (32, 2, 1), (16, 8, 4)
"""In the order of the trials: all seeds of the first group, then those of the second."""
FACTORS = (1.0, 3.0, 10.0)
SMALL, LARGE = 2, 32
"""Batch sizes at which all rates are tried; other batch sizes use the rate of the nearer one."""
POOLING = "avg+max"

RECALIBRATED_AT = 50
"""Batch size when statistics are recomputed."""


class Treatment(NamedTuple):
    """The kind that is swapped in, if any, whether it needs images, the `norm` of the freeze plan, the batch sizes it
    is tried at, and whether it is phased in during training."""

    kind: str | None
    fitted: bool
    norm: str
    batches: tuple[int, ...] = (*BATCHES[0], *BATCHES[1])
    ramped: bool = False


TREATMENTS = {
    "BN by the batch": Treatment(None, False, "keep"),
    "BN recalibrated, then by the batch": Treatment("recalibrated", True, "keep", batches=(32,)),
    "BN frozen (auto)": Treatment(None, False, "frozen"),
    "alpha BN": Treatment("alpha", False, "keep"),
    "batch renormalisation": Treatment("renorm", False, "keep"),
    "GN, 32 groups, taken over": Treatment("group", False, "keep"),
    "GN, 1 group, fitted": Treatment("group", True, "keep"),
    "GN, 1 group, ramped in": Treatment("group", True, "keep", batches=(2, 32), ramped=True),
}


class Task(NamedTuple):
    """The images of a task at that many per class."""

    name: str
    data: Data
    images: torch.Tensor
    labels: torch.Tensor
    test: np.ndarray
    truth: np.ndarray


def open_task(folder: Path, backbone: Backbone) -> Task:
    data = open_data(folder, progress=False)
    small = shrink(data, PER_CLASS, 0)
    # Shuffled: in class order, a blend with the batch's statistics would reveal the class.
    small = pick(small, np.random.default_rng(0).permutation(len(small.items)))
    preprocessing = backbone.spec.preprocessing
    chosen, test = (
        np.stack([small.pixels(int(index), preprocessing) for index in small.indices(split)])
        for split in ("train", "test")
    )
    images = normalise(torch.from_numpy(chosen), preprocessing).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(small.labels[small.indices("train")])
    return Task(folder.name, small, images, labels, test, small.labels[small.indices("test")])


def treated(backbone: Backbone, treatment: Treatment, images: torch.Tensor) -> Backbone:
    changed = copy.deepcopy(backbone)
    if treatment.ramped:
        swap_norm(changed.trunk, partial(standardising, blend=0), calibrate=images)
    elif treatment.kind is not None:
        swap_norm(changed.trunk, treatment.kind, calibrate=images if treatment.fitted else None)
    return changed


class Start(NamedTuple):
    """Start of all trials of a task with a treatment: the treated network with a closed-form head, the
    moments of the head's input over the training images, and the test accuracy."""

    model: TransferModel
    moments: tuple[torch.Tensor, torch.Tensor]
    accuracy: float


def started(backbone: Backbone, task: Task, bank: FeatureBank, treatment: Treatment) -> Start:
    """The start of a treatment's trials; the head reads the top stage."""
    swapped = treated(backbone, treatment, task.images)
    model = TransferModel(swapped, stages=(TOP,), pooling=POOLING, classes=task.data.summary.classes)
    table = read_features(swapped, task.data, bank=bank, pooling=POOLING, progress=False).table
    stages = [stage.name for stage in swapped.stages]
    head = choose_head(
        fit_heads(
            STRATEGIES["linear_probe"](plan_settings("linear_probe"), stages),
            table.take(task.data.indices("train")),
            task.labels.numpy(),
            classes=len(task.data.summary.classes),
            head="auto",
        )
    )
    with torch.no_grad():
        model.linear.weight.copy_(torch.from_numpy(head.weight))
        model.linear.bias.copy_(torch.from_numpy(head.bias))
    return Start(model, moments(model, task), accuracy(model, task))


def plan_settings(strategy: str, *, lr: float = 0.0, norm: str = "keep") -> PlanSettings:
    return PlanSettings(strategy=strategy, stage=TOP, lr=lr, norm=norm)


def accuracy(model: TransferModel, task: Task) -> float:
    logits = logits_of(model, iter(task.test), device=torch.device("cpu")).numpy()
    return float((logits.argmax(axis=1) == task.truth).mean())


def chosen_factor(rows: Sequence[dict[str, Any]], treatment: str, batch: int, seed: int) -> float | None:
    """The rate with the best mean final accuracy of those tried on a task; None if none was tried."""
    treated = [row for row in rows if (row["treatment"], row["seed"]) == (treatment, seed)]
    tried = [row for row in treated if row["batch"] == (LARGE if batch > np.sqrt(SMALL * LARGE) else SMALL)]
    return max(tried or treated, key=best_of, default={}).get("factor")


def best_of(row: dict[str, Any]) -> float:
    """Final accuracy, with the running statistics or recomputed ones, whichever is better."""
    return max(row["after"], row.get("anew", 0.0))


def tune(start: Start, task: Task, treatment: Treatment, *, batch: int, seed: int, factor: float) -> dict[str, Any]:
    """Test accuracy before and after, and with recomputed statistics if training changed them; CPU seconds."""
    model = copy.deepcopy(start.model)
    recipe = Recipe(epochs=EPOCHS, batch_size=batch)
    rate = starting_rate(model.backbone.spec, optimizer=recipe.optimizer, batch_size=batch)
    asked = plan_settings("lp_ft", lr=factor * rate.lr, norm=treatment.norm)
    plan = STRATEGIES["lp_ft"](asked, [stage.name for stage in model.backbone.stages])
    pl.seed_everything(seed, verbose=False)
    module = TransferModule(model, plan, recipe=recipe, moments=start.moments, seed=seed)
    module = module.to(memory_format=torch.channels_last)
    loader = DataLoader(TensorDataset(task.images, task.labels), batch_size=batch, shuffle=True, drop_last=True)
    began = time.process_time()
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=recipe.clip, callbacks=[BlendRamp()] if treatment.ramped else [],
    )  # fmt: skip
    trainer.fit(module, loader)
    seconds = time.process_time() - began
    model = module.finish()
    found = {"before": start.accuracy, "after": accuracy(model, task)}
    if treatment.norm == "keep" and recalibrate_statistics(model.train(), task.images.split(RECALIBRATED_AT)):
        found["anew"] = accuracy(model, task)
    return {**{name: round(share, 4) for name, share in found.items()}, "lr": asked.lr, "seconds": round(seconds, 1)}


@torch.no_grad()
def moments(model: TransferModel, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and deviations of the head's input over the training images."""
    model.eval()
    features = torch.cat([model.features(part) for part in task.images.split(32)])
    return features.mean(dim=0), features.std(dim=0, correction=0)


def trials(
    model: str,
    size: int,
    folders: Sequence[Path],
    seeds: Sequence[int],
    folder: str | None,
    rows: Sequence[dict[str, Any]],
) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    """The trials, and the function that runs each: rates with the first seed, then all batch sizes, extremes first.

    Args:
        folder: Of the feature bank.
        rows: Results of earlier trials, extended as trials are run.
    """
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    backbone, bank = load_backbone(model, image_size=size), FeatureBank(folder)
    tasks = {folder.name: open_task(folder, backbone) for folder in folders}
    start = cache(lambda task, treatment: started(backbone, tasks[task], bank, TREATMENTS[treatment]))

    def trial(task: str, treatment: str, batch: int, seed: int, factor: float) -> dict[str, Any]:
        return tune(start(task, treatment), tasks[task], TREATMENTS[treatment], batch=batch, seed=seed, factor=factor)

    ends = ((seed, task, batch, FACTORS) for seed in seeds[:1] for task in tasks for batch in (LARGE, SMALL))
    table = ((seed, task, batch, ()) for part in BATCHES for seed in seeds for task in tasks for batch in part)
    for seed, task, batch, factors in (*ends, *table):
        for treatment in TREATMENTS:
            if batch not in TREATMENTS[treatment].batches:
                continue
            mine = [row for row in rows if row["task"] == task]
            for factor in factors or [chosen_factor(mine, treatment, batch, seeds[0])]:
                what = {"task": task, "treatment": treatment, "batch": batch, "seed": seed, "factor": factor}
                yield what, partial(trial, **what)
