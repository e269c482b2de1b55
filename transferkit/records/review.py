"""What a review of the images found: copies, leaks across splits, copies with different labels, and outliers.

Its table is one that a person can act on: it has a column to fill in, as that of doubtful labels, and `labels=` reads
it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from transferkit.records._checks import require, require_share
from transferkit.records.data import DataSummary
from transferkit.records.diagnosis import Symptom
from transferkit.records.label_review import CORRECTED, CorrectedLabel
from transferkit.records.picture import Picture

__all__ = ["CopyPair", "ImageFinding", "ImageReview", "OutlierImage"]

HEADER = ("finding", "number", "path", "split", "label", CORRECTED, "other", "how")


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
        labels: Names of their classes.
        splits: Names of their splits.
    """

    original: str
    copy: str
    rows: tuple[int, int]
    how: str
    residual: float
    turned: bool = False
    labels: tuple[str, str] = ("", "")
    splits: tuple[str, str] = ("", "")

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
        split: Name of its split.
        p_value: Chance that an image of its class is as far from all others, in [0, 1].
    """

    name: str
    row: int
    label: str
    p_value: float
    split: str = ""

    def __post_init__(self) -> None:
        require_share("OutlierImage", "p_value", self.p_value)


@dataclass(frozen=True, kw_only=True)
class ImageFinding:
    """One entry of the table.

    Args:
        kind: "leak", "conflict", "copy", "blank" or "outlier".
        number: Counted from 1, the most serious first.
        found: What it is about.
    """

    kind: str
    number: int
    found: CopyPair | OutlierImage

    @property
    def rows(self) -> tuple[int, ...]:
        """Positions of its images among those reviewed."""
        return self.found.rows if isinstance(self.found, CopyPair) else (self.found.row,)


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
        blanks: Images of one flat colour, in order; what makes a copy cannot be seen in them.
        symptoms: Alarms first.
        limit: Pairs and outliers that the table lists at most; None: all.
        data: The images, where they were opened for the review.
        backbone: Name of the network whose features were compared; "" if not known.
        pictures: Position -> thumbnail, of the first findings of each kind.
        corrected: Labels that were corrected already.
        command: What makes the review again; "" if not recorded.
        seconds: Wall-clock seconds in all.
    """

    images: int
    copies: tuple[CopyPair, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    leaks: tuple[CopyPair, ...] = ()
    conflicts: tuple[CopyPair, ...] = ()
    outliers: tuple[OutlierImage, ...] = ()
    blanks: tuple[OutlierImage, ...] = ()
    symptoms: tuple[Symptom, ...] = ()
    limit: int | None = None
    data: DataSummary | None = None
    backbone: str = ""
    pictures: Mapping[int, Picture] = field(default_factory=dict)
    corrected: tuple[CorrectedLabel, ...] = ()
    command: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        require(self.images >= 1, f"ImageReview.images must be >= 1, got {self.images!r}.")
        require(
            set(self.leaks) | set(self.conflicts) <= set(self.copies),
            "ImageReview.leaks and conflicts must be among its copies.",
        )

    @property
    def findings(self) -> tuple[ImageFinding, ...]:
        """Leaks, then conflicts, other copies, blank images and outliers: all of them, whatever the limit."""
        known = set(self.leaks) | set(self.conflicts)
        plain = tuple(one for one in self.copies if one not in known)
        kinds: tuple[tuple[str, tuple[CopyPair | OutlierImage, ...]], ...] = (
            ("leak", self.leaks),
            ("conflict", tuple(one for one in self.conflicts if one not in set(self.leaks))),
            ("copy", plain),
            ("blank", self.blanks),
            ("outlier", tuple(one for one in self.outliers if one not in set(self.blanks))),
        )
        found = [(kind, one) for kind, those in kinds for one in those]
        return tuple(
            ImageFinding(kind=kind, number=number, found=one) for number, (kind, one) in enumerate(found, start=1)
        )

    @property
    def sentences(self) -> tuple[str, ...]:
        """A line per symptom; where there is none, one reassuring line. Last, what the table leaves out.

        Example:
            >>> ImageReview(images=40).sentences
            ('40 images: no copies and no outliers found.',)
        """
        if not self.symptoms:
            return (f"{self.images:,} images: {self._nothing}",)
        lines = tuple(f"{one.severity.capitalize()}: {one.sentence}" for one in self.symptoms)
        number = len(self.findings)
        if self.limit is None or number <= self.limit:
            return lines
        return (*lines, f"The first {self.limit:,} of {number:,} findings are listed; limit={number} lists all.")

    @property
    def _nothing(self) -> str:
        """What is said where there is no symptom; copies that flatter no estimate are none."""
        if not self.copies:
            return "no copies and no outliers found."
        pairs = "1 pair of copies" if len(self.copies) == 1 else f"{len(self.copies):,} pairs of copies"
        return f"{pairs} that are held back together, or within one held-back split; no outliers found."

    def to_csv(self) -> str:
        """A header, then two rows per pair, one for each image, and a row per outlier, the most serious first.

        Example:
            >>> pair = CopyPair(original="a.png", copy="b.png", rows=(0, 1), how="mirrored", residual=0.01,
            ...                 labels=("cat", "cat"), splits=("train", "test"))
            >>> print(ImageReview(images=2, copies=(pair,), leaks=(pair,)).to_csv().replace("\\r", ""), end="")
            finding,number,path,split,label,corrected,other,how
            leak,1,a.png,train,cat,,b.png,mirrored
            leak,1,b.png,test,cat,,a.png,mirrored
        """
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(HEADER)
        writer.writerows(self._cells())
        return text.getvalue()

    def _cells(self) -> Iterator[tuple[str, ...]]:
        before, listed = {one.item: one.corrected for one in self.corrected}, set[str]()
        for finding in self.findings[: self.limit]:
            for path, split, label, other, how in _images_of(finding):
                listed.add(path)
                yield finding.kind, str(finding.number), path, split, label, before.get(path, ""), other, how
        for one in self.corrected:
            if one.item not in listed:
                yield "corrected before", "", one.item, one.split, one.label, one.corrected, "", ""


def _images_of(finding: ImageFinding) -> Iterator[tuple[str, str, str, str, str]]:
    """Path, split, label, the other image and what was done, of each image."""
    found = finding.found
    if isinstance(found, OutlierImage):
        how = "one flat colour" if finding.kind == "blank" else f"unlike others of {found.label}"
        yield found.name, found.split, found.label, "", how
        return
    names = (found.original, found.copy)
    for own in (0, 1):
        yield names[own], found.splits[own], found.labels[own], names[1 - own], found.how
