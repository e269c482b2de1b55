"""Whether two small pictures show the same thing, and what was done to one of them: mirrored, cropped, brightened.

A pair counts as copies by two kinds of evidence together. *Detail*: after the best explanation the fine structure of
both agrees to a degree that chance does not reach; the more structure, the stronger, so that a blank wall or a single
edge proves little. *Contrast*: the pair agrees far better than either image does with its other look-alikes, so that
different scans of one digit are no copies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError
from transferkit.doctor.registration import (
    COARSE,
    MARGIN,
    ORIENTATIONS,
    grid,
    orient,
    refine,
    resample,
    sample,
    search,
    smooth,
)

__all__ = ["SIDE", "Explanation", "Overview", "fingerprint_variants", "look_through", "match_pairs"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Pictures = Callable[[int], npt.NDArray[np.uint8]]

SIDE = 64
"""Side of the small pictures, in pixels, whatever the shape of the image."""

FINGERPRINT = 12
"""Side of the grid of grey levels by which candidates are found."""

FINE, MIDDLE = 1.0, 4.0
"""Standard deviations in pixels of the two Gaussian filters whose difference is the fine structure."""

AREA = 500.0
"""Pixels of 4,096 over which fine structure is spread in all but simple pictures: clothes, hands and text have 550 or
more, a few dots on a plain ground 40 to 300."""

BLANK = 1.5
"""Standard deviation in grey levels up to which a picture shows nothing that could be compared."""

LEAST_CORRELATION = 0.6
"""Of the coarse match; copies with any of the changes below were at 0.7 or more, but for blank pictures."""

TRIED = 2
"""Coarse matches per image that are looked at closely."""

MOST_RESIDUAL = 0.15
"""Share of variance left open above which nothing is a copy, whatever the look-alikes."""

CONTRAST_WEIGHT = 12.0
PLACE_COST = 12.0
"""What a factor e in contrast counts as evidence, and what fitting a place (six numbers, thousands of starts) costs, in
natural log units. These and the limits below: chosen on tasks with planted copies, `scripts/bench_near_duplicates.py`.
"""

LEAST_EVIDENCE, SURE_EVIDENCE, USUAL_EVIDENCE = 42.0, 70.0, 60.0
"""Limits of the evidence that makes a copy, and its value where there are too few pairs to tell."""

TAIL = 5.5
"""The evidence of pairs that are no copies falls off like an exponential: (q90 - q75) / ln 2.5 is its mean, and five of
them above q90 lies one pair in 1,500, or about one in 1,000 images."""

FEWEST_PAIRS = 50

USUAL_FACTOR = 2.0
"""A look-alike's residual in units of 1 - its coarse correlation."""

LEAST_RESIDUAL = 1e-5
GREY = 6.0
"""Mean difference between the channels, in grey levels, up to which a picture is grey."""

SATURATED = (4.0, 251.0)

UNEQUAL, BLURS, DOUBTFUL = 0.8, (1.0, 1.5), (0.03, 0.2)
"""Ratio of their sharpness up to which the sharper of two pictures is blurred as well before they are compared,
standard deviations in pixels that are tried, and residuals for which that is worth it. Blurred pages of text: 0 of 15
copies found without, 10 with it, and no further pair in eleven tasks as they are."""

PLACES = (0.5, 1.04)
"""Sides of a part in units of the whole that a fitted place may have; a strip of a picture matches many things."""

SQUARE, UPRIGHT, STEEP = 0.93, 2.0, 8.0
"""Ratio of its sides from which on a place keeps its shape, and angles in degrees up to which it is upright, or may be
turned at all. A place that is both squeezed and turned fits simple pictures too easily."""


SHIFT = 0.015
"""Share of the side by which a part may reach beyond the whole before it is called shifted, not cropped."""


