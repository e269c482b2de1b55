"""Steps before anything is fitted: opening, audit, frozen passes in all their views, probes; and their cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transferkit.core.memory import peak_memory
from transferkit.decision import START_SECONDS
from transferkit.features import choose_device
from transferkit.records import PlannedFile, PlannedStep
from transferkit.workflow.dry_run.prospect import ID_BYTES, META_BYTES, Prospect
from transferkit.workflow.source_similarity import SAMPLE
from transferkit.workflow.views.asked import view_of
from transferkit.workflow.views.planned import PlannedView

__all__ = ["audit_step", "load_step", "measuring_steps", "memory_of_features", "pass_steps", "planned_files"]

PASS_RANGE = (0.5, 1.6)
"""Of a pass at the pace of the network as it is: the fastest engine takes half, another job's load makes it slower."""

AUDIT_RANGE = (0.6, 1.8)

AUDIT_BYTES = 640
"""Of an image in the audit's cache; 580 stamps took 377 kB."""

ENGINE_SECONDS = (2.0, 9.0)
"""To open, check and time further engines, the first time a network has much to compute (Lite0, 96 px: 5 to 6)."""

ENGINE_MEMORY = 500 * 2**20
"""Of onnxruntime and openvino with a small network."""

TRIAL_IMAGES = 1000
"""Images from which engines are tried, about: 200e9 operations per core of Lite0 at 96 px."""

PACE_SECONDS = (1.0, 5.0)
"""To time the network and its training steps, if no earlier run has."""

PROBE_SECONDS = 0.4
PROBE_RATE = 6e9
"""Products per second of N D min(N, D) in all measurements together, beyond `PROBE_SECONDS`."""


def load_step(prospect: Prospect) -> PlannedStep:
    """Imports and the backbone's weights."""
    return PlannedStep(
        name="load backbone",
        what=f"Start, and load {prospect.backbone.spec.name}.",
        seconds_low=0.3 * START_SECONDS + 0.5 * prospect.load_seconds,
        seconds_high=START_SECONDS + 2 * prospect.load_seconds,
        basis="measured now",
        memory_bytes=peak_memory(),
    )


def audit_step(prospect: Prospect) -> PlannedStep:
    """Reading every file that no audit remembers."""
    glance, images = prospect.glance, len(prospect.data)
    if glance is None:
        what, unread, seconds = "Check the images of a dataset in memory.", images, 0.0
    else:
        images, unread = glance.files, glance.unread
        what, seconds = "Read and check image files; those that an audit remembers are not read.", glance.seconds
    low, high = (share * unread * seconds for share in AUDIT_RANGE)
    return PlannedStep(
        name="audit data",
        what=what,
        images=images,
        passes=0.0,
        in_bank=images - unread,
        seconds_low=low,
        seconds_high=high + 0.5,
        basis="measured now",
        memory_bytes=peak_memory(),
        disk_bytes_low=AUDIT_BYTES * unread if glance is not None else 0,
        disk_bytes_high=AUDIT_BYTES * unread + 2**14 if glance is not None else 0,
    )


def pass_steps(prospect: Prospect, views: Sequence[PlannedView], *, times: bool = True) -> list[PlannedStep]:
    """The frozen pass, the paces of this machine, and the passes of further views.

    Args:
        prospect: What is run.
        views: The first pass's in front.
        times: Whether a run measures paces.
    """
    first, *others = views
    frozen = _pass(prospect, "frozen pass", "Features of all stages, in the bank.", [first])
    steps = [frozen]
    if times and not prospect.paces.remembered:
        steps.append(
            PlannedStep(
                name="pace",
                what="Time the network and its training steps.",
                seconds_low=PACE_SECONDS[0] if prospect.paces.step_seconds else 0.3,
                seconds_high=PACE_SECONDS[1] if prospect.paces.step_seconds else 2.0,
                memory_bytes=peak_memory(),
            )
        )
    certain = [view for view in others if view.is_certain]
    if certain:
        named = ", ".join(view.name + ("+mirror" if view.mirrored else "") for view in certain)
        steps.append(_pass(prospect, "views", f"The same in further views: {named}.", certain))
    if maybe := [view for view in others if not view.is_certain]:
        what = "Mirror images of each view, if held-back images show that they are safe."
        steps.append(_pass(prospect, "views", what, maybe))
    return steps


def _pass(prospect: Prospect, name: str, what: str, views: Sequence[PlannedView]) -> PlannedStep:
    rows, own = prospect.rows, prospect.backbone.spec.preprocessing
    asked, missing, disk = 0, 0, 0
    for view in views:
        among = rows if view.images is None else prospect.train
        there = len(among) if view.images is None else min(view.images, len(among))
        lacking = min(there, prospect.missing(among, own.seen_as(view_of(view.name, own, mirrored=view.mirrored))))
        asked, missing, disk = asked + there, missing + lacking, disk + prospect.row_bytes(lacking)
    if name == "frozen pass" and missing and prospect.backbone.source_moments():
        sampled = min(SAMPLE, len(prospect.train))
        disk += sampled * (4 * sum(prospect.backbone.moment_widths().values()) + ID_BYTES) + META_BYTES
    low, high = (share * missing * prospect.image_seconds for share in PASS_RANGE)
    is_certain = all(view.is_certain for view in views)
    is_tried = is_certain and tries_engines(prospect, missing)  # once; mirror images come after the others
    return PlannedStep(
        name=name,
        what=what,
        images=asked,
        in_bank=asked - missing,
        seconds_low=low if is_certain else 0.0,
        seconds_high=high + (0.5 if missing else 0.2) + (ENGINE_SECONDS[1] if is_tried else 0.0),
        basis="remembered" if prospect.paces.remembered else "measured now",
        memory_bytes=memory_of_features(prospect, len(rows)) + (ENGINE_MEMORY if is_tried else 0),
        disk_bytes_low=disk if is_certain else 0,
        disk_bytes_high=disk,
        is_certain=is_certain,
    )


def tries_engines(prospect: Prospect, images: int) -> bool:
    """Whether engines may be opened that have not been timed here."""
    on_cpu = choose_device(prospect.options.device).type == "cpu"
    return prospect.options.engine == "auto" and on_cpu and images >= TRIAL_IMAGES


def memory_of_features(prospect: Prospect, images: int) -> int:
    """Bytes of the process with so many rows of features loaded and solved for."""
    width = prospect.width
    solved = 8 * min(images, width) ** 2 * 3 + 8 * images * width
    return peak_memory() + 4 * images * width * 2 + solved


def measuring_steps(prospect: Prospect, *, name: str = "probe") -> list[PlannedStep]:
    """Similarity, probes of every stage, selected features, learning curves."""
    images, width = len(prospect.train), prospect.width
    seconds = PROBE_SECONDS + images * width * min(images, width) / PROBE_RATE
    return [
        PlannedStep(
            name=name,
            what="Probes of every stage, selected features, learning curves, similarity: in closed form.",
            images=images,
            passes=0.0,
            seconds_low=0.5 * seconds,
            seconds_high=3 * seconds + 0.5,
            memory_bytes=memory_of_features(prospect, images),
        )
    ]


def planned_files(out: Path | None, sizes: dict[str, int]) -> tuple[PlannedFile, ...]:
    """Files of a run, replaced where they are there already.

    Args:
        out: The run's folder; None writes none.
        sizes: Name -> bytes, about.
    """
    if out is None:
        return ()
    return tuple(
        PlannedFile(path=str(out / name), action="replace" if (out / name).exists() else "write", bytes=size)
        for name, size in sizes.items()
    )
