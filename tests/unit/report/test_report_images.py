"""The contact sheet of copies and outliers, and the table beside it."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from transferkit.records import (
    CopyPair,
    CorrectedLabel,
    DataSummary,
    ImageReview,
    OutlierImage,
    Picture,
    Symptom,
)
from transferkit.report import render_images

NASTY = "</style><script>alert(1)</script>&\"' {{ 7 * 7 }}"


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.text, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def read(review):
    page = Page()
    page.feed(render_images(review))
    return " ".join("".join(page.text).replace("\u202f", " ").split()), page.tags


def jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3)).save(buffer, format="JPEG")
    return buffer.getvalue()


def pair(first, second, how="mirrored", labels=("cat", "cat"), splits=("train", "train")):
    return CopyPair(
        original=f"{first}.jpg",
        copy=f"{second}.jpg",
        rows=(first, second),
        how=how,
        residual=0.01,
        labels=labels,
        splits=splits,
    )


@pytest.fixture
def review():
    leak = pair(0, 1, "cropped to 81 %", splits=("train", "test"))
    conflict, plain = pair(2, 3, labels=("cat", "dog")), pair(4, 5, "the same")
    return ImageReview(
        images=100,
        copies=(plain, conflict, leak),
        leaks=(leak,),
        conflicts=(conflict,),
        outliers=(OutlierImage(name="6.jpg", row=6, label="dog", p_value=0.001, split="val"),),
        symptoms=(Symptom(cause="leak_across_splits", severity="alarm", evidence="1 leak.", remedy="Remove it."),),
        data=DataSummary(origin="folder x", classes=("cat", "dog"), counts={"train": (50, 50)}, split_rule=""),
        backbone="zoo/net",
        pictures={row: Picture(jpeg=jpeg(), item=f"{row}.jpg") for row in range(7)},
        corrected=(CorrectedLabel(item="e.jpg", split="train", label="dog", corrected="drop"),),
        command="transferkit doctor images data.root=x",
    )


def table(review):
    return list(csv.DictReader(io.StringIO(review.to_csv())))


def test_the_page_shows_pairs_side_by_side_with_what_was_done(review):
    text, tags = read(review)
    assert "3 pairs of copies among 100 images" in text
    assert "Alarm: 1 leak. Remove it." in text
    for part in (
        "1 Cropped to 81 % cat training 0.jpg cat test 1.jpg",
        "2 Mirrored cat training 2.jpg dog training 3.jpg",
        "3 The same cat training 4.jpg cat training 5.jpg",
        "4 dog validation 6.jpg",
        "Write drop into the column corrected",
        "kept in the table: 1.",
    ):
        assert part in text, part
    assert sum(tag == "img" for tag, _ in tags) == 7
    assert "more in images.csv" not in text


def test_what_has_no_picture_is_counted(review):
    pairs = tuple(pair(2 * number, 2 * number + 1) for number in range(5))
    shown = {row: Picture(jpeg=jpeg(), item=str(row)) for row in (0, 1, 2, 3, 8, 9)}  # 8 and 9 by chance
    many = replace(review, copies=pairs, leaks=(), conflicts=(), outliers=(), pictures=shown)
    text, tags = read(many)
    assert "… and 3 more in images.csv." in text
    assert sum(tag == "img" for tag, _ in tags) == 4


def test_the_page_opens_offline_and_holds_no_script(review):
    bad = f"{NASTY}\udcff"
    nasty = replace(
        review,
        copies=(replace(pair(0, 1, NASTY, (NASTY, NASTY)), original=bad),),
        leaks=(),
        conflicts=(),
        pictures={row: Picture(jpeg=jpeg(), item=bad) for row in range(7)},
        command=NASTY,
        backbone=NASTY,
        data=replace(review.data, origin=NASTY),
    )
    text, tags = read(nasty)
    assert text.count("alert(1)") >= 5
    assert not [tag for tag, _ in tags if tag in ("script", "link", "iframe")]
    sources = [value for _, attributes in tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)


def test_a_page_without_findings_says_so():
    text, tags = read(ImageReview(images=40))
    assert "0 pairs of copies among 40 images" in text
    assert "40 images: no copies and no outliers found." in text
    assert "What to do" not in text
    assert not [tag for tag, _ in tags if tag == "img"]


def test_the_table_has_a_row_for_each_image_and_a_cell_to_fill_in(review):
    rows = table(review)
    assert [(row["finding"], row["number"], row["path"], row["other"]) for row in rows] == [
        ("leak", "1", "0.jpg", "1.jpg"),
        ("leak", "1", "1.jpg", "0.jpg"),
        ("conflict", "2", "2.jpg", "3.jpg"),
        ("conflict", "2", "3.jpg", "2.jpg"),
        ("copy", "3", "4.jpg", "5.jpg"),
        ("copy", "3", "5.jpg", "4.jpg"),
        ("outlier", "4", "6.jpg", ""),
        ("corrected before", "", "e.jpg", ""),
    ]
    assert [row["corrected"] for row in rows] == [""] * 7 + ["drop"]
    assert [row["split"] for row in rows] == ["train", "test"] + ["train"] * 4 + ["val", "train"]
    assert [row["label"] for row in rows] == ["cat"] * 3 + ["dog"] + ["cat"] * 2 + ["dog"] * 2


def test_what_was_corrected_before_stays_in_its_row(review):
    done = replace(review, corrected=(CorrectedLabel(item="3.jpg", split="train", label="cat", corrected="dog"),))
    assert [(row["path"], row["corrected"]) for row in table(done) if row["corrected"]] == [("3.jpg", "dog")]
    assert len(table(done)) == 7


@pytest.mark.parametrize(("limit", "rows", "said"), [(1, 2, True), (3, 6, True), (4, 7, False), (9, 7, False)])
def test_the_table_ends_at_the_limit_which_is_said(review, limit, rows, said):
    cut = replace(review, limit=limit, corrected=())
    assert len(table(cut)) == rows
    assert (f"The first {limit} of 4 findings are listed; limit=4 lists all." in cut.sentences) == said


def test_copies_within_held_back_images_are_not_kept_secret():
    inside = pair(0, 1, splits=("test", "test"))
    (sentence,) = ImageReview(images=9, copies=(inside,)).sentences
    assert sentence == (
        "9 images: 1 pair of copies that are held back together, or within one held-back split; no outliers found."
    )
