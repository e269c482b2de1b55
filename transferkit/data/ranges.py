"""Findings about images deeper than 8 bits and about content lost in the conversion to 8-bit RGB.

Works on inspections, not on pixels. Black and white are measured on training images only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from transferkit.data.depth import Range, ValueSketch, choose_range
from transferkit.data.inspection import Inspection
from transferkit.data.traits import CLEAR, REDUCED
from transferkit.records import Finding, Severity

__all__ = ["RangeCheck", "describe_range", "find_losses", "find_range"]

LITTLE = 0.25
"""Share of the declared range below which the measured range causes a warning."""

SLACK = 0.05
"""How far an image may exceed the range, relative to its width, before it is reported."""

_SHOWN = 3
HOW_TO_CHOOSE = (
    "To choose black and white yourself, pass preprocessing=dataclasses.replace("
    "transferkit.load_backbone(MODEL).spec.preprocessing, value_range=(BLACK, WHITE))"
)


@dataclass(frozen=True)
class RangeCheck:
    """Black and white of a data set's deep images, and findings about them."""

    value_range: Range | None
    findings: tuple[Finding, ...]


def find_range(
    names: Sequence[str], inspections: Sequence[Inspection], splits: Sequence[str], *, given: Range | None = None
) -> RangeCheck:
    """Choose the range on the training images, and compare all images with it.

    Args:
        names, inspections, splits: One per usable image.
        given: The range that the user passed, instead of a measured one.
    """
    deep = [row for row, one in enumerate(inspections) if one.sketch is not None]
    if not deep:
        return RangeCheck(None, ())
    train = [row for row in deep if splits[row] == "train"]
    sketches = {row: sketch for row in deep if (sketch := inspections[row].sketch) is not None}
    value_range = given or choose_range([sketches[row] for row in train])
    if value_range is None:
        where = "in train" if train else "in val or test, none in train"
        message = (
            f"{_number(len(deep), 'image')} deeper than 8 bits {where}: no training image defines black and "
            "white, so each is scaled by the range that its file declares. Save all images in one depth."
        )
        return RangeCheck(None, (Finding(kind="value_range", severity="warning", message=message),))
    found = [
        _range_finding(sketches, value_range, given is not None),
        *_missing(names, sketches),
        *_clipped(names, splits, sketches, value_range),
        *_mixed(inspections, sketches),
    ]
    return RangeCheck(value_range, tuple(found))


def _range_finding(sketches: dict[int, ValueSketch], value_range: Range, given: bool) -> Finding:
    kinds = Counter(sketch.kind for sketch in sketches.values())
    listed = ", ".join(f"{_number(number, 'image')} of {kind} values" for kind, number in kinds.most_common())
    how = "as given" if given else "measured on the training images"
    message = (
        f"Deeper than 8 bits: {listed}. In all of them black is "
        f"{_value(value_range[0])} and white is {_value(value_range[1])}, {how}; the model stores these."
    )
    declared = next(iter(sketches.values())).declared
    share = 1.0 if declared is None else (value_range[1] - value_range[0]) / (declared[1] - declared[0])
    if share >= LITTLE or given:
        return Finding(kind="value_range", severity="info", message=message)
    assert declared is not None
    message += (
        f" That is {100 * share:.2g} % of the range of the files ({_value(declared[0])} to {_value(declared[1])}): "
        f"new images must have the same scale. {HOW_TO_CHOOSE}."
    )
    return Finding(kind="little_range_used", severity="warning", message=message)


def _missing(names: Sequence[str], sketches: dict[int, ValueSketch]) -> list[Finding]:
    """Findings about values that stand for missing data."""
    rows = [row for row, sketch in sketches.items() if sketch.missing or sketch.not_finite]
    if not rows:
        return []
    unstated = any(set(sketches[row].missing) - set(sketches[row].stated) for row in rows)
    broken = sum(sketches[row].not_finite > 0 for row in rows)
    shown = _count_missing(
        [sketches[row].missing for row in rows], "far from all others" if unstated else "by its files"
    )
    if broken:
        shown.append(f"NaN or infinity in {_number(broken, 'image')}")
    message = (
        f"Missing values: {' and '.join(shown)}, e.g. {names[rows[0]]}. They are ignored when measuring black and "
        "white; in the pictures values below black and NaN are black, values above white are white."
    )
    severity: Severity = "warning" if unstated or broken else "info"
    return [Finding(kind="missing_values", severity=severity, message=message, items=tuple(names[row] for row in rows))]


def _count_missing(missing: Iterable[Sequence[float]], why: str) -> list[str]:
    """The most frequent values, with the number of images; empty if there are none."""
    values = Counter(value for of_one in missing for value in of_one)
    if not values:
        return []
    shown = [f"{_value(value)} in {_number(count, 'image')}" for value, count in values.most_common(_SHOWN)]
    if len(values) > _SHOWN:
        shown.append(f"{len(values) - _SHOWN} other values")
    return [f"{', '.join(shown)} ({why})"]


def leaves(sketch: ValueSketch, value_range: Range) -> bool:
    """Whether an image exceeds the range by more than `SLACK`, a few pixels and missing values aside."""
    if not sketch.quantiles:
        return False
    black, white = value_range
    slack = SLACK * (white - black)
    return sketch.low < black - slack or sketch.high > white + slack


