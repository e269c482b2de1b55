"""Tasks drawn from random numbers: counts, angles, locations, textures. Only the class repeats between images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

from regret_tasks.task import CANVAS, Places, Sample

SYNTHETIC_TRAIN, SYNTHETIC_TEST = 150, 60
"""Images per class of the generated tasks."""

LARGE_SYNTHETIC_CLASSES = 12
"""Above this many classes the generated tasks have half as many images per class, to stay quick."""


def drawn_task(
    labels: Sequence[str], draw: Callable[[int, np.random.Generator], Image.Image]
) -> Callable[[Places, np.random.Generator], Iterator[Sample]]:
    """Samples of `draw(class, rng)`, the same number for every class."""
    share = 2 if len(labels) > LARGE_SYNTHETIC_CLASSES else 1

    def samples(places: Places, rng: np.random.Generator) -> Iterator[Sample]:
        for split, count in (("train", SYNTHETIC_TRAIN), ("test", SYNTHETIC_TEST)):
            for number, label in enumerate(labels):
                for index in range(count // share):
                    yield Sample(split=split, label=label, name=f"{index:03d}", image=draw(number, rng))

    return samples


def far_colour(from_colours: Sequence[Sequence[int]], rng: np.random.Generator) -> tuple[int, int, int]:
    """A colour that differs from each of the given ones by 90 levels or more in some channel."""
    while True:
        red, green, blue = map(int, rng.integers(0, 256, 3))
        if all(max(abs(a - b) for a, b in zip((red, green, blue), c, strict=True)) >= 90 for c in from_colours):
            return red, green, blue


def smooth(image: Image.Image, draw: Callable[[ImageDraw.ImageDraw, int], None]) -> Image.Image:
    """Draw on the image at four times its size, for edges without steps."""
    large = image.resize((image.width * 4, image.height * 4), Image.Resampling.BICUBIC)
    draw(ImageDraw.Draw(large), 4)
    return large.resize(image.size, Image.Resampling.BOX)


def draw_discs(count: int, rng: np.random.Generator) -> Image.Image:
    """`count` discs that do not touch, of random size, place and colour, on one random colour."""
    paper = far_colour([], rng)
    discs: list[tuple[float, float, float]] = []
    while len(discs) < count:
        radius = float(rng.uniform(4, 11))
        x, y = rng.uniform(radius + 1, CANVAS - radius - 1, 2)
        if all(math.hypot(x - a, y - b) > radius + r + 3 for a, b, r in discs):
            discs.append((float(x), float(y), radius))

    def put(pen: ImageDraw.ImageDraw, scale: int) -> None:
        for x, y, radius in discs:
            box = [scale * value for value in (x - radius, y - radius, x + radius, y + radius)]
            pen.ellipse(box, fill=far_colour([paper], rng))

    return smooth(Image.new("RGB", (CANVAS, CANVAS), paper), put)


def clouds(rng: np.random.Generator, *, cells: int, strength: float) -> Image.Image:
    """A background of random colour patches, about `cells` of them across."""
    patches = rng.normal(rng.uniform(90, 165, 3), strength, (cells, cells, 3)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(patches).resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)


def draw_bar(number: int, rng: np.random.Generator) -> Image.Image:
    """A bar at 15 degrees times `number`, give or take 5, on a background of patches."""
    angle = math.radians(15 * number + float(rng.uniform(-5, 5)))
    length, width = float(rng.uniform(18, 32)), int(rng.integers(4, 9))
    x, y = (float(value) for value in rng.uniform(36, CANVAS - 36, 2))
    colour = (255, 255, 255) if rng.random() < 0.5 else (0, 0, 0)
    dx, dy = length * math.cos(angle), -length * math.sin(angle)

    def put(pen: ImageDraw.ImageDraw, scale: int) -> None:
        ends = [scale * value for value in (x - dx, y - dy, x + dx, y + dy)]
        pen.line(ends, fill=colour, width=scale * width)

    return smooth(clouds(rng, cells=int(rng.integers(6, 20)), strength=25), put)


def draw_place(number: int, rng: np.random.Generator) -> Image.Image:
    """A disc in cell `number` of a 4 by 4 grid, on a background of patches."""
    cell = CANVAS / 4
    x, y = (cell * (index + 0.5) + float(rng.uniform(-5, 5)) for index in (number % 4, number // 4))
    radius, colour = float(rng.uniform(4, 9)), ((255, 255, 255) if rng.random() < 0.5 else (0, 0, 0))

    def put(pen: ImageDraw.ImageDraw, scale: int) -> None:
        pen.ellipse([scale * v for v in (x - radius, y - radius, x + radius, y + radius)], fill=colour)

    return smooth(clouds(rng, cells=int(rng.integers(4, 16)), strength=20), put)


TEXTURES = ("stripes", "checks", "dots", "bricks", "waves", "rings", "blotches", "grains", "rays", "grid")


def texture_height(number: int, rng: np.random.Generator) -> np.ndarray:
    """The texture's (CANVAS, CANVAS) height in [0, 1], at a random scale, angle and offset."""
    period, angle = float(rng.uniform(9, 22)), float(rng.uniform(0, math.pi))
    offset = rng.uniform(0, 100, 2)
    y, x = np.mgrid[:CANVAS, :CANVAS].astype(np.float64)
    u = ((x + offset[0]) * math.cos(angle) + (y + offset[1]) * math.sin(angle)) / period
    v = ((y + offset[1]) * math.cos(angle) - (x + offset[0]) * math.sin(angle)) / period
    centre = rng.uniform(0.2, 0.8, 2) * CANVAS
    radius, turn = np.hypot(x - centre[0], y - centre[1]), np.arctan2(y - centre[1], x - centre[0])
    row = np.floor(v)

    def noise(cells: int) -> np.ndarray:
        small = Image.fromarray(rng.normal(0.5, 0.25, (cells, cells)).astype(np.float32))
        return np.asarray(small.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC), np.float64)

    recipes: dict[str, Callable[[], np.ndarray]] = {
        "stripes": lambda: 0.5 + 0.5 * np.sin(2 * math.pi * u),
        "checks": lambda: (np.floor(u) + row) % 2,
        "dots": lambda: (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3) * 1.0,
        "bricks": lambda: ((v % 1 > 0.15) & ((u / 2 + 0.5 * (row % 2)) % 1 > 0.08)) * 1.0,
        "waves": lambda: 0.5 + 0.5 * np.sin(2 * math.pi * (u + 0.4 * np.sin(2 * math.pi * v / 2))),
        "rings": lambda: 0.5 + 0.5 * np.sin(2 * math.pi * radius / period),
        "blotches": lambda: (noise(int(rng.integers(6, 12))) > 0.5) * 1.0,
        "grains": lambda: noise(int(rng.integers(40, 90))),
        "rays": lambda: 0.5 + 0.5 * np.sin(turn * round(3 * period / 4)),
        "grid": lambda: np.maximum(u % 1 < 0.2, v % 1 < 0.2) * 1.0,
    }
    return recipes[TEXTURES[number]]().clip(0, 1)


def draw_texture(number: int, rng: np.random.Generator) -> Image.Image:
    """One of `TEXTURES` in two random colours, with a little noise."""
    low = far_colour([], rng)
    high = np.asarray(far_colour([low], rng), np.float64)
    height = texture_height(number, rng)[..., None]
    pixels = np.asarray(low) * (1 - height) + high * height + rng.normal(0, 6, (CANVAS, CANVAS, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
