"""Areas of one colour in which served images differ from those of training: borders, and backgrounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from transferkit.doctor.serving_values import best_order, colour_share, fit_line

__all__ = ["Fill", "count_padded", "find_fill"]

Images = torch.Tensor
"""(N, C, H, W) float64."""

FLAT, BUSY = 1e-3, 0.25
"""Range of a border, in standard deviations of the images: padding below the first; a picture above the second,
whatever noise and compression do to padding."""

SAME_COLOUR, OTHER_COLOUR = 0.05, 0.5
"""Largest difference between pixels of one colour, and least one between two fillings, in standard deviations."""

LEAST, MOST = 0.01, 0.9
"""Share of pixels that a filling has."""

ONE_COLOUR = 0.7
"""Share of the changed pixels that must have one colour before and one after; edges of an area are mixed."""

ALIKE = 0.999
"""Share of variance explained from which on a line, or another order of channels, is the explanation."""

FEW_COLOURS = 5e-3
"""Share of the variance that the channels of coloured pictures do not have in common."""


@dataclass(frozen=True)
class Fill:
    """Areas with one colour in training and another in use; all other pixels are equal.

    Args:
        share: Of the pixels.
        trained, served: The colours, as values of each channel.
    """

    share: float
    trained: tuple[float, ...]
    served: tuple[float, ...]


def count_padded(trained: Images, served: Images) -> tuple[int, int]:
    """How many images have a border of one colour, the same in all of them, in training only, and in use only."""
    pairs = [(_border(trained), _border(served)), (_border(served), _border(trained))]
    return tuple(_count(flat, busy) for flat, busy in pairs)  # type: ignore[return-value]


def _count(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> int:
    (flatness, colours), (business, _) = one, other
    padded = (flatness < FLAT) & (business > BUSY)
    if not bool(padded.any()):
        return 0
    found = colours[padded]
    common = (found - found.median(dim=0).values).abs().amax(dim=1) < SAME_COLOUR
    return int(common.sum())


def _border(images: Images) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) range of the outermost rows, or columns, in standard deviations; (N, C) their colour in these units."""
    spread = float(images.std())
    edges = torch.stack([_ends(images, 2), _ends(images, 3)], dim=1) / spread  # (N, 2, 2, C): low and high
    ranges = (edges[:, :, 1] - edges[:, :, 0]).amax(dim=2)
    which = ranges.argmin(dim=1)
    rows = torch.arange(len(images))
    return ranges[rows, which], edges[rows, which].mean(dim=1)


def _ends(images: Images, axis: int) -> torch.Tensor:
    """(N, 2, C) lowest and highest values of the first and last line along an axis."""
    size = images.shape[axis]
    edge = images.index_select(axis, torch.tensor([0, size - 1], device=images.device)).flatten(2)
    return torch.stack([edge.amin(dim=2), edge.amax(dim=2)], dim=1)


def find_fill(trained: Images, served: Images) -> Fill | None:
    """Whether the images differ only where they are filled with a colour, at least at a border: transparent areas on
    white or black, padding in another colour.

    Args:
        trained, served: Of the same shape.
    """
    spread = float(trained.std())
    changed = (served - trained).abs().amax(dim=1) > SAME_COLOUR * spread
    share = float(changed.double().mean())
    if not LEAST < share < MOST or not _is_at_border(changed) or _is_tone(trained, served):
        return None
    before, after = (one.movedim(1, -1)[changed] for one in (trained, served))
    colours = before.median(dim=0).values, after.median(dim=0).values
    near = [
        ((one - colour).abs().amax(dim=1) < SAME_COLOUR * spread)
        for one, colour in zip((before, after), colours, strict=True)
    ]
    is_other = float((colours[0] - colours[1]).abs().max()) > OTHER_COLOUR * spread
    if not is_other or float((near[0] & near[1]).double().mean()) < ONE_COLOUR:
        return None
    first, second = (tuple(float(value) for value in colour) for colour in colours)
    return Fill(share, first, second)


def _is_at_border(changed: torch.Tensor) -> bool:
    """Whether what changed reaches the border in most images that changed."""
    touched = (changed[:, [0, -1]].any(dim=(1, 2)) | changed[:, :, [0, -1]].any(dim=(1, 2))).sum()
    return bool(2 * touched > changed.any(dim=(1, 2)).sum())


def _is_tone(trained: Images, served: Images) -> bool:
    """Whether a line per channel, another order of channels or the loss of colour explains pictures of few colours."""
    if fit_line(trained, served).explained > ALIKE:
        return True
    colours = [colour_share(one) for one in (trained, served)]
    if max(colours) < FEW_COLOURS:
        return False
    order = best_order(trained, served)
    is_grey = min(colours) < FEW_COLOURS / 50
    return is_grey or (order != (0, 1, 2) and fit_line(trained, served[:, list(order)]).explained > ALIKE)
