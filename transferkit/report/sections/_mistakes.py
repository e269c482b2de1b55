"""The wrong predictions with the highest confidence."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from transferkit.records import HeldOut, RunRecord
from transferkit.report._labels import Doubtful, write_doubtful
from transferkit.report._tiles import Tile, make_tile
from transferkit.report._words import format_percent, name_split, plural

__all__ = ["Mistakes", "write_mistakes"]

MAX_MISTAKES = 24

ADAPT = "transferkit adapt "

OTHERS = ("out=", "overwrite=", "resume=", "evaluate=", "train.", "trainer")
"""Settings of adapt that say nothing about a review of labels or images."""


WORST = {
    "multi_label": "The wrong decisions about a label that the model was surest of. Where the decision looks right, "
    "check the labels.",
    "regression": "The largest errors, in units of the spread of the numbers. Where the prediction looks right, check "
    "the number.",
}


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """A misclassified image."""

    tile: Tile
    true: str
    predicted: str
    confidence: str
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """The worst mistakes.

    Args:
        sentence: What they are.
        pictures: Worst first.
        more: Those without a picture.
        doubtful: Training and validation images whose labels are probably wrong.
        reviews: Commands that look for wrong labels, and for copies and outliers; none for a run from Python.
    """

    sentence: str
    pictures: tuple[Wrong, ...]
    more: int
    doubtful: tuple[Doubtful, ...]
    reviews: tuple[str, ...]


def write_mistakes(record: RunRecord, held_out: HeldOut | None) -> Mistakes:
    """The worst mistakes, with pictures."""
    pictures = tuple(
        Wrong(
            tile=make_tile(mistake.picture),
            true=mistake.true,
            predicted=mistake.predicted,
            confidence=format_percent(mistake.confidence) if mistake.confidence else "",
            error=mistake.error,
        )
        for mistake in record.mistakes[:MAX_MISTAKES]
    )
    task = record.evidence.data.task
    if pictures and task != "single_label":
        sentence = WORST[task]
    elif pictures:
        sentence = (
            "The wrong predictions with the highest confidence. Where the prediction looks right, check the label."
        )
    elif held_out is None:
        sentence = "There are no held-out predictions to find mistakes in."
    elif held_out.targets is None and bool((held_out.probabilities.argmax(axis=1) == held_out.labels).all()):
        sentence = f"There are none among {plural(len(held_out.labels), f'{name_split(held_out.split)} image')}."
    elif task == "multi_label" and not record.mistakes:
        sentence = f"All labels are right on {plural(len(held_out.labels), f'{name_split(held_out.split)} image')}."
    else:
        sentence = "No pictures of mistakes were kept for this run."
    return Mistakes(
        sentence=sentence,
        pictures=pictures,
        more=max(0, len(record.mistakes) - MAX_MISTAKES),
        doubtful=write_doubtful(record.label_errors),
        reviews=_reviews(record.command) if task == "single_label" else (),
    )


def _reviews(command: str) -> tuple[str, ...]:
    """The commands that review the labels and images of a run.

    Example:
        >>> _reviews("transferkit adapt data.root=x out=run train.epochs=3 seed=0")[0]
        'transferkit doctor labels data.root=x seed=0 out=review'
    """
    if not command.startswith(ADAPT):
        return ()
    words = [word for word in shlex.split(command.removeprefix(ADAPT)) if not word.startswith(OTHERS)]
    return tuple(shlex.join(["transferkit", "doctor", what, *words, "out=review"]) for what in ("labels", "images"))