@dataclass(frozen=True)
class Overview:
    """What is kept of every picture.

    Args:
        coarse: (N, 24, 24) float32 grey levels.
        fingerprints: (N, 144) float32, 12 x 12 grey levels.
        detail: (N,) effective number of independent frequencies in the fine structure, > 0, less where that is confined
            to a small area; 0 for blank pictures.
    """

    coarse: Floats
    fingerprints: Floats
    detail: Floats


@dataclass(frozen=True)
class Explanation:
    """How the second of two pictures comes out of the first.

    Args:
        rows: The two; the first is the whole if one is a part of the other.
        how: In words.
        residual: Share of variance left open, in [0, 1].
        evidence: In natural log units; larger is surer.
        turned: Whether it is mirrored or turned.
    """

    rows: tuple[int, int]
    how: str
    residual: float
    evidence: float
    turned: bool


def to_grey(pictures: npt.NDArray[np.floating]) -> Floats:
    """Luminance of (..., 3, H, W), as Pillow weighs the channels."""
    red, green, blue = np.moveaxis(pictures, -3, 0)
    return np.asarray(0.299 * red + 0.587 * green + 0.114 * blue, dtype=np.float32)


def look_through(picture: Pictures, images: int) -> Overview:
    """Read every picture once.

    Args:
        picture: Index -> (3, 64, 64) uint8.
        images: N.

    Raises:
        DataError: A picture has another shape.
    """
    coarse = np.empty((images, COARSE, COARSE), dtype=np.float32)
    prints = np.empty((images, FINGERPRINT**2), dtype=np.float32)
    detail = np.empty(images, dtype=np.float32)
    for index in range(images):
        grey = to_grey(_read(picture, index))
        coarse[index] = resample(grey, COARSE, COARSE)
        prints[index] = resample(grey, FINGERPRINT, FINGERPRINT).reshape(-1)
        detail[index] = _count_detail(grey)
    return Overview(coarse, prints, detail)


def _read(picture: Pictures, index: int) -> Floats:
    found = np.asarray(picture(index))
    if found.shape != (3, SIDE, SIDE):
        raise DataError(f"Expected pictures of shape (3, {SIDE}, {SIDE}), got {found.shape} for image {index}.")
    return found.astype(np.float32)


def _count_detail(grey: Floats) -> float:
    """Effective number of frequencies in the fine structure, less where that is confined to a small area."""
    if grey.std() <= BLANK:
        return 0.0
    fine = smooth(grey, FINE) - smooth(grey, MIDDLE)
    pixels = _effective_number(fine**2)
    return _effective_number(np.abs(np.fft.rfft2(fine)) ** 2) * min(1.0, pixels / AREA)


def _effective_number(power: npt.NDArray[np.floating]) -> float:
    """Number of equal values that would be as concentrated."""
    return float(power.sum() ** 2 / max(float((power**2).sum()), 1e-12))


def fingerprint_variants() -> Floats:
    """(V, 144, 144) linear maps that turn, mirror and crop fingerprints.

    All eight orientations, crops of 85 % from the middle and towards the corners and of 77 % from the middle, as they
    are and mirrored, and crops of 75 % towards the corners. On four tasks the crops raised the share of mirrored crops
    among the candidates from 0.64 to 0.86.
    """
    side = FINGERPRINT
    basis = np.eye(side * side, dtype=np.float32).reshape(-1, side, side)
    found = [orient(basis, orientation) for orientation in range(ORIENTATIONS)]
    corners = [(down, right) for down in (-0.7, 0.7) for right in (-0.7, 0.7)]
    for zoom, down, right in [(0.85, 0.0, 0.0), (0.77, 0.0, 0.0), *((0.85, *corner) for corner in corners)]:
        cropped = _crop_filter(zoom, down) @ basis @ _crop_filter(zoom, right).T
        found += [cropped, orient(cropped, 4)]
    found += [_crop_filter(0.75, down) @ basis @ _crop_filter(0.75, right).T for down, right in corners]
    return np.stack([one.reshape(side * side, -1) for one in found])


