"""Where one small picture lies in another: orientation, crop, and a fine affine alignment.

Batches of P pairs of grey pictures in, positions out. A picture that is a part of another is called `part`, the
other `whole`; coordinates run from 0 to 1 across a picture.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

__all__ = ["COARSE", "MARGIN", "ORIENTATIONS", "grid", "orient", "refine", "resample", "sample", "search", "smooth"]

Floats = npt.NDArray[np.float32]

COARSE = 24
"""Side of the pictures that are searched; the search is finished at 64 pixels."""

ORIENTATIONS = 8
"""Number k of an orientation: turned counterclockwise by k % 4 quarters, after mirroring if k >= 4."""

MARGIN = 0.05
"""Share of a part at each edge that is not compared: resampling and rotation disturb it."""

ZOOMS = tuple(side / COARSE for side in range(16, COARSE))
ASPECTS = (0.92, 0.84, 0.75, 0.67, 0.6)
"""Sides of a part in units of the whole: of both, and of one with the other whole, as when a photo is cut square."""

FLAT = 3.0
"""Standard deviation in grey levels up to which a window is too uniform for its correlation to mean anything."""

STEPS = ((32, 8), (64, 4))
"""Side in pixels, and Gauss-Newton steps on it."""

LARGEST_STEP = 0.05


@lru_cache
def _filter(source: int, target: int) -> Floats:
    """(target, source) triangle filter, widened when it shrinks, as Pillow's bilinear one."""
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(source) - centres[:, None]) / max(scale, 1.0))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def resample(pictures: Floats, height: int, width: int) -> Floats:
    """(..., height, width) of pictures (..., H, W)."""
    return np.asarray(_filter(pictures.shape[-2], height) @ pictures @ _filter(pictures.shape[-1], width).T)


