"""How served images lie against those of training: turned, mirrored, shifted, zoomed, in another order, or others.

Two pictures are compared by the squared correlation of their grey values, which knows nothing of mean, scale and
channel order; each explanation is a way to align the images in use with those of training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

__all__ = ["Alignment", "align_layout", "align_place", "align_turns", "find_others", "likeness", "turned_sides"]

Images = torch.Tensor
"""(N, C, H, W) float64."""

CLEARLY, RECOGNISED = 0.1, 0.5
"""How much more alike turned images must be, and how alike at least, on average."""

A_FEW = 0.95
"""How alike turned images must be where most are not turned: alone, chance would find some."""

LOST, FOUND = 0.3, 0.9
"""Likeness below which an image is another one, and from which on it is found again."""

FAINT = 0.25
"""Share of the usual contrast below which an image is faint."""

ZOOMS = tuple(1.04**power for power in range(-10, 11))
"""Relative sizes that are tried, 0.68 to 1.48."""

FARTHEST = 6
"""Shifts are looked for up to this part of a side."""

EXPLAINED, WORTH = 0.5, 0.005
"""Share of the difference that a shift must explain, and share of the variance that a shift or zoom must explain at
least."""

STEPS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]
"""Shifts that are tried image by image, in pixels."""

SMALLEST = 8
"""Side of an image, in pixels, that can lose its border."""

BETTER = 0.02
"""A zoom must explain this share of the difference: it is blurred itself."""

TURNS: dict[str, tuple[str, str, Callable[[Images], Images]]] = {
    "mirrored": ("flip", "mirrored left to right", lambda x: x.flip(3)),
    "upside_down": ("flip", "mirrored top to bottom", lambda x: x.flip(2)),
    "half_turn": ("rotation", "turned by 180 degrees", lambda x: x.rot90(2, (2, 3))),
    "quarter_turn": ("rotation", "turned by 90 degrees clockwise", lambda x: x.rot90(1, (2, 3))),
    "back_turn": ("rotation", "turned by 90 degrees anticlockwise", lambda x: x.rot90(-1, (2, 3))),
    "transposed": ("transpose", "transposed: rows are columns", lambda x: x.transpose(2, 3)),
    "antitransposed": ("transpose", "mirrored at the other diagonal", lambda x: x.transpose(2, 3).flip(2, 3)),
}
"""Name -> cause, words, and what undoes it."""


@dataclass(frozen=True)
class Alignment:
    """An explanation of how images in use lie.

    Args:
        trained, served: The images as they correspond to each other; cropped to what both show.
        cause: Of the symptom; empty where there is none.
        words: What happened to the images in use.
    """

    trained: Images
    served: Images
    cause: str = ""
    words: str = ""


def likeness(trained: Images, served: Images) -> torch.Tensor:
    """(N,) squared correlation of grey values in [0, 1]; 1 where an image has one colour."""
    x, y = (one.mean(dim=1).flatten(1) for one in (trained, served))
    x, y = x - x.mean(dim=1, keepdim=True), y - y.mean(dim=1, keepdim=True)
    energy = (x * x).sum(dim=1) * (y * y).sum(dim=1)
    is_flat = energy <= 1e-12 * energy.max().clamp_min(1e-300)
    return torch.where(is_flat, 1.0, (x * y).sum(dim=1) ** 2 / energy.clamp_min(1e-300))


def turned_sides(trained: Images, served: Images) -> Alignment | None:
    """Images (N, C, W, H) against (N, C, H, W): turned or transposed, if that explains them."""
    undone = {words: undo(served) for _, words, undo in TURNS.values()}
    undone["read row by row at the wrong width"] = served.reshape(trained.shape)
    found = {words: one for words, one in undone.items() if one.shape == trained.shape}
    resized = F.interpolate(served, trained.shape[2:], mode="bilinear", antialias=True)
    best = max(found, key=lambda words: float(likeness(trained, found[words]).mean()))
    reached = float(likeness(trained, found[best]).mean())
    if reached < max(RECOGNISED, float(likeness(trained, resized).mean()) + CLEARLY):
        return None
    return Alignment(trained, found[best], "swapped_sides", best)


def align_layout(trained: Images, served: Images) -> Alignment:
    """Images whose numbers were read in another order of axes: (H, W, C) as (C, H, W), or the other way round."""
    shape = trained.shape
    count, channels, height, width = shape
    readings = {
        "as (C, H, W), but are stored as (H, W, C)": served.reshape(count, height, width, channels).permute(0, 3, 1, 2),
        "as (H, W, C), but are stored as (C, H, W)": served.permute(0, 2, 3, 1).reshape(shape),
    }
    plain = float(likeness(trained, served).mean())
    for words, read in readings.items():
        reached = float(likeness(trained, read).mean())
        if channels > 1 and reached > max(RECOGNISED, plain + CLEARLY):
            return Alignment(trained, read.contiguous(), "layout", words)
    return Alignment(trained, served)


def align_turns(trained: Images, served: Images) -> Alignment:
    """Turn and mirror back: all images alike, or a few of them, as a decoder does that ignores the camera's note."""
    undone = {name: undo(served) for name, (_, _, undo) in TURNS.items()}
    undone = {name: one for name, one in undone.items() if one.shape == trained.shape}
    plain = likeness(trained, served)
    found = {name: likeness(trained, one) for name, one in undone.items()}
    best = max(found, key=lambda name: float(found[name].mean()))
    if float(found[best].mean()) > max(RECOGNISED, float(plain.mean()) + CLEARLY):
        return Alignment(trained, undone[best], TURNS[best][0], f"are {TURNS[best][1]}")
    # A shift is found later, and turns symmetrical pictures into likelier ones.
    names = list(found)
    reached, which = torch.stack([found[name] for name in names]).max(dim=0)
    moved = (reached > A_FEW) & (reached > plain + CLEARLY)
    if not bool(moved.any()):
        return Alignment(trained, served)
    common = names[int(which[moved].mode().values)]
    aligned = served.clone()
    for k, name in enumerate(names):
        here = moved & (which == k)
        aligned[here] = undone[name][here]
    words = f"are {TURNS[common][1]} in {int(moved.sum())} of {len(served)} cases, as where EXIF orientation is ignored"
    return Alignment(trained, aligned, TURNS[common][0], words)


