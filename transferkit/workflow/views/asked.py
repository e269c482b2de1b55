"""The options geometry= and views=, and the views that they make of a checkpoint's own preprocessing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from transferkit.core.errors import OptionError, unknown_name
from transferkit.data import Data, same_pictures
from transferkit.records import GEOMETRIES, CropMode, Preprocessing, View

__all__ = [
    "ALONE",
    "ALONE_GEOMETRIES",
    "AUTO_VIEWS",
    "MIRROR",
    "AskedViews",
    "apply_views",
    "ask_views",
    "distinct_geometries",
    "fixed_views",
    "image_sizes",
    "refuse_for_tensors",
    "view_of",
    "wanted_geometries",
]

ALONE_GEOMETRIES = ("crop", "full", "squash", "pad")
"""Those that are compared for single views with geometry=auto: all show the picture at its usual scale."""

MIRROR = "mirror"
"""In views=: each of the others once more, flipped left to right."""

ALONE = "1"
AUTO = "auto"

AUTO_VIEWS = ("crop", "squash", "zoom", "wide")
"""What views=auto averages, as many of them as are affordable; scripts/bench_views.py measures the gain."""

_SHAPES: dict[str, tuple[CropMode, float]] = {
    "full": ("center", 1.0),
    "squash": ("squash", 1.0),
    "pad": ("border", 1.0),
    "zoom": ("center", 0.75),
    "wide": ("border", 1.2),
}
"""Name -> crop mode and share of the resized side that is kept."""


@dataclass(frozen=True, kw_only=True)
class AskedViews:
    """The views that were asked for.

    Args:
        geometry: For a single view; None: by measurement.
        views: Geometries to average over, in the order of `GEOMETRIES`; empty: one alone; None: by cost.
        mirror: Whether mirror images are asked for; with `views` None this is measured.
    """

    geometry: str | None = None
    views: tuple[str, ...] | None = None
    mirror: bool = False

    @property
    def plain(self) -> bool:
        """Whether the checkpoint's own preprocessing is asked for, or nothing in particular."""
        return self.geometry in (None, "crop") and not self.views and not self.mirror

    @property
    def start(self) -> str:
        """The geometry of the first pass, which the others are compared with."""
        return self.geometry or (self.views[0] if self.views else "crop")

    def __str__(self) -> str:
        views = AUTO if self.views is None else "+".join([*self.views, *([MIRROR] if self.mirror else [])]) or ALONE
        return f"geometry={self.geometry or AUTO}, views={views}"


def ask_views(geometry: object = AUTO, views: object = AUTO) -> AskedViews:
    """The values of geometry= and views=; case, spaces, order and repetition do not matter.

    Args:
        geometry: "auto", or a name in `GEOMETRIES`.
        views: "auto"; 1 for the geometry alone; or names in `GEOMETRIES` and "mirror", joined by "+" or in a list.

    Raises:
        OptionError: A name is unknown, or the two do not go together.

    Example:
        >>> ask_views(views="pad + crop") == ask_views(views=["crop", "PAD", "pad"])
        True
    """
    named = _one_geometry(geometry)
    words = _words(views)
    if words == [AUTO]:
        return AskedViews(geometry=named)
    if words == [ALONE]:
        return AskedViews(geometry=named, views=())
    for word in words:
        if word in (AUTO, ALONE):
            raise OptionError(f"views={word} stands alone; got {views!r}. Name the others without it: views=crop+pad.")
        if word not in (*GEOMETRIES, MIRROR):
            raise OptionError(unknown_name("view", word, [*GEOMETRIES, MIRROR], remedy=_REMEDY))
    chosen = tuple(name for name in GEOMETRIES if name in words)
    if named is not None and chosen and named not in chosen:
        raise OptionError(
            f"Networks are trained on geometry={named}, which is not among views={'+'.join(words)}. Add it "
            f"(views={'+'.join([named, *words])}), or leave geometry out."
        )
    if len(chosen) == 1:
        named, chosen = chosen[0], ()
    return AskedViews(geometry=named, views=chosen, mirror=MIRROR in words)


_REMEDY = "Write views=auto, views=1, or names joined by +, such as views=crop+squash+zoom."


def _one_geometry(geometry: object) -> str | None:
    word = str(geometry).strip().lower()
    if word == AUTO:
        return None
    if word not in GEOMETRIES:
        raise OptionError(
            unknown_name(
                "geometry",
                geometry,
                [AUTO, *GEOMETRIES],
                remedy="Several are averaged with views=, as in views=crop+pad.",
            )
        )
    return word


