"""Networks and inputs of the tests of initialisation and of what follows a layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

WIDE = 600


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Functional(nn.Module):
    """Nonlinearities called as functions, one in place, a residual sum, and a layer that is used out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 3)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 1)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu_(self.norm(self.first(x)))
        x = F.silu(self.second(x) + x)
        x = torch.tanh(F.max_pool2d(self.third(x), 2))
        return self.last(x.mean(dim=(2, 3)))


class Applied(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class Packed(nn.Module):
    """Attention with one layer for query, key and value, as in timm."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, tokens, width = x.shape
        qkv = self.qkv(x).reshape(count, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        found = F.scaled_dot_product_attention(query, key, value)
        return self.proj(found.transpose(1, 2).reshape(count, tokens, width))


def deep(layers: int, nonlinearity: nn.Module) -> nn.Sequential:
    return nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(WIDE, WIDE), nonlinearity)))