def align_place(trained: Images, served: Images) -> Alignment:
    """Shift and zoom back, all images alike; the explanation that leaves less."""
    plain = float(likeness(trained, served).mean())
    (down, right), shifted = _best_shift(trained, served)
    zoom, zoomed = max(((zoom, _zoomed(trained, served, zoom)) for zoom in ZOOMS), key=lambda pair: pair[1])
    if (down or right) and shifted > zoomed and shifted - plain > max(WORTH, EXPLAINED * (1 - plain)):
        words = ", ".join(
            f"{abs(by)} pixels {towards}"
            for by, towards in ((down, "down" if down > 0 else "up"), (right, "right" if right > 0 else "left"))
            if by
        )
        return Alignment(*_overlap(trained, served, down, right), "shift", words)
    if zoom != 1 and zoomed - plain > max(WORTH, BETTER * (1 - plain)):
        return Alignment(*_scaled(trained, served, zoom), "crop", f"{zoom:.2f}")
    return _align_each(trained, served)


def _align_each(trained: Images, served: Images) -> Alignment:
    """Shift back by one pixel those images that lie so: other rounding moves those whose margins are odd."""
    plain = likeness(trained, served)
    reached, which = plain.clone(), torch.zeros(len(plain), dtype=torch.long)
    for k, (down, right) in enumerate(STEPS):
        found = likeness(*_overlap(trained, served, down, right))
        which[found > reached] = k
        reached = torch.maximum(reached, found)
    moved = reached - plain > torch.clamp(EXPLAINED * (1 - plain), min=WORTH)
    if min(trained.shape[2:]) < SMALLEST or not bool(moved.any()):
        return Alignment(trained, served)
    aligned = served.clone()
    for k in moved.nonzero().flatten().tolist():
        aligned[k] = served[k].roll([-by for by in STEPS[int(which[k])]], (1, 2))
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    words = f"1 pixel off in {int(moved.sum())} of {len(moved)} cases"
    return Alignment(trained[inside], aligned[inside], "shift", words)


