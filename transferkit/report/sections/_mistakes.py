"""The wrong answers the model was surest of."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.records import HeldOut, RunRecord
from transferkit.report._tiles import Tile, make_tile
from transferkit.report._words import format_percent, name_split, plural

__all__ = ["Mistakes", "write_mistakes"]

MAX_MISTAKES = 24


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """A picture the model got wrong."""

    tile: Tile
    true: str
    predicted: str
    confidence: str


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """The worst of them."""

    sentence: str
    pictures: tuple[Wrong, ...]
    more: int


def write_mistakes(record: RunRecord, held_out: HeldOut | None) -> Mistakes:
    """The worst mistakes, with pictures."""
    pictures = tuple(
        Wrong(
            tile=make_tile(mistake.picture),
            true=mistake.true,
            predicted=mistake.predicted,
            confidence=format_percent(mistake.confidence),
        )
        for mistake in record.mistakes[:MAX_MISTAKES]
    )
    if pictures:
        sentence = "The wrong answers the model was surest of. A picture that looks right may carry a wrong label."
    elif held_out is None:
        sentence = "There are no held-out answers to look for mistakes in."
    elif bool((held_out.probabilities.argmax(axis=1) == held_out.labels).all()):
        sentence = f"There are none on {plural(len(held_out.labels), f'{name_split(held_out.split)} image')}."
    else:
        sentence = "No pictures of mistakes were kept for this run."
    return Mistakes(sentence=sentence, pictures=pictures, more=max(0, len(record.mistakes) - MAX_MISTAKES))
