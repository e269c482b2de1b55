"""The choice of views and of the single-view geometry in sentences with the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from transferkit.core.score_text import format_end, format_gain, format_score
from transferkit.records import GEOMETRIES, ViewComparison, ViewScore
from transferkit.workflow.flip_check import FlipCheck
from transferkit.workflow.views.asked import ALONE_GEOMETRIES, AskedViews

__all__ = ["explain"]


def explain(
    found: ViewComparison,
    asked: AskedViews,
    *,
    same: Mapping[str, str],
    mirror: FlipCheck | None,
    notes: Sequence[str],
) -> Iterator[str]:
    """The reasons for a choice of views.

    Args:
        found: What was measured and chosen.
        asked: What was asked for.
        same: Geometry -> the one that shows the same of these images.
        mirror: What was found about mirror images, if they were tried.
        notes: Sentences about what was left out.
    """
    known = {score.name: score for score in found.scores}
    yield from _explain_geometry(found, asked, known)
    yield from _explain_average(found, known)
    if mirror is not None:
        verdict = "averaged as well" if mirror.safe else "left out"
        yield f"Mirror images are {verdict}: {mirror}."
    yield from _explain_same(same)
    yield from notes


def _explain_geometry(found: ViewComparison, asked: AskedViews, known: Mapping[str, ViewScore]) -> Iterator[str]:
    name, start = found.geometry, asked.start
    shown = f"{name} ({GEOMETRIES[name]})"
    if asked.geometry is not None:
        yield f"Geometry {shown} was requested."
        return
    others = [score for score in found.scores if score.name in ALONE_GEOMETRIES and score.name != start]
    measured = [score for score in others if score.accuracy is not None]
    if not measured:
        return
    figures, start_score = ", ".join(_with_gain(score) for score in measured), measured[0]
    on = f"held-back {start_score.measure} of the joined probe on {found.images:,} training images"
    first = f"{start} {_percent(known[start])}, {figures}"
    if name == start:
        yield f"Geometry {shown} is kept for single views: {on}: {first}; none is better by two standard errors."
    else:
        yield f"Geometry {shown} is better than {start} by two standard errors; {on}: {first}."


def _explain_average(found: ViewComparison, known: Mapping[str, ViewScore]) -> Iterator[str]:
    count = len(found.views)
    if count == 1:
        return
    used = next((score for score in found.scores if score.used), None)
    accuracy = ""
    if used is not None and used.accuracy is not None:
        accuracy = (
            f"; held-back {used.measure} of the joined probe {_with_gain(used).removeprefix(used.name).strip()} "
            f"against {_percent(found.scores[0])} with {found.scores[0].name} alone, on {found.images:,} training "
            "images"
        )
    yield f"Features and predictions are averaged over {count} views of each image: {', '.join(found.views)}{accuracy}."
    yield (
        f"A view costs a pass of the backbone{_took(found, known)}. Predicting an image takes {count} passes, about "
        f"{_milliseconds(count * (found.image_seconds or 0.0))}, where views=1 takes "
        f"{_milliseconds(found.image_seconds or 0.0)}."
    )


def _took(found: ViewComparison, known: Mapping[str, ViewScore]) -> str:
    """Seconds of the passes that were not in the bank, as part of a sentence."""
    ran = [known[name] for name in found.views if name in known and known[name].computed]
    took = ", ".join(f"{score.name} {score.seconds:.2g} s" for score in ran if score.seconds is not None)
    return f" ({took})" if took else " (all features were in the bank already)"


def _milliseconds(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"


def _explain_same(same: Mapping[str, str]) -> Iterator[str]:
    shows: dict[str, list[str]] = {}
    for name, like in same.items():
        shows.setdefault(like, []).append(name)
    for like, names in shows.items():
        verb = "make" if len(names) > 1 else "makes"
        yield f"For these images {' and '.join(names)} {verb} the same pictures as {like}: one pass for all."


def _with_gain(score: ViewScore) -> str:
    if score.gain is None or score.gain_error is None:
        return f"{score.name} {_percent(score)}"
    return (
        f"{score.name} {_percent(score)} ({format_gain(score.gain, score.measure)}, standard error "
        f"{format_end(score.gain_error, score.measure)})"
    )


def _percent(score: ViewScore) -> str:
    return "unknown" if score.accuracy is None else format_score(score.accuracy, score.measure)
