"""Whether images reach the network in use as they did in training: range, mean and scale, channel order, geometry,
sharpness."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from transferkit.core.errors import DataError
from transferkit.records import Symptom

__all__ = ["check_serving"]

ALIKE = 0.999
"""Share of variance explained from which on two versions of an image are the same picture."""

BETTER = 0.02
"""An explanation must explain this much more of the variance than none."""

FAINT, SAME_DETAIL = 0.01, 0.05
"""Share of the variance, and relative change in fine detail, below which a difference is only worth a note."""

SAME_SCALE, SAME_SHIFT = 0.02, 0.02
"""Largest deviation of a factor from 1, and of a shift from 0 in standard deviations, between equal pixels."""

ZOOMS = tuple(1.04**power for power in range(-10, 11))
"""Relative sizes that are tried, 0.68 to 1.48."""

COARSE = 8
"""Side of the grid on which values are compared, in cells."""

FLAT = 1e-3
"""Range of a border, in standard deviations of the images, below which it is padding."""


@dataclass(frozen=True)
class _Affine:
    """served = factor * trained + shift, per channel, and how much of the variance that explains."""

    factor: torch.Tensor  # (C,)
    shift: torch.Tensor  # (C,)
    explained: float


def check_serving(trained: torch.Tensor, served: torch.Tensor) -> tuple[Symptom, ...]:
    """Compare the same images as prepared for training (without augmentation) and for use.

    Args:
        trained: (N, C, H, W), what the network was trained on.
        served: (N, C, H', W'), what it is given now, image by image the same.

    Raises:
        DataError: The numbers of images or channels differ, or the images are constant.

    Example:
        >>> images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> [one.cause for one in check_serving(images, images.flip(1))]
        ['channel_order']
        >>> check_serving(images, images.clone())
        ()
    """
    if trained.dim() != 4 or served.dim() != 4 or trained.shape[:2] != served.shape[:2]:
        raise DataError(
            f"Expected the same images twice, (N, C, H, W), got shapes {tuple(trained.shape)} and "
            f"{tuple(served.shape)}."
        )
    trained, served = trained.double(), served.double()
    if not bool(torch.isfinite(trained).all() and torch.isfinite(served).all()):
        raise DataError("Some pixels are NaN or infinite.")
    if float(trained.std()) == 0 or float(served.std()) == 0:
        raise DataError("All pixels are equal: nothing can be compared.")
    return tuple(_compare_images(trained, served))


def _compare_images(trained: torch.Tensor, served: torch.Tensor) -> Iterator[Symptom]:
    if trained.shape != served.shape:
        yield _symptom(
            "size",
            f"Training images have {trained.shape[2]} x {trained.shape[3]} pixels, those in use {served.shape[2]} "
            f"x {served.shape[3]}.",
            "Resize as in training.",
        )
        served = F.interpolate(served, trained.shape[2:], mode="bilinear", antialias=True)
    plain = _fit(trained, served)
    best, swapped = plain, _fit(trained, served.flip(1))
    if trained.shape[1] == 3 and (
        swapped.explained > plain.explained + BETTER or swapped.explained > ALIKE > plain.explained
    ):
        best, served = swapped, served.flip(1)
        yield _symptom(
            "channel_order", "The channels come in reverse order (BGR for RGB).", "Convert to the order of training."
        )
    if best.explained < ALIKE:
        yield from _explain_geometry(trained, served, best)
    yield from _explain_values(trained, served, best)


def _fit(trained: torch.Tensor, served: torch.Tensor) -> _Affine:
    x, y = (one.transpose(0, 1).flatten(1) for one in (trained, served))
    x_mean, y_mean = x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
    variance = ((x - x_mean) ** 2).mean(dim=1).clamp_min(1e-12)
    factor = ((x - x_mean) * (y - y_mean)).mean(dim=1) / variance
    shift = y_mean.squeeze(1) - factor * x_mean.squeeze(1)
    residual = ((y - factor[:, None] * x - shift[:, None]) ** 2).mean()
    total = ((y - y_mean) ** 2).mean().clamp_min(1e-12)
    return _Affine(factor, shift, float(1 - residual / total))


def _explain_values(trained: torch.Tensor, served: torch.Tensor, found: _Affine) -> Iterator[Symptom]:
    """A difference in range, mean or scale; only told where the pictures are recognisably the same."""
    if found.explained < 0.5:
        return
    found = _fit(
        F.adaptive_avg_pool2d(trained, COARSE), F.adaptive_avg_pool2d(served, COARSE)
    )  # whatever the sharpness
    factor = float(found.factor.mean())
    deviations = trained.transpose(0, 1).flatten(1).std(dim=1)
    moved = (found.shift.abs() / (deviations * found.factor.abs()).clamp_min(1e-12)).max()
    tolerance = max(SAME_SCALE, 1 - found.explained)
    if abs(factor / 255 - 1) < 0.05 or abs(factor * 255 - 1) < 0.05:
        yield _symptom(
            "range",
            f"Values in use are {factor:.3g} times those of training: one is in [0, 255], the other in [0, 1].",
            "Divide by 255 in both, or in neither.",
        )
    elif float((found.factor - 1).abs().max()) > tolerance or float(moved) > max(SAME_SHIFT, 1 - found.explained):
        factors, shifts = (", ".join(f"{float(one):.3g}" for one in values) for values in (found.factor, found.shift))
        yield _symptom(
            "mean_std",
            f"Values in use are those of training times ({factors}) plus ({shifts}), per channel.",
            "Use the mean and standard deviation of training; they are saved with the model.",
        )


def _explain_geometry(trained: torch.Tensor, served: torch.Tensor, found: _Affine) -> Iterator[Symptom]:
    """Padding, a flip, another zoom, or other sharpness; the explanation that leaves the least unexplained."""
    if (padded := _has_flat_border(served)) != _has_flat_border(trained):
        which = ("use", "training") if padded else ("training", "use")
        yield _symptom(
            "padding",
            f"Images in {which[0]} have a border of one colour, those in {which[1]} have none.",
            "Use the same crop or letterbox in both.",
        )
        return
    flipped = _fit(trained, served.flip(3)).explained
    zoom, zoomed = max(((zoom, _zoomed(trained, served, zoom)) for zoom in ZOOMS), key=lambda pair: pair[1])
    if flipped > max(zoomed, found.explained) + BETTER:
        yield _symptom("flip", "Images in use are mirrored.", "Read them as in training.")
    elif zoom != 1 and zoomed > found.explained + BETTER * (1 - found.explained) and zoomed - found.explained > 0.005:
        yield _symptom(
            "crop",
            f"Images in use show the motif {zoom:.2f} times as large as in training.",
            "Use the resize and crop of training (crop_pct).",
        )
    else:
        ratio = _sharpness(served) / max(_sharpness(trained) * float(found.factor.abs().mean()), 1e-12)
        what = "blurred" if ratio < 1 else "sharper"
        yield _symptom(
            "interpolation",
            f"The pictures differ ({100 * (1 - found.explained):.1f} % of the variance); those in use are {what}: "
            f"{ratio:.2f} times the fine detail of training.",
            "Use the same interpolation, antialiasing and decoder.",
            # Saving a picture again as a JPEG of good quality changes this little, and hardly its detail.
            severity="note" if found.explained > 1 - FAINT and abs(ratio - 1) < SAME_DETAIL else "alarm",
        )


def _zoomed(trained: torch.Tensor, served: torch.Tensor, zoom: float) -> float:
    """How well training images explain those in use if the latter are scaled about their middle by 1 / zoom."""
    height, width = trained.shape[2:]
    size = (max(2, round(height / zoom)), max(2, round(width / zoom)))
    scaled = F.interpolate(served, size, mode="bilinear", antialias=True)
    inside = (min(height, size[0]), min(width, size[1]))
    return _fit(_middle(trained, inside), _middle(scaled, inside)).explained


def _middle(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    top, left = (images.shape[2] - size[0]) // 2, (images.shape[3] - size[1]) // 2
    return images[:, :, top : top + size[0], left : left + size[1]]


def _has_flat_border(images: torch.Tensor) -> bool:
    """Whether the outermost rows, or columns, of all images are one colour."""
    spread = float(images.std())
    edges = [images[:, :, [0, -1], :].flatten(2), images[:, :, :, [0, -1]].flatten(2)]
    return any(float((edge.amax(dim=(0, 2)) - edge.amin(dim=(0, 2))).max()) < FLAT * spread for edge in edges)


def _sharpness(images: torch.Tensor) -> float:
    """Standard deviation of the differences between neighbouring pixels."""
    return float((images[..., 1:] - images[..., :-1]).std())


def _symptom(cause: str, evidence: str, remedy: str, severity: Literal["alarm", "note"] = "alarm") -> Symptom:
    return Symptom(cause=cause, severity=severity, evidence=evidence, remedy=remedy)