def _words(views: object) -> list[str]:
    """Lower-case words of views=, each once."""
    parts: Iterable[object] = [views] if isinstance(views, (str, int, float)) else ()
    if isinstance(views, Sequence) and not isinstance(views, (str, bytes)):
        parts = views
    words = [word for part in parts for word in re.split(r"[+,\s]+", str(part).lower()) if word]
    if not words or isinstance(views, bool):
        raise OptionError(f"views must be auto, 1, or names joined by +, got {views!r}. {_REMEDY}")
    return list(dict.fromkeys(words))


def wanted_geometries(asked: AskedViews) -> tuple[str, ...]:
    """Geometries to average over if there were no limit on cost, the first pass's in front.

    Example:
        >>> wanted_geometries(ask_views()), wanted_geometries(ask_views(views="pad+crop"))
        (('crop', 'squash', 'zoom', 'wide'), ('crop', 'pad'))
    """
    start = asked.start
    if asked.views is not None:
        return (start, *(name for name in asked.views if name != start))
    others = [name for name in AUTO_VIEWS if name != start]
    # The largest centre square takes the place of the checkpoint's crop: the two differ by a rim.
    return (start, *(others[1:] if start == "full" else others))


def refuse_for_tensors(asked: AskedViews) -> None:
    """Refuse views of tensors that were prepared elsewhere.

    Raises:
        OptionError: Anything but auto, views=1 or geometry=crop was asked for.
    """
    if not asked.plain:
        raise OptionError(
            f"With preprocessed=True tensors are taken as they are, and {asked} asks for pictures that are resized "
            "here. Leave geometry and views out, or pass pictures."
        )


def view_of(name: str, own: Preprocessing, *, mirrored: bool = False) -> View:
    """The view of that name, for a checkpoint with this preprocessing."""
    label = f"{name}+{MIRROR}" if mirrored else name
    if name == "crop":
        return View(name=label, crop_mode=own.crop_mode, crop_pct=own.crop_pct, mirrored=mirrored)
    mode, share = _SHAPES[name]
    return View(name=label, crop_mode=mode, crop_pct=share, mirrored=mirrored)


def distinct_geometries(
    names: Iterable[str], own: Preprocessing, sizes: Sequence[tuple[int, int]]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The geometries that make different pictures of images of these sizes.

    Args:
        names: In `GEOMETRIES`, the one to be kept of equal ones first.
        own: The checkpoint's.
        sizes: (width, height) of the images.

    Returns:
        Those to keep, in the order given; and name -> the one kept that shows the same.

    Example:
        >>> own = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop_pct=0.8)
        >>> distinct_geometries(["crop", "squash", "pad"], own, [(20, 20), (9, 9)])
        (('crop', 'squash'), {'pad': 'squash'})
    """
    kept: dict[str, Preprocessing] = {}
    same: dict[str, str] = {}
    for name in names:
        seen = own.seen_as(view_of(name, own))
        like = next((other for other, known in kept.items() if same_pictures(seen, known, sizes)), None)
        if like is None:
            kept[name] = seen
        elif like != name:
            same[name] = like
    return tuple(kept), same


def apply_views(own: Preprocessing, geometry: str, names: Sequence[str], *, mirror: bool) -> Preprocessing:
    """A checkpoint's preprocessing with this geometry, averaged over these views.

    Args:
        own: The checkpoint's.
        geometry: For a single view.
        names: Geometries to average over.
        mirror: Whether the mirror image of each takes part.
    """
    chosen = own
    if geometry != "crop":
        chosen = replace(own.seen_as(view_of(geometry, own)), origin=f"{own.origin}; geometry {geometry}")
    turns = (False, True) if mirror else (False,)
    views = tuple(view_of(name, own, mirrored=mirrored) for mirrored in turns for name in names)
    return chosen if len(views) == 1 else replace(chosen, views=views)


def image_sizes(data: Data) -> list[tuple[int, int]]:
    """(width, height) that occur among the training images, in pixels: what is chosen, is chosen on those."""
    found = np.unique(data.sizes[data.indices("train")], axis=0)
    return [(max(1, int(width)), max(1, int(height))) for width, height in found]


def fixed_views(asked: AskedViews, own: Preprocessing, data: Data) -> Preprocessing:
    """The views that were asked for, without any measurement; "auto" is the checkpoint's own crop.

    Args:
        asked: Geometry and views.
        own: The checkpoint's preprocessing.
        data: Geometries that show the same of all its training images are run once.
    """
    if asked.plain:
        return own
    names, _ = distinct_geometries(asked.views or (asked.start,), own, image_sizes(data))
    return apply_views(own, asked.start, names, mirror=asked.mirror)