def _clipped(
    names: Sequence[str], splits: Sequence[str], sketches: dict[int, ValueSketch], value_range: Range
) -> list[Finding]:
    rows = [row for row, sketch in sketches.items() if leaves(sketch, value_range)]
    if not rows:
        return []
    counts = ", ".join(f"{number} in {split}" for split, number in Counter(splits[row] for row in rows).items())
    worst = max(rows, key=lambda row: _beyond(sketches[row], value_range))
    found = sketches[worst].quantiles
    message = (
        f"Clipped: {_number(len(rows), 'image')} ({counts}) with values beyond black ({_value(value_range[0])}) or "
        f"white ({_value(value_range[1])}), e.g. {names[worst]}, {_value(found[0])} to {_value(found[-1])}. Are they "
        "of the same instrument and unit?"
    )
    return [Finding(kind="clipped", severity="warning", message=message, items=tuple(names[row] for row in rows))]


def _beyond(sketch: ValueSketch, value_range: Range) -> float:
    return max(value_range[0] - sketch.quantiles[0], sketch.quantiles[-1] - value_range[1])


def _mixed(inspections: Sequence[Inspection], sketches: dict[int, ValueSketch]) -> list[Finding]:
    kinds = Counter(sketch.kind for sketch in sketches.values())
    if plain := sum(row not in sketches for row in range(len(inspections))):
        kinds["8-bit"] = plain
    if len(kinds) == 1:
        return []
    listed = ", ".join(f"{number:,} of {kind} values" for kind, number in kinds.most_common())
    message = (
        f"The data set mixes bit depths: {listed}. Images deeper than 8 bits share one black and white, 8-bit ones "
        "keep 0 and 255; if depth correlates with class, it reveals the class. Save all in one depth."
    )
    return [Finding(kind="mixed_depth", severity="warning", message=message)]


def check_new(sketches: Sequence[ValueSketch], value_range: Range) -> str:
    """A sentence on new images whose values do not fit the model's range; empty if they do.

    Args:
        sketches: Of new images that are deeper than 8 bits.
        value_range: The model's.
    """
    usable = [sketch for sketch in sketches if sketch.quantiles]
    if not usable:
        return ""
    least, most = min(sketch.quantiles[0] for sketch in usable), max(sketch.quantiles[-1] for sketch in usable)
    where = f"{_value(least)} to {_value(most)}"
    model = (
        f"black is {_value(value_range[0])} and white {_value(value_range[1])} in this model, as in its training images"
    )
    outside = sum(leaves(sketch, value_range) for sketch in usable)
    if outside:
        return (
            f"{outside} of {_number(len(usable), 'deep image')} have values beyond black or white and are clipped: "
            f"{model}; these images have {where}. Are they of the same instrument and unit?"
        )
    if most - least < SLACK * (value_range[1] - value_range[0]):
        return (
            f"The images use little of the model's range: {model}; these images have {where} only. Are they of "
            "the same instrument and unit?"
        )
    return ""


def describe_range(value_range: Range) -> str:
    """Text for display: "black 1,000, white 1,100"."""
    return f"black {_value(value_range[0])}, white {_value(value_range[1])}"


def find_losses(names: Sequence[str], inspections: Sequence[Inspection]) -> list[Finding]:
    """Findings about file content that is not read: later frames, extra bands, lower bits, fully transparent images."""
    found = [check(names, inspections) for check in (_frames, _bands, _reduced, _clear)]
    return [finding for findings in found for finding in findings]


def _frames(names: Sequence[str], inspections: Sequence[Inspection]) -> Iterable[Finding]:
    rows = [row for row, one in enumerate(inspections) if one.frames > 1]
    if rows:
        most = max(inspections[row].frames for row in rows)
        message = (
            f"Several frames or pages: {_number(len(rows), 'file')} ({_some(names, rows)}), up to {most:,} in one. The "
            "first is used, the others are ignored. If they are separate images, save each as a file."
        )
        found = _warning("several_frames", message, names, rows)
        # Phones store a gain map or a preview as a second frame.
        yield replace(found, severity="info") if all(inspections[row].format == "MPO" for row in rows) else found


def _bands(names: Sequence[str], inspections: Sequence[Inspection]) -> Iterable[Finding]:
    rows = [row for row, one in enumerate(inspections) if one.dropped]
    if rows:
        most = max(inspections[row].dropped for row in rows)
        message = (
            f"Extra bands that are not read: {_number(len(rows), 'image')} ({_some(names, rows)}), up to {most} "
            "each; the first are used as grey, or as red, green and blue. If others matter, save three of them as RGB."
        )
        yield _warning("dropped_bands", message, names, rows)


def _reduced(names: Sequence[str], inspections: Sequence[Inspection]) -> Iterable[Finding]:
    rows = [row for row, one in enumerate(inspections) if REDUCED in one.traits]
    if rows:
        message = (
            f"Read with 8 of 16 bits: {_number(len(rows), 'image')} ({_some(names, rows)}); images that use only a "
            "small part of the range lose most of their content. To have the range measured, save them as 16-bit PNG "
            "in colour or grey, without alpha."
        )
        yield _warning("reduced_depth", message, names, rows)


def _clear(names: Sequence[str], inspections: Sequence[Inspection]) -> Iterable[Finding]:
    rows = [row for row, one in enumerate(inspections) if CLEAR in one.traits]
    if rows:
        message = (
            f"Fully transparent: {_number(len(rows), 'image')} ({_some(names, rows)}). The colours underneath are "
            "used. If they are meant to be visible, save the images without alpha; else remove them."
        )
        yield _warning("transparent", message, names, rows)


def _warning(kind: str, message: str, names: Sequence[str], rows: Sequence[int]) -> Finding:
    return Finding(kind=kind, severity="warning", message=message, items=tuple(names[row] for row in rows))


def _some(names: Sequence[str], rows: Sequence[int]) -> str:
    more = f", and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return ", ".join(names[row] for row in rows[:_SHOWN]) + more


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _value(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.4g}"
