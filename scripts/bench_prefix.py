"""Time of an epoch of partial fine-tuning with and without cached activations, and whether the weights agree.

    python scripts/bench_prefix.py [--images 1000] [--sizes 96 128] [--cuts blocks.4 blocks.5] [--optimizers sgd adamw]
                                   [--epochs 2] [--rounds 3] [--batch 32] [--out benchmarks/prefix.json]

Two loops of Lightning over the same batches in the same order, without augmentation, from the same weights:

- "plain": the frozen stages in evaluation mode and without gradients, images decoded and in memory as uint8,
  channels_last: a careful implementation without a cache.
- "cached": the stages after the cut on activations from the feature bank, which `cache_activations` filled before.

Timed alternately, `--rounds` times; figures are medians of seconds per epoch (validation, logging and checkpoints are
off). "pays after" is the number of epochs after which the one-off cost of the cache is saved. Both loops compute the
same sums except for the order of additions; AdamW amplifies that to up to one step where a gradient is nearly zero.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from transferkit import load_backbone
from transferkit.core.provenance import environment
from transferkit.features import ActivationTable, FeatureBank, activation_bytes, cache_activations
from transferkit.nn import Tail, TransferModel, cut

MODEL = "packaged/tf_efficientnet_lite0"
CLASSES = 10
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-4),
}


class Images(NamedTuple):
    """(N, 3, S, S) uint8 and (N,) int64."""

    pixels: torch.Tensor
    labels: torch.Tensor


def crop_photos(count: int, size: int) -> Images:
    """Crops of scikit-learn's two photographs, one class per horizontal band."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photos = load_sample_images().images
    labels = np.arange(count) % CLASSES
    pixels = np.empty((count, 3, size, size), dtype=np.uint8)
    for number, label in enumerate(labels):
        photo = photos[label % 2]
        height, width = photo.shape[:2]
        left = int(rng.integers(0, width - size))
        top = int((label // 2) * (height - size) / (CLASSES // 2 - 1) * 0.9 + rng.integers(0, 20))
        pixels[number] = photo[top : top + size, left : left + size].transpose(2, 0, 1)
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels))


class Batches:
    """The same batches in the same order for both loops: a pure function of the epoch."""

    def __init__(self, load: Callable[[np.ndarray], Any], labels: torch.Tensor, size: int) -> None:
        self.load, self.labels, self.size, self.epoch = load, labels, size, 0

    def __len__(self) -> int:
        return len(self.labels) // self.size

    def __iter__(self) -> Iterator[tuple[Any, torch.Tensor]]:
        order = np.random.default_rng(self.epoch).permutation(len(self.labels))
        self.epoch += 1
        for number in range(len(self)):
            rows = order[number * self.size : (number + 1) * self.size]
            yield self.load(rows), self.labels[torch.from_numpy(rows)]


class LastStages(pl.LightningModule):
    """The stages after the cut and the head, in training; the others frozen, computed here or before."""

    def __init__(self, model: TransferModel, tail: Tail, optimizer: str, *, cached: bool) -> None:
        super().__init__()
        self.model, self.tail, self.optimizer_name, self.cached = model, tail, optimizer, cached
        self.learning = [*(model.backbone.trunk.get_submodule(path) for path in tail.modules_behind), model.classifier]
        model.requires_grad_(False)
        for part in self.learning:
            part.requires_grad_(True)
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def train(self, mode: bool = True) -> LastStages:
        super().train(mode)
        self.model.eval()
        for part in self.learning:
            part.train(mode)
        return self

    def features(self, images: torch.Tensor) -> torch.Tensor:
        if not self.cached:
            # Nothing before the cut requires gradients, so nothing is stored for it; `no_grad` would save nothing more.
            return self.model.features(self.model.normalise(images).contiguous(memory_format=torch.channels_last))
        pooled = self.tail.pooled_stages(images, pooling=self.model.pooling, names=self.model.stages)
        return torch.cat([pooled[name] for name in self.model.stages], dim=1)

    def training_step(self, batch: Any, _batch_idx: int) -> torch.Tensor:
        images, labels = batch
        torch.manual_seed(self.global_step)  # dropout and stochastic depth, alike in both loops
        loss = nn.functional.cross_entropy(self.model.classifier(self.features(images)), labels)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.optimizer_name]([p for p in self.parameters() if p.requires_grad])

    def on_train_epoch_start(self) -> None:
        self._begun = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        self.seconds.append(time.perf_counter() - self._begun)


