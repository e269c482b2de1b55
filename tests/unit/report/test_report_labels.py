"""The contact sheet of doubtful labels: one page, everything in it, nothing from elsewhere."""

from __future__ import annotations

import io
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from transferkit.core.errors import OptionError
from transferkit.records import CorrectedLabel, DataSummary, LabelReview, Picture, ReviewedLabel
from transferkit.report import render_labels

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
    page.feed(render_labels(review))
    return " ".join("".join(page.text).replace("\u202f", " ").split()), page.tags


def jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3)).save(buffer, format="JPEG")
    return buffer.getvalue()


def row(item, label="cat", suggested="dog", **other):
    given = {"split": "train", "probability": 0.02, "suggested_probability": 0.9, "is_likely_error": True}
    return ReviewedLabel(
        item=item, label=label, suggested=suggested, picture=Picture(jpeg=jpeg(), item=item), **{**given, **other}
    )


@pytest.fixture
def review():
    return LabelReview(
        data=DataSummary(origin="folder x", classes=("cat", "dog"), counts={"train": (50, 50)}, split_rule=""),
        backbone="zoo/net",
        images=100,
        left_out=0,
        doubtful=4,
        likely_errors=2,
        rows=(
            row("a.jpg"),
            row("b.jpg", split="val", corrected="cat"),
            row("c.jpg", "dog", "cat", is_likely_error=False),
            replace(row("d.jpg"), picture=None),
        ),
        corrected=(CorrectedLabel(item="e.jpg", split="train", label="dog", corrected="drop"),),
        command="transferkit doctor labels data.root=x",
    )


def test_the_page_shows_every_picture_with_both_classes(review):
    text, tags = read(review)
    assert "2 likely label errors among 100 images" in text
    assert "4 of 100 images look more like another class than like their own" in text
    for part in ("1 cat → dog 2.0 % → 90.0 % likely error a.jpg", "b.jpg (validation image, corrected before)",
                 "3 dog → cat 2.0 % → 90.0 % c.jpg", "… and 1 more", "kept in the table: 2.",
                 "column corrected, or drop to leave"):  # fmt: skip
        assert part in text, part
    assert sum(tag == "img" for tag, _ in tags) == 3
    assert "catdog3" in text  # the pair that is confused most


def test_the_page_opens_offline_and_holds_no_script(review):
    nasty = replace(
        review, rows=(row(f"{NASTY}\udcff", NASTY, f"{NASTY}2"),), command=NASTY, backbone=NASTY,
        data=replace(review.data, origin=NASTY),
    )  # fmt: skip
    text, tags = read(nasty)
    assert text.count("alert(1)") >= 5
    assert not [tag for tag, _ in tags if tag in ("script", "link", "iframe")]
    sources = [value for _, attributes in tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)


def test_a_page_without_doubts_says_so(review):
    text, tags = read(replace(review, rows=(), doubtful=0, likely_errors=0, corrected=()))
    assert "0 likely label errors" in text
    assert "None of the 100 images looks more like another class than like its own." in text
    assert not [tag for tag, _ in tags if tag == "img"]
    assert "Correct them" not in text


def test_where_a_class_is_called_drop_another_word_removes(review):
    text, _ = read(replace(review, data=replace(review.data, classes=("cat", "drop"))))
    assert "or - to leave the image out" in text


def test_the_table_lists_rows_then_what_was_corrected_before(review):
    lines = review.to_csv().splitlines()
    assert lines[0].startswith("rank,path,split,label,suggested,corrected,likely_error,")
    assert lines[1] == "1,a.jpg,train,cat,dog,,yes,0.0200,0.9000"
    assert lines[2] == "2,b.jpg,val,cat,dog,cat,yes,0.0200,0.9000"
    assert lines[-1] == ",e.jpg,train,dog,,drop,,,"


def test_records_check_themselves(review):
    with pytest.raises(OptionError, match="rows <= doubtful <= images"):
        replace(review, doubtful=3)
    with pytest.raises(OptionError, match=r"probability must be in \[0, 1\], got 1.5"):
        row("x", probability=1.5)
    with pytest.raises(OptionError, match="suggested must be another class than label, got 'cat' twice"):
        row("x", "cat", "cat")
