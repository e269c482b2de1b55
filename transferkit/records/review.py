"""What a review of the images found: copies, leaks across splits, copies with different labels, and outliers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from transferkit.records._checks import require, require_share
from transferkit.records.diagnosis import Symptom

__all__ = ["CopyPair", "ImageReview", "OutlierImage"]


@dataclass(frozen=True, kw_only=True)
class CopyPair:
    """Two images that show the same picture.

    Args:
        original, copy: Their names; of a crop, the whole picture is the original. Which of the two was there first
            cannot be told.
        rows: Their positions among the images that were reviewed, in the same order.
        how: What makes the second out of the first, e.g. "mirrored, cropped to 81 %"; "the same" if nothing does.
        residual: Share of the variance that the explanation leaves open, in [0, 1].
        turned: Whether it is mirrored or turned by a quarter or a half, which may change what a picture means.
    """

    original: str
    copy: str
    rows: tuple[int, int]
    how: str
    residual: float
    turned: bool = False

    def __post_init__(self) -> None:
        require(self.rows[0] != self.rows[1], f"CopyPair.rows must be two images, got {self.rows!r}.")
        require_share("CopyPair", "residual", self.residual)

    @property
    def sentence(self) -> str:
        """Both names and how they are alike.

        Example:
            >>> CopyPair(original="a.png", copy="b.png", rows=(0, 1), how="mirrored", residual=0.01).sentence
            'a.png ~ b.png (mirrored)'
        """
        return f"{self.original} ~ {self.copy} ({self.how})"


@dataclass(frozen=True, kw_only=True)
class OutlierImage:
    """An image that is unlike all others.

    Args:
        name: Of the image.
        row: Its position among the images that were reviewed.
        label: Name of its class.
        p_value: Chance that an image of its class is as far from all others, in [0, 1].
    """

    name: str
    row: int
    label: str
    p_value: float

    def __post_init__(self) -> None:
        require_share("OutlierImage", "p_value", self.p_value)


@dataclass(frozen=True, kw_only=True)
class ImageReview:
    """The outcome of a review.

    Args:
        images: Number of images reviewed.
        copies: Pairs, surest first.
        groups: Sets of images that are connected by copies, as positions; each of two or more.
        leaks: Those of the copies that are in two splits.
        conflicts: Those of the copies within training that have two labels.
        outliers: Least usual first.
        symptoms: Alarms first.
    """

    images: int
    copies: tuple[CopyPair, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    leaks: tuple[CopyPair, ...] = ()
    conflicts: tuple[CopyPair, ...] = ()
    outliers: tuple[OutlierImage, ...] = ()
    symptoms: tuple[Symptom, ...] = ()

    def __post_init__(self) -> None:
        require(self.images >= 1, f"ImageReview.images must be >= 1, got {self.images!r}.")
        require(
            set(self.leaks) | set(self.conflicts) <= set(self.copies),
            "ImageReview.leaks and conflicts must be among its copies.",
        )

    @property
    def sentences(self) -> tuple[str, ...]:
        """A line per symptom; where there is none, one reassuring line.

        Example:
            >>> ImageReview(images=40).sentences
            ('40 images: no copies and no outliers found.',)
        """
        if self.symptoms:
            return tuple(f"{one.severity.capitalize()}: {one.sentence}" for one in self.symptoms)
        return (f"{self.images:,} images: no copies and no outliers found.",)

    def to_csv(self) -> str:
        """A header, then a row per pair and per outlier, the most serious first.

        Example:
            >>> pair = CopyPair(original="a.png", copy="b.png", rows=(0, 1), how="mirrored", residual=0.01)
            >>> print(ImageReview(images=2, copies=(pair,), leaks=(pair,)).to_csv().replace("\\r", ""), end="")
            finding,image,other,how
            leak,a.png,b.png,mirrored
        """
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(("finding", "image", "other", "how"))
        writer.writerows(self._cells())
        return text.getvalue()

    def _cells(self) -> Iterator[tuple[str, ...]]:
        plain = tuple(one for one in self.copies if one not in self.leaks and one not in self.conflicts)
        for finding, pairs in (("leak", self.leaks), ("conflict", self.conflicts), ("copy", plain)):
            for pair in pairs:
                yield finding, pair.original, pair.copy, pair.how
        for one in self.outliers:
            yield "outlier", one.name, "", f"unlike others of {one.label}"