def make_model(size: int) -> TransferModel:
    """The same network at each call."""
    torch.manual_seed(0)
    classes = [str(k) for k in range(CLASSES)]
    model = TransferModel(load_backbone(MODEL, image_size=size), stages=["top"], pooling="avg", classes=classes)
    return model.to(memory_format=torch.channels_last)


def fit(module: LastStages, batches: Batches, epochs: int) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, batches)


def compare(images: Images, stage: str, optimizer: str, options: argparse.Namespace) -> dict[str, object]:
    """Both loops, alternately."""
    size = images.pixels.shape[-1]
    ids = np.array([f"{number:032x}".encode() for number in range(len(images.labels))], dtype="S32")
    seconds: dict[str, list[float]] = {"plain": [], "cached": []}
    caching, weights_away, losses_away = [], [], []
    for number in range(options.rounds + 1):  # the first round warms up
        with tempfile.TemporaryDirectory() as folder:
            models = {name: make_model(size) for name in seconds}
            tails = {name: cut(model.backbone, stage) for name, model in models.items()}
            start = time.perf_counter()
            table = cache_activations(
                tails["cached"], lambda at: images.pixels[at].numpy(), ids, bank=FeatureBank(folder), progress=False
            )
            caching.append(time.perf_counter() - start)
            loads = {"plain": lambda rows: images.pixels[torch.from_numpy(rows)], "cached": activations_of(table)}
            losses = {}
            for name in seconds:
                module = LastStages(models[name], tails[name], optimizer, cached=name == "cached")
                fit(module, Batches(loads[name], images.labels, options.batch), options.epochs)
                seconds[name] += module.seconds if number else []
                losses[name] = np.array(module.losses)
        weights_away.append(distance(models["plain"], models["cached"]))
        losses_away.append(float(np.abs(losses["plain"] - losses["cached"]).max()))
    found = {name: statistics.median(times) for name, times in seconds.items()}
    cost = statistics.median(caching[1:])
    return {
        "image size": size,
        "cut behind": stage,
        "learning": list(tails["cached"].stages_behind),
        "optimizer": optimizer,
        "seconds per epoch": found,
        "speed-up": found["plain"] / found["cached"],
        "seconds for the cache, once": cost,
        "pays after": cost / (found["plain"] - found["cached"]),
        "bytes on disk": activation_bytes(tails["cached"], len(ids)),
        "kept as": table.dtype,
        "largest distance of a weight": max(weights_away),
        "largest distance of a step's loss": max(losses_away),
        "loss, first step and last": [losses["cached"][0], losses["cached"][-1]],
        "all": seconds,
    }


def activations_of(table: ActivationTable) -> Callable[[np.ndarray], torch.Tensor]:
    return lambda rows: table.batch(rows)[0]


def distance(one: nn.Module, other: nn.Module) -> float:
    """Largest absolute difference of any weight or running statistic."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 128])
    parser.add_argument("--cuts", nargs="+", default=["blocks.4", "blocks.5"])
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    rows = []
    for size in options.sizes:
        images = crop_photos(options.images, size)
        for stage in options.cuts:
            for optimizer in options.optimizers:
                rows.append(compare(images, stage, optimizer, options))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    found = {
        "script": "scripts/bench_prefix.py",
        "date": date.today().isoformat(),
        "machine": environment(seed=0, device="cpu"),
        "images": options.images,
        "threads": torch.get_num_threads(),
        "batch": options.batch,
        "epochs": options.epochs,
        "loops": rows,
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
