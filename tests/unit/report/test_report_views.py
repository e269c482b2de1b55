"""The table of views: every figure where a reader looks for it, and nothing where nothing was compared."""

from __future__ import annotations

from dataclasses import replace

import pytest

from transferkit.records import View, ViewComparison, ViewScore
from transferkit.report import render
from transferkit.report.sections import write_report

FOUND = ViewComparison(
    geometry="squash",
    views=("crop", "squash", "pad"),
    scores=(
        ViewScore(name="crop", accuracy=0.8125, gain=0.0, gain_error=0.1, seconds=2.0, computed=12),
        ViewScore(name="squash", accuracy=0.85, gain=0.0375, gain_error=0.012, seconds=3.0, computed=12),
        ViewScore(name="pad", accuracy=0.8, gain=-0.0125, gain_error=0.012, seconds=0.1),
        ViewScore(name="crop+squash+pad", accuracy=0.875, gain=0.0625, gain_error=0.02, used=True),
    ),
    images=48,
    image_seconds=0.004,
    reasons=("Features are averaged.",),
)


@pytest.fixture
def seen(record):
    return replace(record, evidence=replace(record.evidence, views=FOUND))


def test_views_have_their_rows(seen):
    views = write_report(seen).views
    assert "averaged over 3 views of each image: crop, squash, pad" in views.sentence
    assert "trained on squash" in views.sentence
    assert [row.name for row in views.rows if row.used] == ["crop+squash+pad"]
    assert [row.gain for row in views.rows] == ["", "+3.8 ± 1.2", "-1.2 ± 1.2", "+6.2 ± 2.0"]
    assert [row.accuracy.replace("\u202f", " ") for row in views.rows] == ["81.2 %", "85.0 %", "80.0 %", "87.5 %"]
    assert [row.seconds.replace("\u202f", " ") for row in views.rows] == ["2.0 s", "3.0 s", "from the cache", ""]
    assert "48 training images" in views.caption


def test_the_page_shows_them_and_what_the_backbone_ran_over(seen):
    prep = replace(seen.evidence.backbone.preprocessing, views=(View(name="pad", crop_mode="border"),))
    backbone = replace(seen.evidence.backbone, preprocessing=prep)
    page = render(replace(seen, evidence=replace(seen.evidence, backbone=backbone)))
    assert '<section id="views"' in page
    assert page.count('href="#views"') == 1
    assert "crop+squash+pad" in page
    assert "and 12 times more for further views" in page


@pytest.mark.parametrize(
    ("command", "found", "added"),
    [
        ("transferkit adapt data=digits", {}, "views=crop+squash+pad geometry=squash"),
        ("transferkit adapt geometry=squash", {}, "views=crop+squash+pad"),
        ("transferkit.adapt('m', 'd', seed=0)", {}, 'views="crop+squash+pad", geometry="squash"'),
        (
            "transferkit adapt",
            {"views": ("crop", "crop+mirror"), "geometry": "crop"},
            "views=crop+mirror geometry=crop",
        ),
        ("transferkit adapt", {"views": ("crop",), "geometry": "crop"}, "views=1 geometry=crop"),
        ("transferkit adapt", {"geometry": "full"}, "views=crop+squash+pad"),
        ("transferkit adapt views=crop+squash+pad", {}, ""),
        ("transferkit adapt train.views=4", {"geometry": "full"}, "views=crop+squash+pad"),
        ("", {}, ""),
    ],
)
def test_what_a_faster_machine_would_choose_otherwise_can_be_named(seen, command, found, added):
    evidence = replace(seen.evidence, views=replace(FOUND, **found))
    page = write_report(replace(seen, command=command, evidence=evidence)).origins
    assert page.views == added


def test_one_view_is_named_and_none_is_not_shown(record, seen):
    alone = replace(FOUND, views=("pad",), geometry="pad", scores=(), images=0)
    one = write_report(replace(seen, evidence=replace(seen.evidence, views=alone))).views
    assert one.sentence == "Each image is seen in one view: pad, the whole picture with borders."
    assert one.caption == "Nothing was compared."
    assert write_report(record).views is None
    assert "#views" not in render(record)