def _crop_filter(zoom: float, shift: float) -> Floats:
    """(12, 12) bilinear filter of a crop; shift -1 is at the first edge, 1 at the last."""
    side = FINGERPRINT
    start = (side - side * zoom) / 2 * (1 + shift)
    centres = np.clip(start + (np.arange(side) + 0.5) * zoom - 0.5, 0, side - 1)
    return np.maximum(0, 1 - np.abs(np.arange(side) - centres[:, None])).astype(np.float32)


def match_pairs(picture: Pictures, overview: Overview, pairs: Ints) -> list[Explanation]:
    """Those pairs that are copies, surest first.

    Args:
        picture: Index -> (3, 64, 64) uint8.
        overview: Of all pictures.
        pairs: (P, 2) candidates. Their number matters: an image's other candidates show how alike it is to what is
            not its copy.
    """
    if not len(pairs):
        return []
    scores, places = _search_all(overview, pairs)
    usual = USUAL_FACTOR * _usual_residual(pairs, 1 - scores, len(overview.detail))
    promising = _promising(pairs, scores, overview)
    found: list[Explanation] = []
    for start in range(0, len(promising), SIDE):
        chosen = promising[start : start + SIDE]
        found += _compare(picture, overview, pairs[chosen], places[chosen], usual[chosen])
    enough = _enough_evidence(np.array([one.evidence for one in found]))
    copies = [one for one in found if one.evidence > enough and one.residual <= MOST_RESIDUAL]
    return sorted(copies, key=lambda one: (-one.evidence, one.rows))


def _enough_evidence(values: npt.NDArray[np.float64]) -> float:
    """The evidence from which on a pair is a copy: above the tail of the pairs that are none, of which most are."""
    others = values[values <= SURE_EVIDENCE]
    if len(others) < FEWEST_PAIRS:
        return USUAL_EVIDENCE
    upper, top = np.quantile(others, (0.75, 0.9))
    return float(np.clip(top + TAIL * (top - upper), LEAST_EVIDENCE, SURE_EVIDENCE))


