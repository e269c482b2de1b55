"""Backbones of the planted scripts, with the classifier that is put on them."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader

import transferkit as tk
from planted.pictures import Pictures, Pipeline, Task
from transferkit.nn import TransferModel
from transferkit.records import Preprocessing

__all__ = ["NETWORKS", "build_network"]

SIZE = 64

PLAIN = Preprocessing(size=SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear")

NETWORKS = ("lite0", "mobilenetv2", "resnet18", "vit")
"""EfficientNet-Lite0 and MobileNetV2 with their ImageNet weights; a ResNet-18 and a ViT of three million parameters for
which none can be had offline: they are trained for some hundred steps on drawn characters first."""

PACKAGED = {"lite0": "packaged/tf_efficientnet_lite0", "mobilenetv2": "packaged/mobilenetv2_100"}


def build_network(name: str, classes: tuple[str, ...], *, pretraining: Task, seed: int) -> TransferModel:
    """A backbone with a new head of zeros on its last stage.

    Args:
        name: One of `NETWORKS`, or "tiny": five convolutions, for tests.
        classes: K names.
        pretraining: Task on which the networks without published weights are trained first.
        seed: Of what is random.
    """
    torch.manual_seed(seed)
    if name in PACKAGED:
        backbone = tk.load_backbone(PACKAGED[name], image_size=SIZE)
    else:
        plain = _make(name)
        plain.load_state_dict(_pretrained(name, pretraining))
        backbone = tk.load_backbone(plain, image_size=SIZE, preprocessing=PLAIN)
    model = TransferModel(backbone.without_head(), stages=("top",), pooling="avg", classes=classes)
    nn.init.zeros_(model.linear.weight)
    nn.init.zeros_(model.linear.bias)
    return model


def _make(name: str) -> nn.Module:
    if name == "tiny":
        return _Tiny()
    if name == "resnet18":
        return timm.create_model("resnet18", num_classes=0)
    return timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=0,
        img_size=SIZE,
        patch_size=8,
        depth=6,
        class_token=False,
        global_pool="avg",
    )


class _Tiny(nn.Sequential):
    """Five convolutions with batch normalisation."""

    num_features = 64

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for width, (inside, outside) in zip((2, 2, 1, 2, 1), pairwise((3, 16, 32, 32, 64, 64)), strict=True):
            layers += [nn.Conv2d(inside, outside, 3, width, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


KNOWN: dict[str, dict[str, torch.Tensor]] = {}
"""Weights after a short training, by network."""


def _pretrained(name: str, task: Task) -> dict[str, torch.Tensor]:
    """Weights after a short training; those of large networks are kept in a temporary file."""
    if name not in KNOWN:
        kept = Path(tempfile.gettempdir()) / f"transferkit-planted-{name}-{task.name}.pt"
        if kept.is_file():
            KNOWN[name] = torch.load(kept, weights_only=True)
        else:
            KNOWN[name] = _pretrain(name, task, steps=60 if name == "tiny" else 400)
            if name != "tiny":
                torch.save(KNOWN[name], kept)
    return KNOWN[name]


def _pretrain(name: str, task: Task, *, steps: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    data = Pictures(*task.train, Pipeline(SIZE, PLAIN.mean, PLAIN.std, augment=True))
    loader = DataLoader(data, batch_size=32, shuffle=True, drop_last=True)
    trunk = _make(name)
    head = nn.Linear(trunk.num_features, len(task.classes))
    network = nn.Sequential(trunk, head)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    done = 0
    while done < steps:
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
            schedule.step()
            done += 1
            if done == steps:
                break
    return trunk.state_dict()
