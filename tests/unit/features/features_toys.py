"""Banks and backbones so small that every row can be worked out by hand."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from transferkit.features.bank import FeatureBank
from transferkit.features.shelf import Shelf
from transferkit.features.tables import Ids
from transferkit.nn import Backbone
from transferkit.records import BackboneSpec, Preprocessing

SIDE = 32
WIDTHS = {"early": 3, "top": 2}
WIDTH = sum(WIDTHS.values())
PLAIN = Preprocessing(size=SIDE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), interpolation="bilinear", origin="toy")


def name_images(*numbers: int) -> Ids:
    """One 32-character id per number."""
    return np.array([f"{number:032x}".encode() for number in numbers], dtype="S32").reshape(-1)


def rows_of(ids: Ids) -> npt.NDArray[np.float32]:
    """The row that belongs to each id, whoever writes it: (n, WIDTH), awkward floats on purpose."""
    numbers = np.array([int(name, 16) for name in ids], dtype=np.float64).reshape(-1, 1)
    return (np.sin(numbers + np.arange(WIDTH)) * 1e3 / 7).astype(np.float32)


def open_toy_shelf(bank: FeatureBank, **description: object) -> Shelf:
    return bank.shelf({"backbone": "toy", "image_size": SIDE, "pooling": "avg", **description}, WIDTHS)


def fill(shelf: Shelf, *numbers: int) -> Ids:
    """Write the rows of these images in one go."""
    ids = name_images(*numbers)
    with shelf.writer() as writer:
        writer.append(ids, rows_of(ids))
    return ids


def load_all(shelf: Shelf, ids: Ids) -> npt.NDArray[np.float32]:
    return shelf.table(ids).load(list(shelf.blocks))


def list_files(folder: Path) -> set[str]:
    """What lies in the folder, told by suffix; a bank at rest has nothing but .rows, .ids and meta.json."""
    return {path.suffix for path in folder.rglob("*") if path.is_file()} - {".lease"}


AT_REST = {".rows", ".ids", ".json"}


def make_network(seed: int = 0, *, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Three widths, batch norm, dropout and a classifier; statistics that are not the initial ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        blocks: list[nn.Module] = []
        for wide, narrow in ((3, 4), (4, 6), (6, 8)):
            norm = nn.BatchNorm2d(narrow)
            norm.running_mean = torch.randn(narrow)
            norm.running_var = torch.rand(narrow) + 0.5
            blocks.append(nn.Sequential(nn.Conv2d(wide, narrow, 3, 2, 1), norm, act(), nn.Dropout(0.5)))
        return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def make_backbone(
    network: nn.Module | None = None, *, name: str = "toy", preprocessing: Preprocessing = PLAIN
) -> Backbone:
    spec = BackboneSpec(
        name=name, source="module", architecture="toy", preprocessing=preprocessing, pretrained=False, num_classes=5
    )
    return Backbone(make_network() if network is None else network, spec)


def draw_images(count: int, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """(count, 3, SIDE, SIDE) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8)


def pool_by_hand(network: nn.Sequential, pixels: npt.NDArray[np.uint8], *, pooling: str) -> npt.NDArray[np.float32]:
    """All stages of `make_network`, layer after layer, in float64 and one image at a time."""
    exact = make_network().double().eval()
    exact.load_state_dict(network.state_dict())
    rows = []
    with torch.no_grad():
        for image in pixels:
            mean, std = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (PLAIN.mean, PLAIN.std))
            grid = ((torch.from_numpy(image).double() / 255 - mean) / std)[None]
            parts = []
            for block in list(exact)[:3]:
                grid = block(grid)
                flat = grid[0].flatten(1)
                parts += [flat.mean(dim=1)] if pooling == "avg" else [flat.mean(dim=1), flat.max(dim=1).values]
            rows.append(torch.cat(parts).numpy())
    return np.stack(rows).astype(np.float32)


class Reader:
    """Serves images by position, and counts who was asked for."""

    def __init__(self, images: npt.NDArray[np.generic]) -> None:
        self.images = images
        self.asked: Counter[int] = Counter()
        self._lock = threading.Lock()

    def __call__(self, index: int) -> npt.NDArray[np.generic]:
        with self._lock:
            self.asked[index] += 1
        return self.images[index]
