"""Image augmentation: the presets, and the choice of one by the number of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from transferkit.core.errors import OptionError, unknown_name
from transferkit.data.draws import drawing, one_thread
from transferkit.data.geometry import crop_offset
from transferkit.records import Preprocessing

__all__ = ["PRESETS", "Augmentation", "choose_preset"]

PRESETS = ("none", "light", "medium", "strong")

LIGHT_UP_TO = 20_000
"""Number of images below which "auto" is light: from there on BiT-HyperRule (Kolesnikov et al., ECCV 2020) regularises
by more than crops and flips."""

SHORT = 10
"""Epochs below which "auto" is light: strong augmentation helps in schedules of a hundred epochs and more (Wightman et
al., 2021, weaken it in shorter ones), not when a network sees each image a few times."""

LIGHT_ZOOM = 0.1
"""Largest deviation of a light crop's side from that of the checkpoint's crop, relative to it."""

CROPS = {"medium": ((0.4, 1.0), (4 / 5, 5 / 4)), "strong": ((0.25, 1.0), (3 / 4, 4 / 3))}
"""Preset -> range of the crop's area, relative to the stored picture, and of its width over its height."""

TURN = 10.0
SHEAR = 5.0
"""Degrees of rotation and shear in "medium", applied to half of the pictures: resampling smooths a picture a little,
so the other half skips it."""

TINT = 0.2
"""Range of the change of brightness, contrast and saturation in "medium". Not hue: it would take 4 ms at 224 px."""

ERASED = 0.25
"""Share of pictures in which "strong" erases a patch, as in timm's recipes."""

_Change = Callable[[torch.Tensor], torch.Tensor]


def choose_preset(preset: str, *, images: int, epochs: int | None = None) -> str:
    """The preset in use: "auto" becomes "light" for little data or a short schedule, else "medium".

    "auto" is never "strong": published fine-tuning recipes (BiT; Steiner et al., TMLR 2022) crop and flip, and use
    strong augmentation only for training from scratch.

    Args:
        preset: "auto" or one of `PRESETS`.
        images: N of the training images.
        epochs: Number of epochs; None if not known.

    Raises:
        OptionError: There is no such preset.

    Example:
        >>> choose_preset("auto", images=300), choose_preset("auto", images=50_000, epochs=30)
        ('light', 'medium')
    """
    if preset != "auto":
        return _known(preset)
    short = epochs is not None and epochs < SHORT
    return "light" if short or images < LIGHT_UP_TO else "medium"


