"""Learning curves as a drawing: where the points and the names lie."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from tests.unit.report.test_report_render import Page, section
from transferkit.records import CurvePoint
from transferkit.report import render
from transferkit.report._plots import LABELLED, LINE, draw_curves


def curve(stage: str, *accuracies: float, first: int = 10) -> list[CurvePoint]:
    return [
        CurvePoint(stage=stage, images=first * 2**n, accuracy=accuracy, error=0.01)
        for n, accuracy in enumerate(accuracies)
    ]


POINTS = [*curve("stem", 0.2, 0.25, 0.3), *curve("top", 0.3, 0.5, 0.7), *curve("joined", 0.35, 0.6, 0.8)]


def test_equal_ratios_of_images_are_equal_distances_and_accuracy_goes_up():
    plot = draw_curves(POINTS)
    for one in plot.curves:
        first, middle, last = one.dots
        assert middle.x - first.x == pytest.approx(last.x - middle.x, abs=0.02)
        assert first.y > middle.y > last.y
        assert all(dot.low > dot.y > dot.high for dot in one.dots)
    assert plot.curves[0].dots[0].x == plot.left
    assert plot.curves[0].dots[-1].x == plot.left + plot.across


def test_the_best_single_stage_and_the_joined_ones_are_set_off_and_on_top():
    plot = draw_curves(POINTS)
    assert plot.best == "top"
    assert [(one.kind, one.label.text) for one in plot.curves] == [
        ("stage", "stem"),
        ("best", "top"),
        ("joined", "joined"),
    ]


def test_names_never_overlap_keep_their_order_and_stay_inside():
    points = [point for n in range(12) for point in curve(f"s{n:02}", 0.2, 0.9 + 0.001 * n)]
    plot = draw_curves(points)
    at = {one.label.text: one.label.at for one in plot.curves}
    heights = [at[f"s{n:02}"] for n in range(12)]
    assert all(lower - upper >= LINE - 0.02 for lower, upper in itertools.pairwise(heights))
    assert plot.top <= min(heights)
    assert max(heights) <= plot.top + plot.down


def test_of_many_stages_only_those_that_matter_are_named():
    points = [point for n in range(LABELLED) for point in curve(f"s{n:02}", 0.2, 0.3 + 0.01 * n)]
    plot = draw_curves([*points, *curve("joined", 0.3, 0.9)])
    assert [one.label.text for one in plot.curves if one.label] == [f"s{LABELLED - 1:02}", "joined"]


def test_the_curves_are_in_the_page_where_there_are_any(record):
    def page(points):
        return render(replace(record, evidence=replace(record.evidence, curves=tuple(points))))

    text = section(page(POINTS), "stages")
    assert "What more images would bring" in text
    assert "joined, 40 images: 80.0 %" in text
    assert "the best single stage, top" in text
    for none in ([], curve("top", 0.5)):
        assert "What more images would bring" not in Page(page(none)).text


def test_hostile_stage_names_are_text(record):
    hostile = "</title><script>alert(1)</script>"
    html = render(replace(record, evidence=replace(record.evidence, curves=tuple(curve(hostile, 0.3, 0.5)))))
    assert "script" not in Page(html).tags


def test_the_selected_features_have_a_row_and_a_word(record):
    probes = record.evidence.probes
    selected = replace(probes[3], stage="selected", dim=7, accuracy=0.825, high=0.9)
    evidence = replace(record.evidence, probes=(*probes, selected))
    text = section(render(replace(record, evidence=evidence)), "stages")
    assert "the 7 features selected of them 82.5 %" in text
    assert text.index("all stages joined") < text.index("selected features of all") < text.index("k-NN on top")
