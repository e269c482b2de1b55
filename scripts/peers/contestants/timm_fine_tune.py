"""Fine-tuning as timm's train.py does it: its transforms, optimizer and scheduler factories, layer decay 0.7."""

from __future__ import annotations

from typing import Any

import torch
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from peers.contestants.images import (
    SMALLEST_CROP,
    Pictures,
    describe,
    load_network,
    test_transform,
    train,
    training_batches,
)
from peers.contestants.protocol import Job, Stopwatch, contest, seed_everything

LEARNING_RATE = 1e-3
"""Of the classifier; every group of layers below it has 0.7 times the rate of the one above."""

LAYER_DECAY = 0.7
WEIGHT_DECAY = 0.05
WARMUP_EPOCHS = 2


def run(job: Job, watch: Stopwatch) -> dict[str, Any]:
    """Train everything, lower layers more slowly."""
    seed_everything(job.seed, job.threads)
    about = describe(job.weights)
    network = load_network(job.weights, len(job.classes)).to(memory_format=torch.channels_last)
    transform = create_transform(
        job.size,
        is_training=True,
        scale=(SMALLEST_CROP, 1.0),
        mean=about["mean"],
        std=about["std"],
        interpolation="bicubic",
    )
    pictures = Pictures(job, "train", transform)
    test = Pictures(job, "test", test_transform(about, job.size))
    batches = training_batches(pictures, job)
    optimizer = create_optimizer_v2(
        network, opt="adamw", lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, layer_decay=LAYER_DECAY
    )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=job.epochs,
        warmup_epochs=WARMUP_EPOCHS,
        warmup_lr=1e-6,
        min_lr=1e-6,
        step_on_epochs=False,
        updates_per_epoch=len(batches),
    )
    watch.ready()
    train(network, batches, test, job, watch, optimizer, scheduler.step_update)
    return {"batch": job.batch, "lr": LEARNING_RATE, "layer_decay": LAYER_DECAY, "weight_decay": WEIGHT_DECAY}


if __name__ == "__main__":
    contest(run)
