"""Whether images reach the network in use as they did in training: range, mean and scale, channel order, geometry,
sharpness."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F

from transferkit.core.errors import DataError
from transferkit.doctor.serving_areas import Fill, count_padded, find_fill
from transferkit.doctor.serving_geometry import (
    Alignment,
    align_layout,
    align_place,
    align_turns,
    find_others,
    likeness,
    turned_sides,
)
from transferkit.doctor.serving_values import (
    are_bytes,
    best_order,
    colour_share,
    constants_follow,
    curve_residual,
    fit_line,
    levels,
    mix_residual,
    other_constants,
    own_line_residual,
    quantisation_error,
)
from transferkit.records import Symptom

__all__ = ["check_serving"]

ALIKE = 0.999
"""Share of variance explained from which on two versions of an image are the same picture."""

BETTER = 0.02
"""Another order of channels must explain this much more of the variance."""

FAINT, SAME_DETAIL = 0.01, 0.05
"""Share of the variance, and relative change in fine detail, below which a difference is only worth a note."""

SAME_SCALE, SAME_SHIFT = 0.02, 0.02
"""Largest deviation of a factor from 1, and of a shift from 0 in standard deviations, between equal pixels."""

LOOSE_SCALE, LOOSE_SHIFT = 0.25, 0.4
"""The same for grey pictures, whose channels have lost their own means and scales, for few levels, whose steps move
values, and for crops, which are undone to a few percent only."""

COARSE = 8
"""Side of the grid on which values are compared, in cells."""

PADDED = 4
"""One image of so many must have a border that the other version has not."""

FAINTEST = 0.1
"""Channels that vary less than this share of the one that varies most say little about factors and shifts."""

ROUNDING = 4.0
"""Largest difference, in variances of rounding to even levels: palettes are uneven, and channels differ in range."""

GREY, COLOURED = 1e-4, 5e-3
"""Shares of the variance that channels do not have in common, of grey pictures and of coloured ones."""

SHIFTED = 0.98
"""Likeness from which on a shift explains everything."""

REST = 1 / 3
"""Share of what a line leaves unexplained that a curve, or a line per image, may leave."""

FEW_LEVELS, FEWER = 64, 4
"""So many distinct values or less, in one version this many times fewer than in the other, are quantisation."""


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
        alignment = _match_sides(trained, served)
        yield _size_symptom(trained, served, alignment)
        served = alignment.served
    if (fill := find_fill(trained, served)) is not None:
        yield _fill_symptom(fill)
        return
    before, after = count_padded(trained, served)
    if PADDED * max(before, after) >= len(trained) and not _is_moved(trained, served, after > before):
        yield _padding_symptom(before, after, len(trained))
        # The picture inside is smaller, so little can be told of its values.
        values = _explain_values(trained, served, is_same_place=False)
        yield from (one for one in values if one.cause == "range")
        return
    found = list[Symptom]()
    for align in (align_layout, align_turns, align_place):
        alignment = align(trained, served)
        # Others may look like a crop or shift by chance.
        if alignment.cause in ("crop", "shift") and _mostly_others(alignment):
            continue
        if alignment.cause:
            found.append(_place_symptom(alignment))
        trained, served = alignment.trained, alignment.served
        if alignment.cause == "layout":
            yield from found  # channels were mixed in every step since
            return
    causes = {one.cause for one in found}
    lost, elsewhere = find_others(trained, served)
    if bool(lost.any()) and (elsewhere or not (_quantised(trained, served) or "crop" in causes)):
        found.append(_others_symptom(lost, elsewhere))
        trained, served = trained[~lost], served[~lost]
    yield from found
    if float(lost.double().mean()) < 0.5:
        yield from _explain_colours(trained, served, is_same_place="crop" not in causes)


def _explain_colours(trained: torch.Tensor, served: torch.Tensor, *, is_same_place: bool) -> Iterator[Symptom]:
    colours = [colour_share(one) for one in (trained, served)]
    if min(colours) < GREY and max(colours) > COLOURED:
        yield from _explain_grey(trained, served, served_is_grey=colours[1] < colours[0])
        return
    if max(colours) > COLOURED:
        order, plain = best_order(trained, served), fit_line(trained, served).explained
        ordered = fit_line(trained, served[:, list(order)]).explained
        if _is_mixed(trained, served, 1 - ordered):
            yield _TONES["colour_space"]
            return
        is_clear = ordered > plain + BETTER or ordered > ALIKE > plain or 1 - ordered < REST * (1 - plain)
        if order != (0, 1, 2) and is_clear:
            served = served[:, list(order)]
            yield _order_symptom(order)
            if constants_follow(line := fit_line(trained, served), order):
                served = (served - line.shift[:, None, None]) / line.factor[:, None, None]
    elif (constants := other_constants(trained, served)) is not None:
        yield _order_symptom(constants)
        return
    yield from _explain_values(trained, served, is_same_place=is_same_place)


def _is_mixed(trained: torch.Tensor, served: torch.Tensor, left: float) -> bool:
    """Whether only sums of channels explain what a line per channel, in the best order, or a curve leaves."""
    if left < 1 - ALIKE:
        return False
    others = min(left, curve_residual(trained, served), own_line_residual(trained, served))
    return mix_residual(trained, served) < REST * others


def _is_moved(trained: torch.Tensor, served: torch.Tensor, is_padded: bool) -> bool:
    """Whether a shift, or a closer crop, alone explains the images in use; either may move a motif to the border. So
    may another layout of axes."""
    if align_layout(trained, served).cause:
        return True
    found = align_place(trained, served)
    moves = ("shift",) if is_padded else ("shift", "crop")
    return found.cause in moves and float(likeness(found.trained, found.served).mean()) > SHIFTED


def _fill_symptom(fill: Fill) -> Symptom:
    colours = [", ".join(f"{value:.3g}" for value in colour) for colour in (fill.trained, fill.served)]
    return _symptom(
        "background",
        f"{100 * fill.share:.0f} % of the pixels, at a border, have the colour ({colours[0]}) in training and "
        f"({colours[1]}) in use; all others are equal.",
        "Put transparent areas on the same colour in both (convert('RGB') shows what lies below them), and "
        "pad with the same colour.",
    )


def _padding_symptom(before: int, after: int, images: int) -> Symptom:
    which = ("use", "training") if after > before else ("training", "use")
    count = max(before, after)
    some = "Images" if count == images else f"{count} of {images} images"
    return _symptom(
        "padding",
        f"{some} in {which[0]} have a border of one colour, those in {which[1]} have none.",
        "Use the same crop or letterbox in both.",
    )


def _match_sides(trained: torch.Tensor, served: torch.Tensor) -> Alignment:
    if trained.shape[2:] == served.shape[:1:-1] and (alignment := turned_sides(trained, served)) is not None:
        return alignment
    return Alignment(trained, F.interpolate(served, trained.shape[2:], mode="bilinear", antialias=True))


def _size_symptom(trained: torch.Tensor, served: torch.Tensor, alignment: Alignment) -> Symptom:
    (height, width), (other, across) = trained.shape[2:], served.shape[2:]
    if (other, across) == (width, height):
        return _symptom(
            "swapped_sides",
            f"Height and width are swapped: training images have {height} x {width} pixels, those in use {other} x "
            f"{across}; they are {alignment.words or 'squeezed to that'}.",
            "Pass (height, width); OpenCV and Pillow take (width, height).",
        )
    return _symptom(
        "size",
        f"Training images have {height} x {width} pixels, those in use {other} x {across}.",
        "Resize as in training.",
    )


def _order_symptom(order: tuple[int, ...]) -> Symptom:
    named = "reverse order (BGR for RGB)" if order == (2, 1, 0) else f"another order: {', '.join(map(str, order))}"
    return _symptom("channel_order", f"The channels come in {named}.", "Convert to the order of training.")


def _place_symptom(alignment: Alignment) -> Symptom:
    evidence = {
        "layout": f"The numbers of images in use are read {alignment.words}.",
        "shift": f"Images in use lie {alignment.words}.",
        "crop": f"Images in use show the motif {alignment.words} times as large as in training.",
    }
    remedies = {
        "layout": "Permute the axes instead of reshaping.",
        "rotation": "Turn images as in training; apply the camera's EXIF orientation in both or in neither.",
        "shift": "Use the crop of training: same place, same rounding.",
        "crop": "Use the resize and crop of training (crop_pct).",
    }
    return _symptom(
        alignment.cause,
        evidence.get(alignment.cause, f"Images in use {alignment.words}."),
        remedies.get(alignment.cause, "Read them as in training."),
    )


def _mostly_others(alignment: Alignment) -> bool:
    return float(find_others(alignment.trained, alignment.served)[0].double().mean()) > 0.5


def _others_symptom(lost: torch.Tensor, elsewhere: int) -> Symptom:
    where = f"{elsewhere} of them are found at another place of the list" if elsewhere else "they are found nowhere"
    return _symptom(
        "other_images",
        f"{int(lost.sum())} of {len(lost)} images in use are not those of training at the same place: {where}.",
        "Compare the same files in the same order (no shuffling).",
    )


def _explain_grey(trained: torch.Tensor, served: torch.Tensor, *, served_is_grey: bool) -> Iterator[Symptom]:
    which = ("use", "training") if served_is_grey else ("training", "use")
    yield _symptom(
        "greyscale",
        f"Images in {which[0]} are grey (three equal channels), those in {which[1]} have colours.",
        "Read colours in both, or in neither.",
    )
    pair = [one.mean(dim=1, keepdim=True) for one in (trained, served)]
    yield from _explain_line(*pair, scale=LOOSE_SCALE, shift=LOOSE_SHIFT)


def _explain_values(trained: torch.Tensor, served: torch.Tensor, *, is_same_place: bool) -> Iterator[Symptom]:
    """A difference in values; only told where the pictures are recognisably the same."""
    left = 1 - fit_line(trained, served).explained
    is_quantised = False
    if is_same_place and (is_quantised := _quantised(trained, served)):
        yield _quantisation_symptom(levels(trained), levels(served))
    if left > 1 - ALIKE and not is_quantised and (cause := _other_than_line(trained, served, left)):
        yield _TONES[cause]
        return
    if left > 1 - ALIKE and is_same_place and not is_quantised:
        yield _explain_sharpness(trained, served, left)
    is_loose = is_quantised or not is_same_place
    if left < 0.5:
        yield from _explain_line(
            trained,
            served,
            scale=max(LOOSE_SCALE if is_loose else SAME_SCALE, left),
            shift=max(LOOSE_SHIFT if is_loose else SAME_SHIFT, left),
        )


def _other_than_line(trained: torch.Tensor, served: torch.Tensor, left: float) -> str | None:
    """Which of a curve and a line per image explains most of what a line does not."""
    residuals = {"gamma": curve_residual(trained, served), "per_image_scale": own_line_residual(trained, served)}
    best = min(residuals, key=lambda cause: residuals[cause])
    return best if residuals[best] < REST * left else None


def _explain_line(trained: torch.Tensor, served: torch.Tensor, *, scale: float, shift: float) -> Iterator[Symptom]:
    """Another range, mean or scale."""
    coarse = [F.adaptive_avg_pool2d(one, COARSE) for one in (trained, served)]  # whatever the sharpness
    found = fit_line(*coarse)
    factor = float(found.factor.mean())
    fine, deviations = (one.transpose(0, 1).flatten(1).std(dim=1) for one in (trained, coarse[0]))
    # A channel that hardly varies has no factor of its own, and any shift is large beside its deviation.
    typical = deviations.clamp_min(FAINTEST * fine.max())
    # At the mean: where it lies far from 0, a slightly wrong factor makes a large shift.
    means = [one.mean(dim=(0, 2, 3)) for one in coarse]
    moved = ((means[1] - means[0]).abs() / typical.clamp_min(1e-12)).max()
    scaled = ((found.factor - 1).abs() * deviations / typical.clamp_min(1e-12)).max()
    tolerance, farthest = max(scale, 1 - found.explained), max(shift, 1 - found.explained)
    if abs(factor / 255 - 1) < 0.05 or abs(factor * 255 - 1) < 0.05:
        yield _symptom(
            "range",
            f"Values in use are {factor:.3g} times those of training: one is in [0, 255], the other in [0, 1].",
            "Divide by 255 in both, or in neither.",
        )
    elif are_bytes(trained) != are_bytes(served):
        which = ("use", "training") if are_bytes(served) else ("training", "use")
        yield _symptom(
            "range",
            f"Values in {which[0]} are in [0, 255], those in {which[1]} are normalised ({factor:.3g} times as large).",
            "Scale to [0, 1] and normalise in both, or in neither.",
        )
    elif float(scaled) > tolerance or float(moved) > farthest:
        factors, shifts = (", ".join(f"{float(one):.3g}" for one in values) for values in (found.factor, found.shift))
        inverted = " Light and dark are swapped." if factor < 0 else ""
        yield _symptom(
            "mean_std",
            f"Values in use are those of training times ({factors}) plus ({shifts}), per channel.{inverted}",
            "Use the mean and standard deviation of training; they are saved with the model.",
        )


def _quantised(trained: torch.Tensor, served: torch.Tensor) -> bool:
    """Whether one version has few levels, far fewer than the other, and differs from it by little more than that."""
    (few, rough), (many, _) = sorted(((levels(one), k) for k, one in enumerate((trained, served))))
    if few > FEW_LEVELS or many < FEWER * few:
        return False
    pair = (served, trained) if rough == 0 else (trained, served)
    left = (1 - fit_line(*pair).explained) * float(pair[1].var())
    return left < ROUNDING * quantisation_error(pair[1])


def _quantisation_symptom(trained: int, served: int) -> Symptom:
    which, few, many = ("use", served, trained) if served < trained else ("training", trained, served)
    return _symptom(
        "quantisation",
        f"Images in {which} have {few} levels per channel, the others {many:,}.",
        "Convert to floats before resizing and normalising; look for palettes and integer division.",
    )


def _explain_sharpness(trained: torch.Tensor, served: torch.Tensor, left: float) -> Symptom:
    scale = float(fit_line(trained, served).factor.abs().mean())
    ratio = _sharpness(served) / max(_sharpness(trained) * scale, 1e-12)
    what = "blurred" if ratio < 1 else "sharper"
    return _symptom(
        "interpolation",
        f"The pictures differ ({100 * left:.1f} % of the variance); those in use are {what}: {ratio:.2f} times the "
        "fine detail of training.",
        "Use the same interpolation, antialiasing and decoder.",
        # Saving a picture again as a JPEG of good quality changes this little, and hardly its detail.
        severity="note" if left < FAINT and abs(ratio - 1) < SAME_DETAIL else "alarm",
    )


def _sharpness(images: torch.Tensor) -> float:
    """Standard deviation of the differences between neighbouring pixels."""
    return float((images[..., 1:] - images[..., :-1]).std())


def _symptom(cause: str, evidence: str, remedy: str, severity: Literal["alarm", "note"] = "alarm") -> Symptom:
    return Symptom(cause=cause, severity=severity, evidence=evidence, remedy=remedy)


_TONES = {
    "gamma": _symptom(
        "gamma",
        "Values in use are those of training through a curve, the same for all images (gamma, contrast, clipping).",
        "Use the same decoder and colour space; leave out tone mapping.",
    ),
    "per_image_scale": _symptom(
        "per_image_scale",
        "Values in use are those of training times a factor and plus a shift that differ from image to image.",
        "Use the mean and standard deviation of the training set, not those of each image.",
    ),
    "colour_space": _symptom(
        "colour_space",
        "Channels in use are sums of those of training (another colour space, such as YCbCr, or another saturation).",
        "Convert to the colour space of training, usually RGB; leave out colour correction.",
    ),
}
"""Cause -> symptom, where values follow no common line."""
