"""Fine-tuning of all layers as people write it by hand: AdamW, cosine, flip and random crop, channels_last."""

from __future__ import annotations

import math
from typing import Any

import torch

from peers.contestants.images import (
    Pictures,
    describe,
    load_network,
    test_transform,
    train,
    train_transform,
    training_batches,
)
from peers.contestants.protocol import Job, Stopwatch, contest, seed_everything

LEARNING_RATE = 1e-4
"""Unless `--option lr=` gives another."""


def run(job: Job, watch: Stopwatch) -> dict[str, Any]:
    """Train everything at one rate."""
    rate = float(job.options.get("lr", LEARNING_RATE))
    seed_everything(job.seed, job.threads)
    about = describe(job.weights)
    network = load_network(job.weights, len(job.classes)).to(memory_format=torch.channels_last)
    pictures = Pictures(job, "train", train_transform(about, job.size))
    test = Pictures(job, "test", test_transform(about, job.size))
    batches = training_batches(pictures, job)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, job.epochs * len(batches))
    watch.ready()
    train(network, batches, test, job, watch, optimizer, lambda _: schedule.step())
    return {"batch": job.batch, "lr": rate, "steps": job.epochs * math.ceil(len(pictures) / job.batch)}


if __name__ == "__main__":
    contest(run)