@lru_cache
def _gaussian(side: int, sigma: float) -> Floats:
    """(side, side) Gaussian filter; beyond an edge is the edge's pixel."""
    reach = int(4 * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    matrix = np.zeros((side, side))
    for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
        np.add.at(matrix, (np.arange(side), np.clip(np.arange(side) + offset, 0, side - 1)), weight)
    return matrix.astype(np.float32)


def smooth(pictures: npt.NDArray[Any], sigma: float) -> Floats:
    """Pictures (..., H, W) after a Gaussian filter of this standard deviation in pixels."""
    across, down = (_gaussian(side, sigma) for side in pictures.shape[:-3:-1])
    return np.asarray(down @ pictures.astype(np.float32, copy=False) @ across.T)


def orient(pictures: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Pictures (..., S, S) mirrored and turned.

    Example:
        >>> orient(np.array([[1, 2], [3, 4]]), 4).tolist()
        [[2, 1], [4, 3]]
    """
    mirrored = pictures[..., ::-1] if orientation >= 4 else pictures
    return np.rot90(mirrored, orientation % 4, axes=(-2, -1))


def grid(side: int) -> tuple[Floats, Floats]:
    """x and y of the pixel centres, (side * side,) each, row by row."""
    centres = (np.arange(side, dtype=np.float32) + 0.5) / side
    return np.tile(centres, side), np.repeat(centres, side)


class _Best:
    """The best of the positions that were tried, pair by pair."""

    def __init__(self, pairs: int) -> None:
        self.score = np.full(pairs, -2, dtype=np.float32)
        self.place = np.zeros((pairs, 6), dtype=np.float32)

    def offer(self, score: Floats, *place: Any) -> None:
        better = score > self.score
        self.score[better] = score[better]
        rows = np.stack([np.broadcast_to(np.asarray(one, dtype=np.float32), score.shape) for one in place], axis=1)
        self.place[better] = rows[better]


def search(one: Floats, other: Floats) -> tuple[Floats, Floats]:
    """The best match among orientations of the whole picture, and crops of the same or mirrored orientation.

    Args:
        one, other: (P, 24, 24) grey levels.

    Returns:
        (P,) correlation in [-1, 1], and (P, 6): whether `one` is the part (1) or the whole (0), the orientation to be
        given to the part, and top, left, height and width of its place in the whole.
    """
    pairs, best = len(one), _Best(len(one))
    flat = _unit(one.reshape(pairs, -1))
    for orientation in range(ORIENTATIONS):
        turned = _unit(orient(other, orientation).reshape(pairs, -1))
        best.offer(np.einsum("pi,pi->p", flat, turned), 0, orientation, 0, 0, 1, 1)
    shapes = [(zoom, zoom) for zoom in ZOOMS] + [(1.0, side) for side in ASPECTS] + [(side, 1.0) for side in ASPECTS]
    for swapped, (whole, part) in enumerate(((one, other), (other, one))):
        for tall, wide in shapes:
            _offer_crops(best, whole, part, (round(COARSE * tall), round(COARSE * wide)), swapped)
    return best.score, best.place


def _offer_crops(best: _Best, whole: Floats, part: Floats, shape: tuple[int, int], swapped: int) -> None:
    pairs, (height, width) = len(whole), shape
    windows = np.lib.stride_tricks.sliding_window_view(whole, shape, axis=(-2, -1))
    columns = windows.shape[2]
    rows = np.ascontiguousarray(windows).reshape(pairs, -1, height * width)
    small = resample(part, height, width)
    templates = np.stack([_unit(orient(small, k).reshape(pairs, -1)) for k in (0, 4)], axis=2)
    squares = np.einsum("pwi,pwi->pw", rows, rows) - height * width * rows.mean(axis=2) ** 2
    found = (rows @ templates) / np.sqrt(np.maximum(squares, height * width * FLAT**2))[:, :, None]
    for column, orientation in enumerate((0, 4)):
        at = found[:, :, column].argmax(axis=1)
        top, left = at // columns / COARSE, at % columns / COARSE
        score = found[np.arange(pairs), at, column]
        best.offer(score, swapped, orientation, top, left, height / COARSE, width / COARSE)


def _unit(rows: Floats) -> Floats:
    """Rows minus their mean, of length 1; shorter where they are nearly uniform."""
    centred = rows - rows.mean(axis=-1, keepdims=True)
    least = FLAT * np.sqrt(rows.shape[-1])
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), least), dtype=np.float32)


def sample(pictures: Floats, x: Floats, y: Floats) -> Floats:
    """(P, C, n) bilinear samples of pictures (P, C, S, S) at (P, n) coordinates; beyond an edge, the edge's pixel."""
    places = torch.from_numpy(np.stack([2 * x - 1, 2 * y - 1], axis=2).astype(np.float32))[:, None]
    images = torch.from_numpy(np.ascontiguousarray(pictures, dtype=np.float32))
    found: Floats = F.grid_sample(images, places, padding_mode="border", align_corners=False)[:, :, 0].numpy()
    return found


def refine(whole: Floats, part: Floats, boxes: Floats) -> Floats:
    """Affine maps from a part to its whole, fitted by Gauss-Newton steps together with gain and offset of the values.

    Args:
        whole, part: (P, 64, 64) grey levels, the part in the orientation of the whole.
        boxes: (P, 4) top, left, height and width of the part in the whole, to start from.

    Returns:
        (P, 2, 3): x and y in the whole of (x, y, 1) in the part.

    References:
        Lucas and Kanade, IJCAI 1981.
    """
    top, left, height, width = boxes.T
    maps = np.zeros((len(whole), 2, 3), dtype=np.float32)
    maps[:, 0, 0], maps[:, 0, 2], maps[:, 1, 1], maps[:, 1, 2] = width, left, height, top
    for side, steps in STEPS:
        image = smooth(resample(whole, side, side), 1.0)
        down, right = np.gradient(image, axis=(1, 2))
        stack = np.stack([image, right * side, down * side], axis=1).astype(np.float32)
        x, y = grid(side)
        inner = (np.minimum(x, y) > MARGIN) & (np.maximum(x, y) < 1 - MARGIN)
        target = smooth(resample(part, side, side), 1.0).reshape(len(whole), -1)[:, inner]
        points = np.stack([x[inner], y[inner], np.ones(int(inner.sum()), dtype=np.float32)])
        for _ in range(steps):
            maps += _step(stack, target, points, maps)
    return maps


def _step(stack: Floats, target: Floats, points: Floats, maps: Floats) -> Floats:
    """(P, 2, 3) change of the maps in one Gauss-Newton step."""
    x, y = maps[:, 0] @ points, maps[:, 1] @ points
    inside = ((np.minimum(x, y) > 0) & (np.maximum(x, y) < 1)).astype(np.float32)
    values, right, down = sample(stack, x, y).transpose(1, 0, 2)
    count = inside.sum(axis=1, keepdims=True) + 1e-6
    mean, wanted = ((one * inside).sum(axis=1, keepdims=True) / count for one in (values, target))
    have, want = (values - mean) * inside, (target - wanted) * inside
    gain = np.maximum((have * want).sum(axis=1) / np.maximum((have * have).sum(axis=1), 1e-6), 0.1)
    residual = want - gain[:, None] * have
    slopes = [slope * gain[:, None] * point for slope in (right, down) for point in points]
    jacobian = np.stack([*slopes, values, np.ones_like(values)], axis=1) * inside[:, None]
    normal = jacobian @ jacobian.transpose(0, 2, 1)
    damping = 1e-3 * np.einsum("pii->pi", normal) + 1e-3
    normal += damping[:, :, None] * np.eye(normal.shape[1], dtype=np.float32)
    found = np.linalg.solve(normal, jacobian @ residual[:, :, None])[:, :6, 0]
    return np.clip(found, -LARGEST_STEP, LARGEST_STEP).reshape(-1, 2, 3).astype(np.float32)