def _search_all(overview: Overview, pairs: Ints) -> tuple[Floats, Floats]:
    found = [
        search(overview.coarse[some[:, 0]], overview.coarse[some[:, 1]])
        for some in np.array_split(pairs, max(1, len(pairs) // 256))
    ]
    return np.concatenate([one for one, _ in found]), np.concatenate([one for _, one in found])


def _usual_residual(pairs: Ints, residuals: Floats, images: int) -> Floats:
    """(P,) the smaller of the two images' median over all pairs that they are in."""
    ends, values = pairs.T.reshape(-1), np.tile(residuals, 2)
    order = np.lexsort((values, ends))
    counts = np.bincount(ends, minlength=images)
    starts = np.cumsum(counts) - counts
    ordered = values[order]
    middle = np.where(counts > 0, starts + counts // 2, 0)
    median = np.where(counts > 0, ordered[np.minimum(middle, len(ordered) - 1)], 1.0)
    return np.asarray(np.minimum(median[pairs[:, 0]], median[pairs[:, 1]]), dtype=np.float32)


def _promising(pairs: Ints, scores: Floats, overview: Overview) -> Ints:
    """Positions of pairs that are among the best of either image, and not blank."""
    best = np.zeros(len(pairs), dtype=bool)
    for side in (0, 1):
        ends = np.concatenate([pairs[:, side], pairs[:, 1 - side]])
        order = np.lexsort((-np.tile(scores, 2), ends))
        first = np.searchsorted(ends[order], ends[order])
        taken = order[np.arange(len(order)) - first < TRIED]
        best[taken % len(pairs)] = True
    seen = (overview.detail[pairs] > 0).all(axis=1)
    return np.flatnonzero(best & seen & (scores > LEAST_CORRELATION))


def _compare(picture: Pictures, overview: Overview, pairs: Ints, places: Floats, usual: Floats) -> list[Explanation]:
    """Explanations of a few dozen pairs; those are left out in which nothing is to be seen."""
    swapped = places[:, 0] > 0
    ordered = np.where(swapped[:, None], pairs[:, ::-1], pairs)
    read = {int(index): _read(picture, int(index)) for index in np.unique(ordered)}
    whole = np.stack([read[int(index)] for index in ordered[:, 0]])
    part = np.stack([orient(read[int(index)], int(k)) for index, k in zip(ordered[:, 1], places[:, 1], strict=True)])
    boxes = places[:, 2:]
    fitted = refine(to_grey(whole), to_grey(part), boxes)
    at_once = np.zeros_like(fitted)
    at_once[:, 0, 0] = at_once[:, 1, 1] = 1
    detail = np.minimum(overview.detail[ordered[:, 0]], overview.detail[ordered[:, 1]])
    found = []
    plain, placed = (_agree(whole, part, maps) for maps in (at_once, fitted))
    scores = [_evidence(one.residual, usual, detail) for one in (plain, placed)]
    scores[1] = np.where(_plausible(fitted), scores[1], -np.inf)
    for row, (first, second) in enumerate(ordered):
        as_it_is = bool(scores[0][row] >= scores[1][row] - PLACE_COST)
        evidence = float(scores[0][row] if as_it_is else scores[1][row] - PLACE_COST)
        agreement, maps = (plain, at_once) if as_it_is else (placed, fitted)
        residual = float(agreement.residual[row])
        # Either picture may be blank but for what lies outside of the part.
        if agreement.spread[row] <= BLANK:
            continue
        orientation = int(places[row, 1])
        words = [*_name_turn(orientation), *_name_place(maps[row]), *agreement.name_values(row)]
        found.append(
            Explanation((int(first), int(second)), ", ".join(words) or "the same", residual, evidence, orientation != 0)
        )
    return found


def _sides_and_angle(maps: Floats) -> tuple[Floats, Floats]:
    """(P, 2) width and height in units of the whole, and (P,) degrees."""
    sides = np.hypot(maps[:, 0, :2], maps[:, 1, :2])
    return sides, np.degrees(np.arctan2(maps[:, 1, 0] - maps[:, 0, 1], maps[:, 0, 0] + maps[:, 1, 1]))


def _plausible(maps: Floats) -> npt.NDArray[np.bool_]:
    sides, angle = _sides_and_angle(maps)
    fits = (sides > PLACES[0]).all(axis=1) & (sides < PLACES[1]).all(axis=1)
    keeps_shape = sides.min(axis=1) >= SQUARE * sides.max(axis=1)
    return np.asarray(fits & (np.abs(angle) <= np.where(keeps_shape, STEEP, UPRIGHT)))


def _evidence(residual: Floats, usual: Floats, detail: Floats) -> Floats:
    residual = np.maximum(residual, LEAST_RESIDUAL)
    # A correlation z of n random numbers has 1 - z^2 < c with a chance of about c^(n / 2); here 1 - z^2 = 2 residual.
    chance = -detail / 2 * np.log(np.minimum(2 * residual, 1))
    return np.asarray(chance + CONTRAST_WEIGHT * np.log(np.maximum(usual, LEAST_RESIDUAL) / residual))


@dataclass(frozen=True)
class _Agreement:
    """How well parts agree with their places in the wholes, under the best brightness and contrast; (P,) each."""

    residual: Floats
    spread: Floats
    level: Floats  # mean of the part minus that of the whole, in grey levels
    gain: Floats
    greyed: npt.NDArray[np.bool_]  # one of the two is grey, the other is not
    sharpness: Floats  # fine structure of the part in units of the whole's

    @classmethod
    def of(cls, whole: Floats, part: Floats, maps: Floats) -> _Agreement:
        pairs = len(whole)
        x, y = grid(SIDE)
        points = np.stack([x, y, np.ones_like(x)])
        at_x, at_y = maps[:, 0] @ points, maps[:, 1] @ points
        inner = (np.minimum(x, y) > MARGIN) & (np.maximum(x, y) < 1 - MARGIN)
        seen = inner & (np.minimum(at_x, at_y) > 0) & (np.maximum(at_x, at_y) < 1)
        mask = seen.reshape(pairs, 1, SIDE, SIDE).astype(np.float32)
        placed = sample(whole, at_x, at_y).reshape(part.shape)
        one, other = (_smooth_inside(values, mask, 0.7) for values in (placed, part))
        greyed = _coloured(one, mask) != _coloured(other, mask)
        for values in (one, other):
            values[greyed] = to_grey(values)[greyed][:, None]
        forth, back = _fit_values(one, other, mask), _fit_values(other, one, mask)
        forward = forth.explained >= back.explained
        pick = forward[:, None, None, None]
        have = to_grey(np.where(pick, forth.predicted, back.predicted))[:, None]
        want = to_grey(np.where(pick, other, one))[:, None]
        agreement, ratio = _compare_detail(have, want, mask)
        explained = np.minimum(np.where(forward, forth.explained, back.explained), agreement)
        counts = np.maximum(mask.sum(axis=(1, 2, 3)), 1)
        level = ((to_grey(other) - to_grey(one)) * mask[:, 0]).sum(axis=(1, 2)) / counts
        return cls(
            np.clip(1 - explained, 0, 1).astype(np.float32),
            np.minimum(forth.spread, back.spread),
            level,
            forth.gain,
            greyed,
            np.where(forward, 1 / np.maximum(ratio, 1e-3), ratio),
        )

    def name_values(self, row: int) -> list[str]:
        """What was done to the values, in words."""
        words = ["turned to grey"] if self.greyed[row] else []
        level, gain = float(self.level[row]), float(self.gain[row])
        if abs(level) > 6:
            words.append("brighter" if level > 0 else "darker")
        elif abs(np.log(max(gain, 1e-3))) > 0.15:
            words.append("more contrast" if gain > 1 else "less contrast")
        if self.sharpness[row] < 0.7:
            words.append("less sharp")
        elif self.sharpness[row] > 1.4:
            words.append("sharper")
        return words


def _agree(whole: Floats, part: Floats, maps: Floats) -> _Agreement:
    """The agreement where the less sharp of two pictures is compared with the other one blurred, if that is better."""
    found = _Agreement.of(whole, part, maps)
    residual, sharpness = found.residual.copy(), found.sharpness.copy()
    doubtful = (residual > DOUBTFUL[0]) & (residual < DOUBTFUL[1])
    ratio = np.ones_like(residual)
    ratio[doubtful] = _sharpness(part[doubtful]) / _sharpness(whole[doubtful])
    for rows, blurs_whole in ((np.flatnonzero(ratio < UNEQUAL), True), (np.flatnonzero(ratio > 1 / UNEQUAL), False)):
        for sigma in BLURS if len(rows) else ():
            one, other = (
                smooth(values[rows], sigma) if blurred else values[rows]
                for values, blurred in ((whole, blurs_whole), (part, not blurs_whole))
            )
            again = _Agreement.of(one, other, maps[rows]).residual
            better = again < residual[rows]
            residual[rows[better]] = again[better]
            sharpness[rows[better]] = ratio[rows[better]]
    return replace(found, residual=residual, sharpness=sharpness)


def _sharpness(pictures: Floats) -> Floats:
    """(P,) size of the fine structure in units of that of all the coarser one, > 0."""
    grey = to_grey(pictures)
    coarse = smooth(grey, MIDDLE)
    fine = (smooth(grey, FINE) - coarse).std(axis=(1, 2))
    return np.asarray(np.maximum(fine / np.maximum(coarse.std(axis=(1, 2)), 1), 1e-3))


@dataclass(frozen=True)
class _ValueFit:
    predicted: Floats
    explained: Floats
    gain: Floats
    spread: Floats


def _fit_values(have: Floats, want: Floats, mask: Floats) -> _ValueFit:
    """want = gain * have + offset, cut to [0, 255], by least squares over the values that are not cut off."""
    everywhere = np.broadcast_to(mask, have.shape)
    used = everywhere
    for _ in range(3):
        count = _total(used) + 1e-6
        means = [_total(values * used) / count for values in (have, want)]
        variance = _total((have - means[0]) ** 2 * used)
        gain = _total((have - means[0]) * (want - means[1]) * used) / np.maximum(variance, 1e-3)
        raw = gain * (have - means[0]) + means[1]
        free = ((want > SATURATED[0]) & (want < SATURATED[1])) | ((raw > 0) & (raw < 255))
        used = np.where(_total(everywhere * free) > 0.2 * _total(everywhere), everywhere * free, everywhere)
    predicted = np.clip(raw, 0, 255).astype(np.float32)
    count = np.maximum(_total(everywhere), 1)
    total = _total((want - _total(want * everywhere) / count) ** 2 * everywhere)
    left = _total((want - predicted) ** 2 * everywhere)
    explained = np.where(gain > 0, 1 - left / np.maximum(total, 1e-3), 0).astype(np.float32)
    spread = np.sqrt(total / count).astype(np.float32)
    return _ValueFit(predicted, explained.reshape(-1), gain.astype(np.float32).reshape(-1), spread.reshape(-1))


def _total(values: npt.NDArray[np.floating]) -> Floats:
    return np.asarray(values.sum(axis=(1, 2, 3), keepdims=True))


def _coloured(pictures: Floats, mask: Floats) -> npt.NDArray[np.bool_]:
    spread = pictures.max(axis=1, keepdims=True) - pictures.min(axis=1, keepdims=True)
    return np.asarray((_total(spread * mask) / np.maximum(_total(mask), 1)).reshape(-1) > GREY)


def _smooth_inside(values: Floats, mask: Floats, sigma: float) -> Floats:
    """Values after a Gaussian filter that knows nothing of what lies outside the mask."""
    return np.asarray(smooth(values * mask, sigma) / np.maximum(smooth(mask, sigma), 1e-3))


def _compare_detail(have: Floats, want: Floats, mask: Floats) -> tuple[Floats, Floats]:
    """(P,) correlation of the fine structure, and its size in `have` in units of that in `want`."""
    one, other = (
        (_smooth_inside(values, mask, FINE) - _smooth_inside(values, mask, MIDDLE)) * mask for values in (have, want)
    )
    sizes = [np.sqrt((values**2).sum(axis=(1, 2, 3))) for values in (one, other)]
    both = (one * other).sum(axis=(1, 2, 3)) / np.maximum(sizes[0] * sizes[1], 1e-3)
    return both, sizes[0] / np.maximum(sizes[1], 1e-3)


def _name_turn(orientation: int) -> list[str]:
    """What made the part, in words; the orientation is what undoes it."""
    quarters = orientation % 4
    if orientation >= 4:  # a reflection undoes itself
        names = ("mirrored", "mirrored and turned by 90 degrees", "upside down", "mirrored and turned by 270 degrees")
        return [names[quarters]]
    return [f"turned by {360 - 90 * quarters} degrees"] if quarters else []


def _name_place(place: Floats) -> list[str]:
    """Shift, crop and small rotation, in words."""
    sides, angles = _sides_and_angle(place[None])
    (width, height), angle = sides[0].tolist(), float(angles[0])
    words = []
    beyond = float(np.abs(place @ (0.5, 0.5, 1.0) - 0.5).max() - (1 - min(width, height)) / 2)
    if beyond > SHIFT:
        words.append("shifted")
    if min(width, height) < 0.97:
        if min(width, height) > SQUARE * max(width, height):
            words.append(f"cropped to {100 * np.sqrt(width * height):.0f} %")
        else:
            words.append(f"cropped to {100 * width:.0f} % of the width and {100 * height:.0f} % of the height")
    if abs(angle) > UPRIGHT:
        words.append(f"turned by {abs(angle):.0f} degrees")
    return words
