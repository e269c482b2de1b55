"""What the contact sheet of copies and outliers says: an `ImageReview` in; sentences and pairs of pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from transferkit.records import CORRECTED, CopyPair, ImageFinding, ImageReview, OutlierImage, removal_word
from transferkit.report._tiles import Tile, make_tile
from transferkit.report._words import as_typed, capitalise, format_count, format_seconds, name_split, plural

__all__ = ["ImagesPage", "write_images"]

KINDS = {
    "leak": (
        "Copies across splits",
        "Both are of one picture, so accuracy on the held-back one is too high. Leave the other out: test images stay "
        "as they are.",
    ),
    "conflict": (
        "Copies with two labels",
        "At most one of the two labels is right, unless mirroring or turning changes what a picture means, as with 6 "
        "and 9.",
    ),
    "copy": (
        "Other copies",
        "They have one label and are in one split. In training they do little harm; where accuracy is estimated by "
        "holding images back, it is too high.",
    ),
    "blank": (
        "One flat colour",
        "They show nothing. Were they cut off, or exported wrongly? No copies are looked for among them.",
    ),
    "outlier": (
        "Unlike all others",
        "They are far from the images of their class, and from all others. Are they of another kind, or damaged?",
    ),
}
"""Kind of finding -> its heading, and what to make of it."""


@dataclass(frozen=True, kw_only=True)
class ImageShown:
    """One picture of a finding.

    Args:
        tile: The picture.
        label: Name of its class.
        split: Its split in words.
    """

    tile: Tile
    label: str
    split: str


@dataclass(frozen=True, kw_only=True)
class FindingShown:
    """A pair of copies, or an outlier.

    Args:
        number: As in the table.
        how: What was done to the second picture; "" for an outlier.
        pictures: Two, or one.
        is_serious: Whether it is a leak, or has two labels.
    """

    number: int
    how: str
    pictures: tuple[ImageShown, ...]
    is_serious: bool


@dataclass(frozen=True, kw_only=True)
class KindShown:
    """Findings of one kind.

    Args:
        kind: Its name in the table.
        heading, sentence: What they are, and what to make of them.
        findings: Those with pictures.
        more: Listed ones without.
    """

    kind: str
    heading: str
    sentence: str
    findings: tuple[FindingShown, ...]
    more: str


@dataclass(frozen=True, kw_only=True)
class ImagesPage:
    """Everything the page says.

    Args:
        figure, subject: The number of pairs, and what it counts.
        sentences: The outcome.
        groups: The most serious kind first.
        column, removed: The column to fill in, and the word that removes an image.
        corrected: Labels that were corrected before.
        facts: Name and value.
        command: What makes the page again.
    """

    title: str
    figure: str
    subject: str
    sentences: tuple[str, ...]
    groups: tuple[KindShown, ...]
    column: str
    removed: str
    corrected: int
    facts: tuple[tuple[str, str], ...]
    command: str


def write_images(review: ImageReview) -> ImagesPage:
    """The page of a review."""
    origin = "" if review.data is None else f" of {review.data.origin}"
    classes = () if review.data is None else review.data.classes
    number = len(review.copies)
    facts = {
        "Images compared": format_count(review.images),
        "Pairs of copies": format_count(number),
        "Blank images": format_count(len(review.blanks)) if review.blanks else "",
        "Outliers": format_count(len(review.outliers)),
        "Classes": format_count(len(classes)) if classes else "",
        "Backbone": review.backbone,
        "Total time": format_seconds(review.seconds) if review.seconds else "",
    }
    return ImagesPage(
        title=f"Images{origin}",
        figure=format_count(number),
        subject=f"{'pair' if number == 1 else 'pairs'} of copies among {plural(review.images, 'image')}",
        sentences=review.sentences,
        groups=tuple(_groups(review)),
        column=CORRECTED,
        removed=removal_word(classes),
        corrected=len(review.corrected),
        facts=tuple((name, value) for name, value in facts.items() if value),
        command=as_typed(review.command),
    )


def _groups(review: ImageReview) -> list[KindShown]:
    found = []
    for kind, those in groupby(review.findings[: review.limit], key=lambda one: one.kind):
        listed = list(those)
        shown = _pictured(listed, review)
        heading, sentence = KINDS[kind]
        left = len(listed) - len(shown)
        found.append(
            KindShown(
                kind=kind, heading=heading, sentence=sentence, findings=shown, more=format_count(left) if left else ""
            )
        )
    return found


def _pictured(listed: Sequence[ImageFinding], review: ImageReview) -> tuple[FindingShown, ...]:
    """The first ones, as far as there are pictures of them: later ones may have some by chance."""
    first = next((at for at, one in enumerate(listed) if not set(one.rows) <= set(review.pictures)), len(listed))
    return tuple(_finding(one, review) for one in listed[:first])


def _finding(one: ImageFinding, review: ImageReview) -> FindingShown:
    found = one.found
    if isinstance(found, OutlierImage):
        return FindingShown(
            number=one.number,
            how="",
            pictures=(_shown(found.row, found.label, found.split, review),),
            is_serious=False,
        )
    return FindingShown(
        number=one.number,
        how=capitalise(found.how),
        pictures=_both(found, review),
        is_serious=one.kind in ("leak", "conflict"),
    )


def _both(pair: CopyPair, review: ImageReview) -> tuple[ImageShown, ...]:
    return tuple(
        _shown(row, label, split, review) for row, label, split in zip(pair.rows, pair.labels, pair.splits, strict=True)
    )


def _shown(row: int, label: str, split: str, review: ImageReview) -> ImageShown:
    return ImageShown(tile=make_tile(review.pictures[row]), label=label, split=name_split(split))