def _known(preset: str) -> str:
    if preset not in PRESETS:
        raise OptionError(unknown_name("augmentation", preset, ("auto", *PRESETS)))
    return preset


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random augmentation of a training picture, deterministic for a given seed.

    | preset | random changes | 96 px | 224 px |
    |-|-|-|-|
    | none | nothing | 0 | 0 |
    | light | a crop of nearly the checkpoint's size, anywhere | 0.2 | 0.4 |
    | medium | a crop of 40-100 % of the area, rotation and shear, brightness, contrast, saturation | 0.8 | 2.0 |
    | strong | a crop of 25-100 %, TrivialAugmentWide, an erased patch | 0.6 | 1.6 |

    Milliseconds are per picture on one core, seeding included; a training step takes 10 to 25 ms at 96 px.

    Args:
        preset: One of `PRESETS`.
        preprocessing: The checkpoint's.
        flip: Whether half of the pictures are flipped horizontally. Wrong for digits, letters and hand signs
            (`flip_is_safe`).

    References:
        Müller and Hutter, ICCV 2021 (TrivialAugment); Zhong et al., AAAI 2020 (random erasing).

    Example:
        >>> from transferkit.core.random import draw_seed
        >>> half = (0.5, 0.5, 0.5)
        >>> wants = Preprocessing(size=16, mean=half, std=half, interpolation="bilinear", crop_pct=0.8)
        >>> light = Augmentation(preset="light", preprocessing=wants)
        >>> picture = torch.zeros(3, light.stored.size, light.stored.size, dtype=torch.uint8)
        >>> picture.shape, light(picture, draw_seed(0, 3, 7)).shape  # seed 0, epoch 3, image 7
        (torch.Size([3, 20, 20]), torch.Size([3, 16, 16]))
    """

    preset: str
    preprocessing: Preprocessing
    flip: bool = False

    def __post_init__(self) -> None:
        _known(self.preset)

    @property
    def changes(self) -> bool:
        """Whether it changes pictures at all."""
        return self.preset != "none" or self.flip

    @property
    def stored(self) -> Preprocessing:
        """Preprocessing of the pictures it takes: resized as the checkpoint's, but with a margin for the random crop.

        A larger picture would make small crops only slightly sharper: 1.25 times the side has 8 % more energy in its
        gradients.
        """
        wanted, margin = self.preprocessing, self._margin
        if margin == 0:
            return wanted
        side = wanted.size + 2 * margin
        return replace(wanted, size=side, crop_pct=side / wanted.resize_side)

    @property
    def _margin(self) -> int:
        """Pixels around the checkpoint's crop."""
        if self.preset == "none":
            return 0
        # Even: crop offsets are halves rounded to even, so only an even margin keeps `plain` on the same pixel.
        return max(0, 2 * ((self.preprocessing.resize_side - self.preprocessing.size) // 4))

    @property
    def still(self) -> Augmentation:
        """For evaluation on the same stored pictures: no random changes."""
        return replace(self, preset="none", flip=False)

    def __call__(self, picture: torch.Tensor, draw: int) -> torch.Tensor:
        """The picture, randomly augmented.

        Args:
            picture: (3, S', S') uint8, preprocessed as `stored`; or (3, H, W) float, already normalised.
            draw: A seed, from `draw_seed`.

        Returns:
            (3, S, S) uint8. Float pictures change only in geometry, within (3, H, W).
        """
        if self.preset == "none" and not self.flip:
            return self.plain(picture)
        shape = (int(picture.shape[-2]), int(picture.shape[-1]))
        change = _change(self, shape if picture.is_floating_point() else None)
        with drawing(draw), one_thread():
            return change(picture)

    def plain(self, picture: torch.Tensor) -> torch.Tensor:
        """(3, S', S') as stored -> (3, S, S), the checkpoint's crop; float pictures unchanged.

        Bit-identical to `to_pixels`, except with "border" padding, where it may be shifted by a pixel.
        """
        size = self.preprocessing.size
        if picture.is_floating_point() or picture.shape[-1] == size:
            return picture
        start = crop_offset(int(picture.shape[-1]), size)
        return picture[:, start : start + size, start : start + size]


@lru_cache(maxsize=16)
def _change(augmentation: Augmentation, shape: tuple[int, int] | None) -> _Change:
    """The transform for uint8 pictures; with a shape, for normalised float pictures of that shape.

    Built on first use, so that only the small `Augmentation` is sent to worker processes.
    """
    from torchvision.transforms import v2

    wanted, preset = augmentation.preprocessing, augmentation.preset
    # Not the default filter: bicubic keeps 81 % of the gradients' energy at 96 px where bilinear keeps 66 %.
    smooth = v2.InterpolationMode(_FILTERS.get(wanted.interpolation, wanted.interpolation))
    fill = [round(255 * value) for value in wanted.mean] if shape is None else 0
    steps: list[Any] = []
    if preset != "none":
        area, aspect = _crop(augmentation) if preset == "light" else CROPS[preset]
        side = wanted.size if shape is None else shape
        steps.append(v2.RandomResizedCrop(side, scale=area, ratio=aspect, interpolation=smooth))
    if augmentation.flip:
        steps.append(v2.RandomHorizontalFlip())
    if preset == "medium":
        turn = v2.RandomAffine(TURN, shear=SHEAR, interpolation=v2.InterpolationMode.BILINEAR, fill=fill)
        steps.append(v2.RandomApply([turn], p=0.5))
    if shape is None and preset == "medium":
        steps.append(v2.ColorJitter(TINT, TINT, TINT))
    if shape is None and preset == "strong":
        steps.append(v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR, fill=fill))
    if preset == "strong":
        steps.append(v2.RandomErasing(ERASED, value=fill))
    return v2.Compose(steps)


_FILTERS = {"lanczos": "bicubic"}
"""Filter that torch lacks -> the closest one it has."""


def _crop(augmentation: Augmentation) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ranges of area and aspect around the checkpoint's crop, so that objects are about as large as in evaluation."""
    share = augmentation.preprocessing.size / augmentation.stored.size
    low, high = share * (1 - LIGHT_ZOOM), min(1.0, share * (1 + LIGHT_ZOOM))
    return (low**2, high**2), (0.95, 1.05)
