"""A linear classifier for gradient training, and an ensemble of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from transferkit.core.errors import OptionError
from transferkit.nn.model import TransferModel, normalise
from transferkit.records import Preprocessing

__all__ = ["Blend", "StandardisedLinear"]


class StandardisedLinear(nn.Module):
    """A linear layer on features standardised to mean 0 and total variance 1.

    Joined stages differ in scale by orders of magnitude and in width by thousands, so no single learning rate fits.
    With standardised features, a step of given size changes the logits by about the same amount for any input stage.
    `folded` is the same map as a plain layer on the original features.

    Args:
        linear: (D -> K) on the original features; the initial map is the same.
        mean: (D,) of the features.
        deviation: (D,) their standard deviations, >= 0.
        dropout: Dropout probability of the features in training, in [0, 1).

    Shape:
        (N, D) -> (N, K)

    Example:
        >>> plain = nn.Linear(3, 2)
        >>> head = StandardisedLinear(plain, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 1.0, 0.0])).eval()
        >>> features = torch.randn(5, 3)
        >>> torch.allclose(head(features), plain(features), atol=1e-5)
        True
        >>> torch.allclose(head.folded()(features), plain(features), atol=1e-5)
        True
    """

    FLOOR = 1e-3
    """Minimum standard deviation, as a share of the mean one: a constant feature is not amplified."""

    def __init__(self, linear: nn.Linear, mean: torch.Tensor, deviation: torch.Tensor, *, dropout: float = 0.0) -> None:
        super().__init__()
        mean, deviation = mean.to(linear.weight), deviation.to(linear.weight)
        # If all features are constant, they keep their scale.
        deviation = deviation.clamp(min=self.FLOOR * float(deviation.mean()) or 1.0)
        self.mean: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("scale", deviation * len(deviation) ** 0.5)
        self.dropout = nn.Dropout(dropout)
        self.linear = _like(linear)
        with torch.no_grad():
            self.linear.weight.copy_(linear.weight * self.scale)
            self.linear.bias.copy_(linear.bias + linear.weight @ self.mean)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, D) -> (N, K) logits."""
        logits: torch.Tensor = self.linear(self.dropout((features - self.mean) / self.scale))
        return logits

    def folded(self) -> nn.Linear:
        """The same map, without dropout, on the original features."""
        plain = _like(self.linear)
        with torch.no_grad():
            plain.weight.copy_(self.linear.weight / self.scale)
            plain.bias.copy_(self.linear.bias - plain.weight @ self.mean)
        return plain


def _like(linear: nn.Linear) -> nn.Linear:
    """A layer of that shape, on the same device, in the same precision."""
    return nn.Linear(linear.in_features, linear.out_features, device=linear.weight.device, dtype=linear.weight.dtype)


class Blend(nn.Module):
    """An ensemble of models with the same classes, whose logits are added.

    Args:
        members: The models, with their ensemble weights folded into their classifiers.

    Raises:
        OptionError: If their classes or preprocessing differ, or there are none.

    Shape:
        (N, 3, H, W) float, normalised -> (N, K) logits. (N, V, 3, H, W), V views of each image -> (N, K), their mean.
    """

    def __init__(self, members: Sequence[TransferModel]) -> None:
        super().__init__()
        if not members or len({member.classes for member in members}) != 1:
            raise OptionError("A blend needs at least one model, all with the same classes.")
        if len({member.preprocessing for member in members}) != 1:
            raise OptionError("A blend needs models with the same preprocessing: all take the same pictures.")
        self.members = nn.ModuleList(members)
        self.classes = members[0].classes
        self.task = members[0].task
        self.thresholds: tuple[float, ...] = ()

    @property
    def parts(self) -> tuple[TransferModel, ...]:
        """The members, typed."""
        return tuple(cast(TransferModel, member) for member in self.members)

    @property
    def preprocessing(self) -> Preprocessing:
        """The members' preprocessing."""
        return self.parts[0].preprocessing

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """(..., 3, H, W) uint8 in 0..255 -> float, normalised for the checkpoint."""
        return normalise(pixels, self.preprocessing)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) float, normalised, or (N, V, 3, H, W) -> (N, K) logits, the mean over the views."""
        logits = self.parts[0](images)
        for member in self.parts[1:]:
            logits = logits + member(images)
        return cast(torch.Tensor, logits)