def find_others(trained: Images, served: Images) -> tuple[torch.Tensor, int]:
    """(N,) bool, which images in use are other ones, and how many of these are elsewhere in training."""
    coarse = [F.adaptive_avg_pool2d(one.mean(dim=1, keepdim=True), 16).flatten(1) for one in (trained, served)]
    unit = [F.normalize(one - one.mean(dim=1, keepdim=True), dim=1) for one in coarse]
    alike = (unit[1] @ unit[0].T) ** 2
    # Grey values alone may be constant where colours are not.
    channels = range(trained.shape[1])
    pairs = [likeness(trained[:, [i]], served[:, [j]]) for i in channels for j in channels]
    own = torch.stack([alike.diagonal(), likeness(trained, served), *pairs]).amax(dim=0)
    elsewhere = alike.amax(dim=1)
    swapped = (elsewhere > FOUND) & (own < elsewhere - CLEARLY)
    # What there is in faint pictures is soon lost in rounding and compression.
    contrast = torch.stack([one.mean(dim=1).flatten(1).std(dim=1) for one in (trained, served)])
    is_faint = (contrast < FAINT * contrast.median(dim=1, keepdim=True).values).any(dim=0)
    return swapped | ((own < LOST) & ~is_faint), int(swapped.sum())


def _best_shift(trained: Images, served: Images) -> tuple[tuple[int, int], float]:
    """How far images in use are down and right of those of training, and how alike they then are."""
    height, width = trained.shape[2:]
    most = (height // FARTHEST, width // FARTHEST)
    grey = [one.mean(dim=1) for one in (trained, served)]
    waves = [torch.fft.rfft2(one - one.mean(dim=(1, 2), keepdim=True)) for one in grey]
    product = waves[0].conj() * waves[1]
    # Whitened, or smooth pictures hardly tell shifts apart.
    surface = torch.fft.irfft2((product / product.abs().clamp_min(1e-12)).sum(dim=0), s=(height, width)).abs()
    candidates = [(0, 0)]
    for place in surface.flatten().argsort(descending=True)[:4].tolist():
        down, right = place // width, place % width
        down, right = down - height * (down > height // 2), right - width * (right > width // 2)
        if abs(down) <= most[0] and abs(right) <= most[1]:
            candidates.append((down, right))
    scored = {one: float(likeness(*_overlap(trained, served, *one)).mean()) for one in candidates}
    best = max(scored, key=lambda one: scored[one])
    return best, scored[best]


def _overlap(trained: Images, served: Images, down: int, right: int) -> tuple[Images, Images]:
    """What both show, if those in use lie this many pixels further down and right."""
    height, width = trained.shape[2:]
    rows, columns = slice(max(0, down), height + min(0, down)), slice(max(0, right), width + min(0, right))
    back = slice(max(0, -down), height + min(0, -down)), slice(max(0, -right), width + min(0, -right))
    return trained[:, :, back[0], back[1]], served[:, :, rows, columns]


def _scaled(trained: Images, served: Images, zoom: float) -> tuple[Images, Images]:
    """What both show if images in use are scaled about their middle by 1 / zoom."""
    height, width = trained.shape[2:]
    size = (max(2, round(height / zoom)), max(2, round(width / zoom)))
    inside = (min(height, size[0]), min(width, size[1]))
    smaller = F.interpolate(served, size, mode="bilinear", antialias=True)
    return _middle(trained, inside), _middle(smaller, inside)


def _zoomed(trained: Images, served: Images, zoom: float) -> float:
    return float(likeness(*_scaled(trained, served, zoom)).mean())


def _middle(images: Images, size: tuple[int, int]) -> Images:
    top, left = (images.shape[2] - size[0]) // 2, (images.shape[3] - size[1]) // 2
    return images[:, :, top : top + size[0], left : left + size[1]]
