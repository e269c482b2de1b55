"""The whole page: well formed, self-contained, safe with hostile names, and there whatever is missing."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from transferkit.records import Alternative, HeldOut, Metrics
from transferkit.report import render

VOID = {"meta", "img", "br", "hr", "link", "input"}
SECTIONS = ["headline", "decision", "stages", "data", "quality", "mistakes", "calibration", "timings", "reproduce"]


class Page(HTMLParser):
    """What a browser would make of the page: tags that balance, ids, attributes, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data.replace("\u202f", " ").replace("\u00a0", " ")


def section(html: str, name: str) -> str:
    """The text of one section."""
    start = html.index(f'id="{name}"')
    return Page(html[html.index(">", start) + 1 : html.index("</section>", start)]).text


@pytest.fixture(params=["record", "huge_record", "bare_record", "trained_record"])
def html(request) -> str:
    return render(request.getfixturevalue(request.param))


def test_every_section_is_there_once_and_tags_balance(html):
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("h1") == 1
    links = {value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    assert links <= set(page.ids)


def test_nothing_is_loaded_from_elsewhere(html):
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href", "srcset", "poster", "action"):
            assert value.startswith(("data:image/jpeg;base64,", "#")), (tag, name, value[:60])
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", html))
    assert "@import" not in html
    assert "http://" not in html
    assert "https://" not in html


def test_pictures_and_drawings_have_words(html):
    page = Page(html)
    images = page.tags.count("img")
    assert sum((tag, name) == ("img", "alt") and bool(value) for tag, name, value in page.attributes) == images
    for opening in re.findall(r'<svg[^>]*role="img"[^>]*>', html):
        assert "aria-label=" in opening


def test_the_page_stays_small(record, huge_record):
    assert len(render(record)) < 100_000
    assert len(render(huge_record)) < 600_000


def test_the_answer_comes_first(record):
    text = Page(render(record)).text
    top = text[: text.index("What was decided")]
    for part in (
        "75.0 %",
        "accuracy on 12 test images",
        "70.0 – 80.0 %",
        "A linear classifier on frozen features",
        "all stages joined",
        "packaged/tiny",
        "3.2 s",
    ):
        assert part in top


def test_validation_and_leave_one_out_stand_in_for_a_missing_test_split(record):
    scores = replace(record.metrics["test"], accuracy=0.5, low=0.4, high=0.6)
    assert "accuracy on 12 validation images" in Page(render(replace(record, metrics={"val": scores}))).text
    text = Page(render(replace(record, metrics={}, held_out=None))).text
    assert "81.2 %" in text
    assert "cross-validated accuracy on 9 training images" in text


@pytest.mark.parametrize(
    "hostile", ['<script>alert("1")</script>', '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "</style>"]
)
def test_hostile_names_are_text_everywhere(make_record, hostile):
    run = make_record((hostile, "bee", "cat"))
    html = render(replace(run, command=hostile, environment={hostile: {hostile: hostile}}))
    page = Page(html)
    assert "script" not in page.tags
    assert hostile in page.text
    assert ("img", "src", "x") not in page.attributes
    assert "49" not in section(html, "reproduce")


def test_a_file_name_that_is_no_utf_8_can_be_written(record):
    broken = replace(record.mistakes[0], picture=replace(record.mistakes[0].picture, item="caf\udce9.jpg"))
    render(replace(record, mistakes=(broken,))).encode("utf-8")


def test_few_classes_get_a_matrix_and_many_get_pairs(record, huge_record):
    assert 'data-chart="heat_map"' in render(record)
    text = section(render(huge_record), "quality")
    assert "heat_map" not in render(huge_record)
    assert "Classes confused most often" in text
    assert "and 800 more classes" in text


def test_many_classes_are_capped_and_summed_up(huge_record):
    text = section(render(huge_record), "data")
    assert "1,000 classes" in text
    assert "… and 980 more classes of 16 to 995 images each …" in text
    assert "… and 976 more classes" in text


def test_findings_are_grouped_worst_first(record):
    text = section(render(record), "data")
    assert (
        text.index("Set aside")
        < text.index("1 file is cut off.")
        < text.index("Warnings")
        < text.index("differ in size")
    )
    assert "a.jpg" in text


def test_recalls_are_sorted_worst_first(record):
    labels = np.array([0, 0, 1, 1, 2, 2])
    predicted = np.array([0, 0, 1, 0, 0, 1])
    answers = HeldOut(
        split="test", labels=labels, probabilities=np.eye(3, dtype=np.float32)[predicted], items=("x",) * 6
    )
    text = section(render(replace(record, held_out=answers, mistakes=())), "quality")
    table = text[text.index("Recall of each class") :]
    assert table.index("cat") < table.index("50.0 %") < table.index("100 %")
    assert "3 of 6 test images are misclassified." in text


@pytest.mark.parametrize(
    ("top", "verdict"), [(0.99, "over-confident"), (0.4, "under-confident"), (0.75, "well calibrated")]
)
def test_confidence_is_judged_in_words(record, top, verdict):
    right = np.arange(400) % 4 != 0
    labels = np.where(right, 0, 1)
    rest = (1 - top) / 2
    answers = HeldOut(
        split="test",
        labels=labels,
        probabilities=np.tile(np.array([top, rest, rest], dtype=np.float32), (400, 1)),
        items=("x",) * 400,
    )
    assert verdict in section(render(replace(record, held_out=answers)), "calibration")


def test_random_weights_are_called_out(record, bare_record):
    assert "Not pretrained." not in render(record)
    assert render(bare_record).count("Not pretrained.") == 2


def test_the_chosen_strategy_stands_among_the_others_best_first(record):
    def option(stage: str, accuracy: float) -> Alternative:
        return Alternative(
            strategy="linear_probe", stage=stage, expected_accuracy=accuracy, low=0.4, high=0.95, cost_seconds=1.0
        )

    decision = replace(
        record.decision,
        stage="selected",
        mode="search",
        expected=option("selected", 0.812),
        alternatives=(option("joined", 0.823), option("top", 0.701)),
    )
    found = section(render(replace(record, decision=decision)), "decision")
    assert "Decided by trials" in found
    assert "selected features of all stages" in found
    places = [found.index(figure) for figure in ("82.3", "81.2", "70.1")]
    assert places == sorted(places)


@pytest.mark.parametrize(("low", "told"), [(0.99, True), (0.0, False)])
def test_less_than_was_expected_is_said(record, low, told):
    expected = Alternative(
        strategy="linear_probe", stage="joined", expected_accuracy=0.995, low=low, high=1.0, cost_seconds=1.0
    )
    scores = replace(record.metrics["test"], high=0.8)
    found = replace(record, decision=replace(record.decision, expected=expected), metrics={"test": scores})
    assert found.is_disappointing("test") is told
    assert ("expected from the training images: these images differ from them." in Page(render(found)).text) is told


def test_missing_parts_are_said_to_be_missing(bare_record):
    text = Page(render(bare_record)).text
    for sentence in (
        "No accuracy was measured",
        "No alternatives were compared.",
        "No stage was probed",
        "No sample pictures",
        "not measured on a held-out split",
        "no held-out predictions",
        "No times were recorded.",
        "The command was not recorded.",
        "The environment was not recorded.",
    ):
        assert sentence in text


def test_answers_without_a_mistake_and_without_images(record):
    held_out = record.held_out
    perfect = replace(held_out, labels=held_out.probabilities.argmax(axis=1))
    text = Page(render(replace(record, held_out=perfect, mistakes=()))).text
    assert "Every one of 12 test images is classified correctly." in text
    assert "There are none among 12 test images." in text
    empty = HeldOut(split="test", labels=held_out.labels[:0], probabilities=held_out.probabilities[:0], items=())
    assert "no held-out predictions" in Page(render(replace(record, held_out=empty, mistakes=()))).text


def test_numbers_that_are_not_finite_do_not_break_the_page(record):
    scores = Metrics(
        images=0, accuracy=0, low=0, high=1, balanced_accuracy=0, log_loss=float("nan"), calibration_error=0
    )
    html = render(replace(record, metrics={"test": scores}, seconds={"fit": float("nan"), "total": float("inf")}))
    assert "nan" not in Page(html).text


def test_the_chosen_stage_is_marked_in_words(record):
    decision = replace(record.decision, stage="blocks.0")
    text = section(render(replace(record, decision=decision)), "stages")
    assert re.search(r"blocks\.0\s*chosen", text)
    assert "all stages joined" in text
    assert "k-NN on top" in text
