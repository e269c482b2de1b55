"""The passes that views will take, before any is made: what `choose_views` would run at this pace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transferkit.data import Data
from transferkit.records import Preprocessing
from transferkit.workflow.views.asked import (
    ALONE_GEOMETRIES,
    AskedViews,
    distinct_geometries,
    image_sizes,
    wanted_geometries,
)
from transferkit.workflow.views.choice import AUTO_SECONDS, BUDGET_SHARE, COMPARED, COMPARED_PER_CLASS, MIN_FLIPPED

__all__ = ["PlannedView", "plan_views"]


@dataclass(frozen=True, kw_only=True)
class PlannedView:
    """A view of the images.

    Args:
        name: Of its geometry.
        mirrored: Whether it is the mirror image.
        images: Number of images that are run; None: all that are measured.
        is_used: Whether features are averaged over it; else it is only compared, on some images.
        is_certain: Whether it is run in any case.
    """

    name: str
    mirrored: bool = False
    images: int | None = None
    is_used: bool = True
    is_certain: bool = True


def plan_views(
    asked: AskedViews | None, own: Preprocessing, data: Data, *, image_seconds: float, budget: float | None
) -> tuple[PlannedView, ...]:
    """The views that are run, the first pass's in front.

    Args:
        asked: Geometry and views that were asked for; None: those of the preprocessing as they are.
        own: The checkpoint's preprocessing.
        data: The images.
        image_seconds: Of one view of one image on this machine.
        budget: Seconds that everything after the first pass may take; None sets no limit but `AUTO_SECONDS`.
    """
    if asked is None:
        return (PlannedView(name="crop"),)
    start = PlannedView(name=asked.start)
    if asked.geometry is not None and asked.views == () and not asked.mirror:
        return (start,)
    sizes = image_sizes(data)
    names, _ = distinct_geometries(wanted_geometries(asked), own, sizes)
    if asked.views:
        return _each(names, mirrored=(False, True) if asked.mirror else (False,))
    if asked.views is not None:
        mirror = _each(names, mirrored=(True,)) if asked.mirror else ()
        return (start, *mirror, *_compared(asked, names, own, data, sizes, left=AUTO_SECONDS, pace=image_seconds))
    left = AUTO_SECONDS if budget is None else min(AUTO_SECONDS, BUDGET_SHARE * budget)
    a_pass = image_seconds * len(data)
    taken = names[: 1 + int(left / a_pass)] if a_pass > 0 else names
    left -= a_pass * (len(taken) - 1)
    mirrored: tuple[PlannedView, ...] = ()
    if len(taken) == len(names) and a_pass * len(names) <= left and len(data.indices("train")) >= MIN_FLIPPED:
        mirrored = _each(names, mirrored=(True,), is_certain=False)
        left -= a_pass * len(names)
    compared = _compared(asked, taken, own, data, sizes, left=left, pace=image_seconds)
    return (*_each(taken, mirrored=(False,)), *mirrored, *compared)


def _each(names: Sequence[str], *, mirrored: Sequence[bool], is_certain: bool = True) -> tuple[PlannedView, ...]:
    return tuple(PlannedView(name=name, mirrored=one, is_certain=is_certain) for one in mirrored for name in names)


def _compared(
    asked: AskedViews,
    names: Sequence[str],
    own: Preprocessing,
    data: Data,
    sizes: Sequence[tuple[int, int]],
    *,
    left: float,
    pace: float,
) -> tuple[PlannedView, ...]:
    """Geometries that are run on some images only, to find the best one alone."""
    if asked.geometry is not None:
        return ()
    distinct, _ = distinct_geometries(dict.fromkeys([*names, *ALONE_GEOMETRIES]), own, sizes)
    further = [name for name in distinct if name not in names]
    images = min(len(data.indices("train")), max(COMPARED, COMPARED_PER_CLASS * data.summary.num_classes))
    possible = int(max(left, 0) / (pace * images)) if pace * images > 0 else len(further)
    return tuple(PlannedView(name=name, images=images, is_used=False) for name in further[:possible])
