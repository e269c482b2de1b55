"""Which views of the images were used: geometries compared, and the views that are averaged."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.records import GEOMETRIES, ViewComparison, ViewScore
from transferkit.report._words import capitalise, format_measure, format_measure_gain, format_seconds, plural

__all__ = ["Views", "write_views"]


@dataclass(frozen=True, kw_only=True)
class ViewRow:
    """One view, or the mean over several; an empty string where nothing is known."""

    name: str
    what: str
    accuracy: str
    gain: str
    seconds: str
    used: bool


@dataclass(frozen=True, kw_only=True)
class Views:
    """The comparison of views."""

    sentence: str
    rows: tuple[ViewRow, ...]
    caption: str


def write_views(found: ViewComparison | None) -> Views | None:
    """What was compared; None if the checkpoint's own crop was used without a comparison."""
    if found is None:
        return None
    if len(found.views) > 1:
        sentence = (
            f"Features and predictions are averaged over {len(found.views)} views of each image: "
            f"{', '.join(found.views)}. Fine-tuned networks are trained on {found.geometry}."
        )
    else:
        sentence = f"Each image is seen in one view: {found.geometry}, {GEOMETRIES.get(found.geometry, '')}."
    measure = found.scores[0].measure if found.scores else "accuracy"
    model = "a ridge classifier" if measure == "accuracy" else "a ridge regression"
    measured = f"{capitalise(measure)} of {model} on all stages joined, on {plural(found.images, 'training image')}, "
    measured += "each held back from the fit, with the gain over the first row and its standard error."
    return Views(
        sentence=sentence,
        rows=tuple(map(_write_row, found.scores)),
        caption=measured if found.images else "Nothing was compared.",
    )


def _write_row(score: ViewScore) -> ViewRow:
    gain = ""
    if score.gain and score.gain_error is not None:
        gain = format_measure_gain(score.gain, score.gain_error, score.measure)
    seconds = ""
    if score.seconds is not None:
        seconds = format_seconds(score.seconds) if score.computed else "from the cache"
    return ViewRow(
        name=score.name,
        what=GEOMETRIES.get(score.name, "the mean" if score.seconds is None else "mirrored"),
        accuracy="" if score.accuracy is None else format_measure(score.accuracy, score.measure),
        gain=gain,
        seconds=seconds,
        used=score.used,
    )
