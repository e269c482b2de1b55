"""Networks small enough that their stages are known by reading them."""

from __future__ import annotations

import torch
from torch import nn

from transferkit.records import BackboneSpec, Preprocessing


def spec_of(size: int = 32, *, fixed_size: bool = False, native_size: int = 0) -> BackboneSpec:
    """What a zoo would say about a module that nobody has described."""
    plain = Preprocessing(size=size, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    return BackboneSpec(
        name="module/toy",
        source="module",
        architecture="toy",
        preprocessing=plain,
        pretrained=False,
        fixed_size=fixed_size,
        native_size=native_size,
    )


def conv_block(inputs: int, outputs: int, *, inplace: bool = False) -> nn.Sequential:
    """Halves the side; three children, so that it is itself a spine."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=inplace)
    )


class Pyramid(nn.Module):
    """Three named stages of 4, 8 and 16 channels at strides 2, 4 and 8, then average pooling; no classifier."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.stem = conv_block(3, 4, inplace=inplace)
        self.middle = conv_block(4, 8, inplace=inplace)
        self.last = conv_block(8, 16, inplace=inplace)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.stem(images))).mean((2, 3))


class SharedRelu(nn.Module):
    """As old network code does it: one activation module, in place, behind every convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for conv in (self.conv1, self.conv2, self.conv3):
            images = self.relu(conv(images))
        return images.mean((2, 3))


class ChannelsLast(nn.Module):
    """Linear layers over (N, H, W, C), as Swin has them."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Unfold(4, stride=4)
        self.embed = nn.Linear(48, 6)
        self.merge = nn.Linear(24, 10)
        self.widen = nn.Linear(10, 12)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        side = images.shape[-1] // 4
        grid = self.embed(self.patch(images).transpose(1, 2).unflatten(1, (side, side)))
        grid = grid.unflatten(1, (side // 2, 2)).unflatten(3, (side // 2, 2))
        return self.widen(self.merge(grid.transpose(2, 3).flatten(3))).mean((1, 2))


class Mixer(nn.Module):
    """One block of an isotropic network, residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens + self.mlp(self.norm(tokens))


class Isotropic(nn.Module):
    """Patches, `depth` equal blocks, a normalisation, then the first token: no average anywhere."""

    def __init__(self, depth: int, *, width: int = 8) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, stride=8)
        self.token = nn.Parameter(torch.ones(1, 1, width))
        self.blocks = nn.Sequential(*[Mixer(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.norm(self.blocks(tokens))[:, 0]


class Classifier(nn.Module):
    """A trunk and its linear classifier, in the order of most networks."""

    def __init__(self, trunk: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(self.trunk(images)))


class Wrapper(nn.Module):
    """Nothing but a network inside another module."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.inner = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner(images)


def two_norms(*, dropout: float = 0.0) -> nn.Sequential:
    """A classifier of 8-pixel images with batch normalisation at 1 and 5, the same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 2),
    )


def copy_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def stir(network: nn.Module, seed: int) -> None:
    """New weights and statistics, as a step of training makes them; integers count up."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator))
            else:
                tensor.add_(1)
