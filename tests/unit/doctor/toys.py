"""Small networks and set-ups, healthy unless a test breaks them."""

from __future__ import annotations

import torch
from torch import nn

CLASSES = 4


def toy(*, norm: bool = True, dropout: float = 0.1) -> nn.Sequential:
    """Two convolutions and a head for 8 x 8 colour images."""
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 8, 3, padding=1), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU()]
    second = [nn.Conv2d(8, 16, 3, stride=2, padding=1), *([nn.BatchNorm2d(16)] if norm else []), nn.ReLU()]
    return nn.Sequential(
        *first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(16, CLASSES)
    )


def images(count: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise whose class is the colour that was brightened."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % CLASSES
    pixels = torch.randn(count, 3, 8, 8, generator=generator)
    for i, label in enumerate(labels.tolist()):
        if label < 3:
            pixels[i, label] += 2
    return pixels, labels


def sgd(model: nn.Module, lr: float = 0.1, **options: float) -> torch.optim.SGD:
    """Over the trainable parameters."""
    return torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=lr, momentum=0.9, **options)
