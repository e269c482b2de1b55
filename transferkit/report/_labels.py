"""What the contact sheet of doubtful labels says: a `LabelReview` in; sentences, rows and pictures out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transferkit.records import CORRECTED, LabelReview, ReviewedLabel, removal_word
from transferkit.report._tiles import Tile, make_tile
from transferkit.report._words import as_typed, format_count, format_percent, format_seconds, name_split, plural

__all__ = ["Doubtful", "LabelsPage", "write_doubtful", "write_labels"]

MAX_PAIRS = 8


@dataclass(frozen=True, kw_only=True)
class Doubtful:
    """An image that looks more like another class."""

    rank: int
    tile: Tile
    label: str
    suggested: str
    probability: str
    suggested_probability: str
    is_likely: bool
    note: str


@dataclass(frozen=True, kw_only=True)
class LabelsPage:
    """Everything the page says.

    Args:
        figure, subject: The number of likely errors, and what it counts.
        sentences: The outcome.
        pictures: Worst first.
        more: Listed images without a picture.
        pairs: (label, suggested, count) of what is confused most.
        removed: The word that removes an image.
    """

    title: str
    figure: str
    subject: str
    sentences: tuple[str, ...]
    pictures: tuple[Doubtful, ...]
    more: int
    pairs: tuple[tuple[str, str, str], ...]
    column: str
    removed: str
    corrected: int
    facts: tuple[tuple[str, str], ...]
    command: str


def write_labels(review: LabelReview) -> LabelsPage:
    """The page of a review."""
    pictures = write_doubtful(review.rows)
    return LabelsPage(
        title=f"Labels of {review.data.origin}",
        figure=format_count(review.likely_errors),
        subject=f"likely label {'error' if review.likely_errors == 1 else 'errors'} among "
        f"{plural(review.images, 'image')}",
        sentences=review.sentences,
        pictures=pictures,
        more=len(review.rows) - len(pictures),
        pairs=_pairs(review.rows),
        column=CORRECTED,
        removed=removal_word(review.data.classes),
        corrected=len(review.corrected) + sum(bool(row.corrected) for row in review.rows),
        facts=(
            ("Images compared", format_count(review.images)),
            ("Classes", format_count(review.data.num_classes)),
            ("Backbone", review.backbone),
            ("Total time", format_seconds(review.seconds)),
        ),
        command=as_typed(review.command),
    )


def write_doubtful(rows: Sequence[ReviewedLabel]) -> tuple[Doubtful, ...]:
    """Those of these rows that have a picture, ranked as they come."""
    return tuple(_doubtful(rank, row) for rank, row in enumerate(rows, start=1) if row.picture is not None)


def _doubtful(rank: int, row: ReviewedLabel) -> Doubtful:
    assert row.picture is not None
    notes = [] if row.split == "train" else [f"{name_split(row.split)} image"]
    notes += ["corrected before"] if row.corrected else []
    return Doubtful(
        rank=rank,
        tile=make_tile(row.picture),
        label=row.label,
        suggested=row.suggested,
        probability=format_percent(row.probability),
        suggested_probability=format_percent(row.suggested_probability),
        is_likely=row.is_likely_error,
        note=", ".join(notes),
    )


def _pairs(rows: Sequence[ReviewedLabel]) -> tuple[tuple[str, str, str], ...]:
    """The pairs of classes that are confused more than once, most often first."""
    counts = Counter((row.label, row.suggested) for row in rows)
    return tuple(
        (label, suggested, format_count(count))
        for (label, suggested), count in counts.most_common(MAX_PAIRS)
        if count > 1
    )
