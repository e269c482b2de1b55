"""Other versions of a training picture: what may change in it, by preset, and which preset suits how many images."""

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
"""Images below which "auto" is light: where BiT-HyperRule (Kolesnikov et al., ECCV 2020) begins to regularise by more
than crops and flips."""

SHORT = 10
"""Epochs below which "auto" is light: strong distortion pays in schedules of a hundred epochs and more (Wightman et
al., 2021, weaken it as theirs get shorter), not where a network sees an image a few times."""

LIGHT_ZOOM = 0.1
"""How far the side of a light crop strays from that of the checkpoint's own, relative to it."""

CROPS = {"medium": ((0.4, 1.0), (4 / 5, 5 / 4)), "strong": ((0.25, 1.0), (3 / 4, 4 / 3))}
"""Preset -> range of the crop's area, relative to the stored picture, and of its width over its height."""

TURN = 10.0
SHEAR = 5.0
"""Degrees by which "medium" may turn and slant half of the pictures. Each such step smooths a picture a little, so the
other half is spared it."""

TINT = 0.2
"""By how much "medium" may change brightness, contrast and saturation. Not hue: it would take 4 ms at 224 px."""

ERASED = 0.25
"""Share of pictures in which "strong" erases a patch, as in timm's recipes."""

_Change = Callable[[torch.Tensor], torch.Tensor]


def choose_preset(preset: str, *, images: int, epochs: int | None = None) -> str:
    """The preset in use: "auto" is "light" for little data or a short schedule, else "medium"; others stay.

    "auto" is never "strong": published recipes that fine-tune (BiT; Steiner et al., TMLR 2022) crop and flip, and leave
    strong distortion to training from scratch.

    Args:
        preset: "auto" or one of `PRESETS`.
        images: N of the training images.
        epochs: Passes over them; None if not known.

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
    """What may change in a training picture; the same draw gives the same picture.

    | preset | what is drawn | 96 px | 224 px |
    |-|-|-|-|
    | none | nothing | 0 | 0 |
    | light | a crop of nearly the checkpoint's own size, anywhere | 0.2 | 0.4 |
    | medium | a crop of 40-100 % of the area, turn and slant, brightness, contrast, saturation | 0.8 | 2.0 |
    | strong | a crop of 25-100 %, TrivialAugmentWide, an erased patch | 0.6 | 1.6 |

    Milliseconds are per picture on one core, seeding included; a training step takes 10 to 25 ms at 96 px.

    Args:
        preset: One of `PRESETS`.
        preprocessing: The checkpoint's own.
        flip: Whether half of the pictures are mirrored. Digits, letters and hand signs must not be (`flip_is_safe`).

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
        """Whether anything may change at all."""
        return self.preset != "none" or self.flip

    @property
    def stored(self) -> Preprocessing:
        """How pictures are to be prepared for it: resized as the checkpoint wants, and cropped only by the draw.

        A larger picture would be sharper where the crop is small, but little: 1.25 times the side has 8 % more energy
        in its gradients.
        """
        wanted, margin = self.preprocessing, self._margin
        if margin == 0:
            return wanted
        side = wanted.size + 2 * margin
        return replace(wanted, size=side, crop_pct=side / wanted.resize_side)

    @property
    def _margin(self) -> int:
        """Pixels around the checkpoint's own crop."""
        if self.preset == "none":
            return 0
        # Even: crops begin at halves rounded to even, so an even step is what leaves `plain` on the same pixel.
        return max(0, 2 * ((self.preprocessing.resize_side - self.preprocessing.size) // 4))

    @property
    def still(self) -> Augmentation:
        """For evaluation on the same stored pictures: nothing is drawn."""
        return replace(self, preset="none", flip=False)

    def __call__(self, picture: torch.Tensor, draw: int) -> torch.Tensor:
        """Another version of the picture.

        Args:
            picture: (3, S', S') uint8, prepared as `stored`; or (3, H, W) float that is normalised already.
            draw: A seed, from `draw_seed`.

        Returns:
            (3, S, S) uint8. Of float pictures only the geometry changes, within (3, H, W).
        """
        if self.preset == "none" and not self.flip:
            return self.plain(picture)
        shape = (int(picture.shape[-2]), int(picture.shape[-1]))
        change = _change(self, shape if picture.is_floating_point() else None)
        with drawing(draw), one_thread():
            return change(picture)

    def plain(self, picture: torch.Tensor) -> torch.Tensor:
        """(3, S', S') as stored -> (3, S, S), the checkpoint's own crop; float pictures as they are.

        Equal, bit for bit, to what `to_pixels` gives, but where a "border" is padded: a pixel aside.
        """
        size = self.preprocessing.size
        if picture.is_floating_point() or picture.shape[-1] == size:
            return picture
        start = crop_offset(int(picture.shape[-1]), size)
        return picture[:, start : start + size, start : start + size]


@lru_cache(maxsize=16)
def _change(augmentation: Augmentation, shape: tuple[int, int] | None) -> _Change:
    """The transform of uint8 pictures; with a shape, that of normalised float pictures of that shape.

    Made when first used, so that what travels to worker processes is the few words of an `Augmentation`.
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
"""What comes nearest among the filters that torch has."""


def _crop(augmentation: Augmentation) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ranges of area and aspect around the checkpoint's own crop, so that things appear about as large as they will."""
    share = augmentation.preprocessing.size / augmentation.stored.size
    low, high = share * (1 - LIGHT_ZOOM), min(1.0, share * (1 + LIGHT_ZOOM))
    return (low**2, high**2), (0.95, 1.05)
