"""Corrupted copies of finished tasks: the same labels, splits and names, other pixels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from regret_tasks.task import Places, Sample, SourceMissing


def add_noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Gaussian noise with a standard deviation of 50 levels."""
    pixels = np.asarray(image, np.float64)
    return Image.fromarray((pixels + rng.normal(0, 50, pixels.shape)).clip(0, 255).astype(np.uint8))


def blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Gaussian blur, its radius a twenty-fifth of the longest side."""
    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 25))


def fade(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A fifth of the contrast, then JPEG of quality 20."""
    kept = io.BytesIO()
    ImageEnhance.Contrast(image).enhance(0.2).save(kept, "JPEG", quality=20)
    return Image.open(io.BytesIO(kept.getvalue())).convert(image.mode)


def grey(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Greyscale, stretched to the same range in every image: neither hue nor brightness identifies a class."""
    return ImageOps.autocontrast(image.convert("L"))


def corrupted(
    base: str, corrupt: Callable[[Image.Image, np.random.Generator], Image.Image]
) -> Callable[[Places, np.random.Generator], Iterator[Sample]]:
    """Samples of a finished task, each corrupted; labels, splits and names stay."""

    def samples(places: Places, rng: np.random.Generator) -> Iterator[Sample]:
        root = places.out / base
        if not (root / "task.json").is_file():
            raise SourceMissing(f"it is a copy of '{base}', which is not finished; build that first.")
        for path in sorted(root.glob("t*/*/*.png")):
            with Image.open(path) as image:
                image.load()
            split, label, _ = path.relative_to(root).parts
            yield Sample(split=split, label=label, name=path.stem, image=corrupt(image, rng))

    return samples
