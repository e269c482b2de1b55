"""The backbone, image transforms and data sets of the contestants that write their own loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from peers.contestants.protocol import Job, Stopwatch, accuracy_of

SMALLEST_CROP = 0.5
"""Random crops cover this share of the image or more. torchvision's and timm's default, 0.08, is meant for ImageNet
from scratch and would cut the object out of many of these small images."""

EVALUATION_BATCH = 64


def describe(weights: Path) -> dict[str, Any]:
    """The backbone as the weights file describes it: architecture, mean, std, crop_pct, classes."""
    with safe_open(weights, framework="pt") as opened:
        described: dict[str, Any] = json.loads(opened.metadata()["backbone"])
    return described


def overlay(weights: Path) -> dict[str, Any]:
    """timm's pretrained_cfg_overlay: read the weights from this file, normalise as they were trained."""
    about = describe(weights)
    return {
        "file": str(weights),
        "hf_hub_id": None,
        "url": "",
        "mean": tuple(about["mean"]),
        "std": tuple(about["std"]),
        "crop_pct": about["crop_pct"],
        "num_classes": about["classes"],
    }


def load_network(weights: Path, classes: int) -> nn.Module:
    """timm's network with these weights and a new classifier; `classes=0`: its pooled features."""
    network: nn.Module = timm.create_model(
        describe(weights)["architecture"], pretrained=True, pretrained_cfg_overlay=overlay(weights), num_classes=classes
    )
    return network


def normalise(about: Mapping[str, Any]) -> transforms.Compose:
    """Picture to normalised tensor."""
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(about["mean"], about["std"])])


def test_transform(about: Mapping[str, Any], size: int) -> transforms.Compose:
    """The checkpoint's own geometry at this size: shorter side resized, centre cropped."""
    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.Compose(
        [
            transforms.Resize(round(size / about["crop_pct"]), bicubic),
            transforms.CenterCrop(size),
            normalise(about),
        ]
    )


def train_transform(about: Mapping[str, Any], size: int) -> transforms.Compose:
    """Random resized crop and flip."""
    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(SMALLEST_CROP, 1.0), interpolation=bicubic),
            transforms.RandomHorizontalFlip(),
            normalise(about),
        ]
    )


class Pictures(Dataset):  # type: ignore[type-arg]
    """Images of a split; each is decoded when it is first read and then stays in memory."""

    def __init__(self, job: Job, split: str, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.files, self.labels = job.files(split)
        self.transform = transform
        self._decoded: dict[int, Image.Image] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index not in self._decoded:
            self._decoded[index] = Image.open(self.files[index]).convert("RGB")
        return self.transform(self._decoded[index]), self.labels[index]


def training_batches(pictures: Pictures, job: Job) -> DataLoader:  # type: ignore[type-arg]
    """Shuffled batches, read in this process: the images are in memory after the first epoch."""
    return DataLoader(pictures, batch_size=job.batch, shuffle=True, generator=torch.Generator().manual_seed(job.seed))


def test_accuracy(network: nn.Module, pictures: Pictures) -> float:
    """Share of the images that the network names correctly; leaves it in training mode if it was."""
    training = network.training
    network.eval()
    answers: list[int] = []
    with torch.inference_mode():
        for images, _ in DataLoader(pictures, batch_size=EVALUATION_BATCH):
            answers += network(images.contiguous(memory_format=torch.channels_last)).argmax(1).tolist()
    network.train(training)
    return accuracy_of(answers, pictures.labels)


def train(
    network: nn.Module,
    batches: DataLoader,  # type: ignore[type-arg]
    test: Pictures,
    job: Job,
    watch: Stopwatch,
    optimizer: torch.optim.Optimizer,
    step: Callable[[int], None],
) -> None:
    """Cross-entropy over `job.epochs` epochs, evaluated after each.

    Args:
        step: Called after every optimizer step with the number of steps so far, to set the rates.
    """
    steps = 0
    for epoch in range(1, job.epochs + 1):
        network.train()
        for images, labels in batches:
            loss = nn.functional.cross_entropy(network(images.contiguous(memory_format=torch.channels_last)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
            step(steps)
        with watch.evaluation():
            accuracy = test_accuracy(network, test)
        watch.record(accuracy, f"epoch {epoch}")
        if watch.exceeds(job.budget):
            return
