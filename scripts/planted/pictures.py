"""The images of a planted script, and the pipelines that prepare them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.utils.data import Dataset

__all__ = ["SIDE", "Pictures", "Pipeline", "Task", "draw_task", "read_task"]

SIDE = 80
"""Side of the stored pictures, in pixels."""

GROUND_AND_PAINT = (((150, 60, 0), (256, 200, 140)), ((0, 0, 120), (120, 140, 256)))
"""Lowest and highest red, green and blue of grounds and of shapes."""

SUFFIXES = {".png", ".jpg", ".jpeg"}


@dataclass(frozen=True)
class Task:
    """Pictures with labels.

    Args:
        name: Of the task.
        classes: K names in label order.
        train, held_back: (N, SIDE, SIDE, 3) uint8 and (N,) int.
    """

    name: str
    classes: tuple[str, ...]
    train: tuple[np.ndarray, np.ndarray]
    held_back: tuple[np.ndarray, np.ndarray]


def read_task(folder: Path, *, images: int = 400, held_back: int = 120, seed: int = 0) -> Task:
    """Some of the pictures of a folder {train,test}/<class>/*, drawn class by class."""
    classes = sorted(one.name for one in (folder / "train").iterdir() if one.is_dir())
    rng = np.random.default_rng(seed)
    return Task(
        folder.name,
        tuple(classes),
        _read(folder / "train", classes, images, rng),
        _read(folder / "test", classes, held_back, rng),
    )


def _read(folder: Path, classes: list[str], most: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    pictures, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(one for one in (folder / name).rglob("*") if one.suffix.lower() in SUFFIXES)
        chosen = rng.permutation(len(files))[: max(2, most // len(classes))]
        pictures += [_square(files[one]) for one in chosen]
        labels += [label] * len(chosen)
    return np.stack(pictures), np.array(labels)


def _square(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        layered = image.convert("RGBA")
    white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
    white.alpha_composite(layered)
    return np.asarray(white.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def draw_task(classes: tuple[str, ...], *, images: int = 160, held_back: int = 80, seed: int = 0) -> Task:
    """Drawn shapes of any colour, size and place on grounds of any colour: one of five shapes a class."""
    rng = np.random.default_rng(seed)
    drawn = [
        (
            np.stack([_draw(one * len(classes) // count, rng) for one in range(count)]),
            np.arange(count) * len(classes) // count,
        )
        for count in (images, held_back)
    ]
    return Task("drawn", classes, *drawn)


def _draw(shape: int, rng: np.random.Generator) -> np.ndarray:
    # Warm grounds and cool shapes, so that red and blue are not the same.
    ground, paint = (tuple(int(one) for one in rng.integers(*limits)) for limits in GROUND_AND_PAINT)
    image = Image.new("RGB", (SIDE, SIDE), ground)
    draw = ImageDraw.Draw(image)
    side = int(rng.integers(SIDE // 4, SIDE // 2))
    left, top = (int(one) for one in rng.integers(2, SIDE - side - 2, 2))
    box = (left, top, left + side, top + side)
    if shape == 0:
        draw.ellipse(box, fill=paint)
    elif shape == 1:
        draw.rectangle(box, fill=paint)
    elif shape == 2:
        draw.polygon([(left, top + side), (left + side, top + side), (left + side // 2, top)], fill=paint)
    elif shape == 3:
        for offset in range(0, side, 8):
            draw.line((left, top + offset, left + side, top + offset), fill=paint, width=4)
    else:
        draw.ellipse(box, outline=paint, width=5)
    noisy = np.asarray(image) + rng.normal(0, 8, (SIDE, SIDE, 3))
    return noisy.clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Pipeline:
    """Picture -> the network's input, written as people write it.

    Args:
        size: Of the input.
        mean, std: Of the normalisation.
        reversed: BGR.
        bytes: Not divided by 255.
        augment: Random crop and flip; else the whole picture is resized.
        zoom: Share of the picture's side that the centre crop keeps.
        nearest: Resized without interpolation.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reversed: bool = False
    bytes: bool = False
    augment: bool = False
    zoom: float = 1.0
    nearest: bool = False

    def __call__(self, picture: np.ndarray, draw: Callable[[], float]) -> torch.Tensor:
        """(3, size, size) float of a (SIDE, SIDE, 3) uint8 picture."""
        image = Image.fromarray(picture)
        side = SIDE * self.zoom * (0.8 + 0.2 * draw() if self.augment else 1.0)
        left, top = ((SIDE - side) * (draw() if self.augment else 0.5) for _ in range(2))
        filtered = Image.Resampling.NEAREST if self.nearest else Image.Resampling.BILINEAR
        image = image.resize((self.size, self.size), filtered, box=(left, top, left + side, top + side))
        values = np.asarray(image, dtype=np.float32)
        if self.augment and draw() < 0.5:
            values = values[:, ::-1]
        values = values[..., ::-1] if self.reversed else values
        tensor = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))
        tensor = tensor if self.bytes else tensor / 255
        return (tensor - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]

    def without_augmentation(self) -> Pipeline:
        """The same for evaluation."""
        return replace(self, augment=False)


@dataclass
class Pictures(Dataset):  # type: ignore[type-arg]
    """A dataset as people write it.

    Args:
        pictures: (N, SIDE, SIDE, 3) uint8.
        labels: (N,) int.
        pipeline: Prepares each.
        own_generator: Random numbers of a generator that lives in the dataset, which workers copy; None draws from
            torch's.
    """

    pictures: np.ndarray
    labels: np.ndarray
    pipeline: Pipeline
    own_generator: np.random.Generator | None = field(default=None)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        draw = (lambda: float(torch.rand(()))) if self.own_generator is None else self.own_generator.random
        return self.pipeline(self.pictures[index], draw), int(self.labels[index])
