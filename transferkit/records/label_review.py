"""Labels that are probably wrong, worst first, as a table that a person corrects; and labels that were corrected."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from transferkit.records._checks import require, require_share
from transferkit.records.data import DataSummary
from transferkit.records.picture import Picture

__all__ = ["CORRECTED", "REMOVED", "CorrectedLabel", "LabelReview", "ReviewedLabel", "removal_word"]

CORRECTED = "corrected"
"""The column that a person fills in."""

REMOVED = ("drop", "-")
"""Words in that column that remove the image; one that is the name of a class means that class."""

HEADER = (
    "rank",
    "path",
    "split",
    "label",
    "suggested",
    CORRECTED,
    "likely_error",
    "probability_label",
    "probability_suggested",
)


def removal_word(classes: Collection[str]) -> str:
    """The word that removes an image, where there are these classes.

    Example:
        >>> removal_word(["cat", "dog"]), removal_word(["drop", "puddle"])
        ('drop', '-')
    """
    return next((word for word in REMOVED if word not in classes), REMOVED[-1])


@dataclass(frozen=True, kw_only=True)
class CorrectedLabel:
    """What a table of corrections changed about one image.

    Args:
        item: Its name: the path as the data source gives it, or "train[3]" in a dataset.
        split: "train" or "val".
        label: The class that the source gives.
        corrected: The class that it has now, or one of `REMOVED`.
    """

    item: str
    split: str
    label: str
    corrected: str


@dataclass(frozen=True, kw_only=True)
class ReviewedLabel:
    """An image that looks more like another class than like its own.

    Args:
        item: Its name: the path as the data source gives it, or "train[3]" in a dataset.
        split: "train" or "val".
        label: Its class.
        suggested: The most probable other class.
        probability: Of its own class, to a classifier that has not seen the image, in [0, 1].
        suggested_probability: Of the suggested class, in [0, 1], above `probability`.
        is_likely_error: Whether the suggestion is as probable as that class usually is for its own images.
        corrected: Its class, if that was corrected already; else "".
        picture: A thumbnail; None below the first rows.
    """

    item: str
    split: str
    label: str
    suggested: str
    probability: float
    suggested_probability: float
    is_likely_error: bool
    corrected: str = ""
    picture: Picture | None = None

    def __post_init__(self) -> None:
        require_share("ReviewedLabel", "probability", self.probability)
        require_share("ReviewedLabel", "suggested_probability", self.suggested_probability)
        message = f"ReviewedLabel.suggested must be another class than label, got {self.label!r} twice."
        require(self.label != self.suggested, message)


@dataclass(frozen=True, kw_only=True)
class LabelReview:
    """The labels of a data set, compared with what a classifier says that has not seen the images.

    Args:
        data: The images.
        backbone: Name of the network whose features the classifier reads.
        images: Number of images compared.
        left_out: Training images that could not be compared: all independent images of their class are one, or there
            are more images than scores are kept for.
        doubtful: Images that look more like another class, all of them.
        likely_errors: Those of them that are likely label errors.
        rows: The worst of the doubtful ones, worst first.
        corrected: Labels that were corrected already and are not among the rows.
        command: What makes the review again; "" if not recorded.
        seconds: Wall-clock seconds in all.
    """

    data: DataSummary
    backbone: str
    images: int
    left_out: int
    doubtful: int
    likely_errors: int
    rows: tuple[ReviewedLabel, ...]
    corrected: tuple[CorrectedLabel, ...] = ()
    command: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        require(
            len(self.rows) <= self.doubtful <= self.images and self.likely_errors <= self.doubtful,
            f"LabelReview needs rows <= doubtful <= images and likely_errors <= doubtful, got {len(self.rows)}, "
            f"{self.doubtful}, {self.images} and {self.likely_errors}.",
        )

    @property
    def sentences(self) -> tuple[str, ...]:
        """The outcome in a few sentences."""
        if not self.doubtful:
            said = f"None of the {self.images:,} images looks more like another class than like its own."
        else:
            looks = (
                "looks more like another class than like its"
                if self.doubtful == 1
                else "look more like another class than like their"
            )
            likely = "is a likely label error" if self.likely_errors == 1 else "are likely label errors"
            said = (
                f"{self.doubtful:,} of {self.images:,} images {looks} own, to a classifier that has not seen them; "
                f"{self.likely_errors:,} of these {likely}."
            )
        listed = (
            f"The {len(self.rows):,} worst are listed; correct these, then review the rest with labels=."
            if len(self.rows) < self.doubtful
            else ""
        )
        left_out = (
            f"{self.left_out:,} images could not be compared: their class has no second independent image, or there "
            "are too many images."
            if self.left_out
            else ""
        )
        return tuple(sentence for sentence in (said, listed, left_out) if sentence)

    def to_csv(self) -> str:
        """A header, then a row per image, worst first; last those that were corrected before.

        Example:
            >>> summary = DataSummary(origin="x", classes=("cat", "dog"), counts={"train": (3, 3)}, split_rule="")
            >>> row = ReviewedLabel(item="cat/1.jpg", split="train", label="cat", suggested="dog", probability=0.02,
            ...                     suggested_probability=0.98, is_likely_error=True)
            >>> review = LabelReview(data=summary, backbone="b", images=6, left_out=0, doubtful=1, likely_errors=1,
            ...                      rows=(row,))
            >>> print(review.to_csv().replace("\\r", ""), end="")
            rank,path,split,label,suggested,corrected,likely_error,probability_label,probability_suggested
            1,cat/1.jpg,train,cat,dog,,yes,0.0200,0.9800
        """
        text = io.StringIO()
        # Lines end as the csv module does by default: it then quotes cells with either of the two characters.
        writer = csv.writer(text)
        writer.writerow(HEADER)
        writer.writerows(self._cells())
        return text.getvalue()

    def _cells(self) -> Iterator[tuple[str, ...]]:
        for rank, row in enumerate(self.rows, start=1):
            yield (
                str(rank),
                row.item,
                row.split,
                row.label,
                row.suggested,
                row.corrected,
                "yes" if row.is_likely_error else "no",
                f"{row.probability:.4f}",
                f"{row.suggested_probability:.4f}",
            )
        for done in self.corrected:
            yield ("", done.item, done.split, done.label, "", done.corrected, "", "", "")
