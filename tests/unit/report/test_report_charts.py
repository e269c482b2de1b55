"""Charts: where marks and labels lie by construction, and how a registered chart reaches the page."""

from __future__ import annotations

import itertools
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.unit.report.test_report_predictions import binary
from tests.unit.report.test_report_render import Page, section
from transferkit.core.errors import OptionError
from transferkit.records import Alternative, CurvePoint, DataNeed, Forecast
from transferkit.report import render
from transferkit.report._predictions import reliability_bins
from transferkit.report._render import _environment
from transferkit.report.charts import (
    CHARTS,
    Axis,
    Band,
    Box,
    Boxes,
    Chart,
    Dots,
    Figure,
    Line,
    Point,
    ReferenceLine,
    log_axis,
    share_axis,
    value_axis,
)
from transferkit.report.charts.axes import LETTER, LINE
from transferkit.report.charts.frame import keep_apart
from transferkit.report.charts.heat_map import draw_heat_map
from transferkit.report.charts.learning_curves import MAX_LABELLED, best_stage, draw_curves
from transferkit.report.charts.reliability import draw_reliability

UNIT = Axis(low=0, high=1, ticks=())
HOSTILE = "</title><script>alert(1)</script>"


def square(*marks, **other) -> Chart:
    """A chart of the unit square, 100 px on each side."""
    return Chart(**{"title": "A square", "x": UNIT, "y": UNIT, "marks": marks, "across": 100, "down": 100, **other})


def drawn(chart: Chart) -> ElementTree.Element:
    """The SVG of a chart as a browser would parse it."""
    macros = _environment().get_template("charts.html.j2").module
    return ElementTree.fromstring(macros.chart(chart).strip())


def labels(chart: Chart) -> dict[str, ElementTree.Element]:
    """Text, without its tooltip -> its element."""
    return {one.text or one.find("title").tail: one for one in drawn(chart).iter("text")}


# ---- marks


def test_marks_lie_where_their_values_say():
    chart = square(
        Line(points=[Point(x=0, y=0), Point(x=1, y=0.5)]),
        Dots(points=[Point(x=0.25, y=0.5, low=0.25, high=1.0, title="a dot")], radius=3),
        Boxes(boxes=[Box(x=(0.5, 0.75), y=(0, 0.5))], gap=0),
        Band(low=0.25, high=0.5, axis="y"),
        ReferenceLine(at=0.75, axis="x"),
    )
    left, top = chart.plot.left, chart.plot.top
    svg = drawn(chart)
    assert svg.find("path").get("d") == f"M{left} {top + 100} L{left + 100} {top + 50}"
    dot, bar = svg.find("g/circle"), svg.find("g/line")
    assert (float(dot.get("cx")), float(dot.get("cy"))) == (left + 25, top + 50)
    assert [float(bar.get(end)) for end in ("x1", "x2", "y1", "y2")] == [left + 25, left + 25, top + 75, top]
    assert svg.find("g/title").text == "a dot"
    box, band = svg.find("g/rect"), svg.find("rect")
    assert [float(box.get(side)) for side in ("x", "y", "width", "height")] == [left + 50, top + 50, 25, 50]
    assert [float(band.get(side)) for side in ("x", "y", "width", "height")] == [left, top + 50, 100, 25]
    assert {svg.find("line").get("x1"), svg.find("line").get("x2")} == {str(left + 75)}


def test_bands_lie_below_the_grid_and_marks_above_it():
    chart = square(Line(points=[Point(x=0, y=0), Point(x=1, y=1)]), Band(low=0, high=1), y=share_axis([0, 1]))
    kinds = [one.get("class", "").split()[0] for one in drawn(chart) if one.tag in ("rect", "line", "path")]
    assert kinds == ["band", *["grid"] * 6, "line"]


def test_what_lies_outside_is_drawn_on_the_edge():
    chart = square(Dots(points=[Point(x=-3, y=7)]))
    dot = drawn(chart).find("g/circle")
    assert (float(dot.get("cx")), float(dot.get("cy"))) == (chart.plot.left, chart.plot.top)


def test_a_chart_has_its_title_twice_and_a_frame_that_holds_all_labels():
    chart = square(
        Line(points=[Point(x=0, y=0), Point(x=1, y=1)], label="a long name of a series"),
        x=log_axis([1, 1_000_000], name="Images"),
        y=value_axis([0, 123_456], name="Count"),
    )
    svg = drawn(chart)
    assert svg.get("aria-label") == svg.find("title").text == "A square"
    assert svg.get("role") == "img"
    for words, one in labels(chart).items():
        if one.get("transform") is None:
            width = LETTER * len(words)
            start = float(one.get("x")) - {"middle": width / 2, "end": width}.get(one.get("class", "").split()[0], 0)
            assert start + 0.01 >= 0
            assert start + width <= chart.width + 0.01, words
            assert 0 < float(one.get("y")) < chart.height


def test_tick_labels_that_would_touch_are_left_out_but_never_the_last():
    sizes = [1000, 1010, 1020, 2000]
    chart = square(x=log_axis(sizes, ticks=sizes))
    assert list(labels(chart)) == ["1,020", "2,000"]


def test_labels_keep_their_order_a_line_apart_and_stay_inside():
    moved = keep_apart([90, 91, 92, 10], top=0, bottom=100)
    assert moved[3] == 10
    assert moved[:3] == sorted(moved[:3])
    assert all(lower - upper == pytest.approx(LINE) for upper, lower in itertools.pairwise(moved[:3]))
    assert moved[2] == 100


def test_a_header_has_room_of_its_own_and_its_label_is_the_first_that_fits():
    band = Band(low=0, high=0.6, labels=("phase 1", "1"))
    narrow = replace(band, high=0.2)
    assert square(band).plot.top == square(Band(low=0, high=1)).plot.top + 24
    assert list(labels(square(band))) == ["phase 1"]
    assert list(labels(square(narrow))) == ["1"]
    assert list(labels(square(replace(band, high=0.01)))) == []


def test_hostile_words_are_text_wherever_they_stand():
    point = Point(x=0, y=0, title=HOSTILE)
    chart = square(
        Line(points=[point], label=HOSTILE, legend=HOSTILE),
        Dots(points=[point]),
        Boxes(boxes=[Box(x=(0, 1), y=(0, 1), text=HOSTILE, title=HOSTILE)]),
        Band(low=0, high=1, labels=(HOSTILE, "x"), title=HOSTILE),
        title=HOSTILE,
        x=replace(UNIT, name=HOSTILE),
    )
    svg = drawn(chart)
    assert "script" not in {one.tag for one in svg.iter()}
    assert svg.get("aria-label") == HOSTILE


# ---- figures


def test_the_legend_names_each_kind_once_in_order():
    line = Line(points=[Point(x=0, y=0)], legend="held back", dashes="1 1")
    figure = Figure(section="data", charts=[square(line, ReferenceLine(at=1, legend="probe")), square(line)])
    assert list(figure.legend) == ["held back", "probe"]
    assert figure.legend["held back"].attributes["stroke-dasharray"] == "1 1"


@pytest.mark.parametrize(
    "mark",
    [Line(points=[]), Dots(points=[]), Boxes(boxes=[]), Band(low=0, high=1), ReferenceLine(at=1)],
    ids=lambda mark: type(mark).__name__,
)
def test_every_mark_can_stand_in_a_legend(mark, record, monkeypatch):
    figure = Figure(section="data", charts=[square(replace(mark, legend="Say it"))])
    monkeypatch.setattr(CHARTS, "_entries", {"toy": lambda record: figure})
    page = render(record)
    start = page.index('data-chart="toy"')
    assert "Say it" in Page(page[page.rindex("<figure", 0, start) : page.index("</figure>", start) + 9]).text


def test_a_figure_needs_a_known_section_and_a_chart():
    with pytest.raises(OptionError, match=r"Unknown section 'trainign'\. Closest known: training"):
        Figure(section="trainign", charts=[square()])
    with pytest.raises(OptionError, match="at least one chart; return None"):
        Figure(section="data", charts=[])


@pytest.mark.parametrize("where", ["decision", "stages", "data", "quality", "mistakes", "calibration", "timings"])
def test_a_registered_chart_stands_in_its_section(record, bare_record, monkeypatch, where):
    figure = Figure(section=where, heading="A toy", caption="How to read it.", charts=[square()])
    monkeypatch.setattr(CHARTS, "_entries", {"toy": lambda record: figure})
    for run in (record, bare_record):
        text = section(render(run), where)
        assert text.count("A toy") == text.count("How to read it.") == 1


def test_a_chart_of_a_section_that_the_report_lacks_is_an_error(record, trained_record, monkeypatch):
    figure = Figure(section="training", charts=[square()])
    monkeypatch.setattr(CHARTS, "_entries", {"toy": lambda record: figure})
    assert "A square" in section(render(trained_record), "training")
    with pytest.raises(OptionError, match="'toy' belongs in section 'training', which the report of this run does not"):
        render(record)


# ---- heat map and reliability


def test_heat_map_draws_only_cells_with_images_inside_its_frame():
    counts = np.array([[3, 1], [0, 1234]])
    names = ["cat", "a very long name of a class indeed"]
    chart = draw_heat_map(counts, names, title="Confusion matrix")
    boxes = chart.marks[0].boxes
    assert [(box.text, box.tone) for box in boxes] == [("3", "accent"), ("1", "warm"), ("1.2k", "accent")]
    assert boxes[1].title == "cat: 1 of 4 images classified as a very long name of a class indeed"
    drawn_boxes = [group.find("rect") for group in drawn(chart).iter("g")]
    corners = [(float(box.get("x")) - chart.plot.left, float(box.get("y")) - chart.plot.top) for box in drawn_boxes]
    assert corners == [pytest.approx(corner) for corner in [(1, 1), (41, 1), (41, 41)]]  # the first row is on top
    assert all(float(box.get("width")) == float(box.get("height")) == 38 for box in drawn_boxes)
    assert (chart.plot.right, chart.plot.bottom) == (chart.plot.left + 80, chart.plot.top + 80)
    assert [label.full for label in chart.y.ticks] == names


def test_exact_calibration_lies_on_the_diagonal():
    labels, probabilities = binary([0.75] * 4, [True, True, True, False])
    chart = draw_reliability(reliability_bins(labels, probabilities, bins=1))
    plot, dot = chart.plot, drawn(chart).find("g/circle")
    assert float(dot.get("cx")) - plot.left == pytest.approx(plot.bottom - float(dot.get("cy")), abs=0.02)
    assert 0 < float(dot.get("cx")) - plot.left < plot.across


# ---- learning curves


def curve(stage: str, *accuracies: float, first: int = 10) -> list[CurvePoint]:
    return [
        CurvePoint(stage=stage, images=first * 2**n, accuracy=accuracy, error=0.01)
        for n, accuracy in enumerate(accuracies)
    ]


POINTS = [*curve("stem", 0.2, 0.25, 0.3), *curve("top", 0.3, 0.5, 0.7), *curve("joined", 0.35, 0.6, 0.8)]


def lines(chart: Chart) -> list[Line]:
    return [mark for mark in chart.marks if isinstance(mark, Line)]


def test_equal_ratios_of_images_are_equal_distances_and_accuracy_goes_up():
    chart = draw_curves(POINTS)
    plot = chart.plot
    for line in lines(chart):
        first, middle, last = ((plot.x(point.x), plot.y(point.y)) for point in line.points)
        assert middle[0] - first[0] == pytest.approx(last[0] - middle[0], abs=0.02)
        assert first[1] > middle[1] > last[1]
        assert (first[0], last[0]) == (plot.left, plot.right)
    bars = [point for mark in chart.marks if isinstance(mark, Dots) for point in mark.points if point.low is not None]
    assert len(bars) == 6  # of the best stage and of all stages joined
    assert all(point.low < point.y < point.high for point in bars)


def test_the_best_single_stage_and_the_joined_ones_are_set_off_and_on_top():
    assert best_stage(POINTS) == "top"
    assert best_stage(curve("joined", 0.5, 0.6)) == ""
    found = [(line.tone, line.label, line.strong) for line in lines(draw_curves(POINTS))]
    assert found == [("quiet", "stem", False), ("accent", "top", True), ("ink", "joined", True)]


def test_names_never_overlap_keep_their_order_and_stay_inside():
    chart = draw_curves([point for n in range(12) for point in curve(f"s{n:02}", 0.2, 0.9 + 0.001 * n)])
    at = {label.text: label.at for label in chart.series_labels.values()}
    heights = [at[f"s{n:02}"] for n in range(12)]
    assert all(lower - upper >= LINE - 0.02 for lower, upper in itertools.pairwise(heights))
    assert chart.plot.top <= min(heights)
    assert max(heights) <= chart.plot.bottom


def test_of_many_stages_only_those_that_matter_are_named():
    points = [point for n in range(MAX_LABELLED) for point in curve(f"s{n:02}", 0.2, 0.3 + 0.01 * n)]
    chart = draw_curves([*points, *curve("joined", 0.3, 0.9)])
    assert [line.label for line in lines(chart) if line.label] == [f"s{MAX_LABELLED - 1:02}", "joined"]


def test_the_curves_are_in_the_page_where_there_are_any(record):
    def page(points):
        return render(replace(record, evidence=replace(record.evidence, curves=tuple(points))))

    text = section(page(POINTS), "stages")
    assert "What more images would bring" in text
    assert "joined, 40 images: 80.0 %" in text
    assert "the best single stage, top" in text
    for none in ([], curve("top", 0.5)):
        assert "What more images would bring" not in Page(page(none)).text


def test_the_curve_is_continued_to_four_times_the_images():
    gains = [Forecast(images=n, accuracy=0.8 + g, gain=g, gain_low=g / 2, gain_high=2 * g)
             for n, g in ((80, 0.02), (160, 0.03), (400, 0.04))]  # fmt: skip
    need = DataNeed(stage="joined", images=40, forecasts=tuple(gains), wanted=())
    chart = draw_curves(POINTS, need)
    (dashed,) = [line for line in lines(chart) if line.dashes]
    assert [point.x for point in dashed.points] == [40, 80, 160]
    assert dashed.points[1].low == pytest.approx(0.81)
    assert dashed.points[1].high == pytest.approx(0.84)
    assert chart.plot.x(dashed.points[-1].x) == chart.plot.right
    unsound = replace(need, problem="It falls.")
    assert not [line for line in lines(draw_curves(POINTS, unsound)) if line.dashes]


def test_what_more_images_bring_is_said_below_the_curves(record):
    gain = Forecast(images=80, accuracy=0.82, gain=0.02, gain_low=0.01, gain_high=0.03)
    need = DataNeed(stage="joined", images=40, forecasts=(gain,), wanted=())
    evidence = replace(record.evidence, curves=tuple(POINTS), data_need=need)
    text = section(render(replace(record, evidence=evidence)), "stages")
    assert "With 80 images, 2 times as many: +2.0 points (80 % interval +1.0 to +3.0)." in text
    assert "Dashed" in text


def test_hostile_stage_names_are_text(record):
    html = render(replace(record, evidence=replace(record.evidence, curves=tuple(curve(HOSTILE, 0.3, 0.5)))))
    assert "script" not in Page(html).tags


def test_the_selected_features_have_a_row_and_a_word(record):
    probes = record.evidence.probes
    selected = replace(probes[3], stage="selected", dim=7, accuracy=0.825, high=0.9)
    evidence = replace(record.evidence, probes=(*probes, selected))
    text = section(render(replace(record, evidence=evidence)), "stages")
    assert "the 7 features selected from them 82.5 %" in text
    assert text.index("all stages joined") < text.index("selected features of all") < text.index("k-NN on top")


# What more time would bring


def option(strategy, accuracy, cost, stage="top"):
    low, high = accuracy - 0.1, min(1.0, accuracy + 0.1)
    return Alternative(
        strategy=strategy, stage=stage, expected_accuracy=accuracy, low=low, high=high, cost_seconds=cost
    )


def weighed(record, *options, seconds):
    """The record with these options, of which the first is chosen, after so many seconds of measuring."""
    chosen, *others = options
    decision = replace(
        record.decision, strategy=chosen.strategy, stage=chosen.stage, expected=chosen, alternatives=tuple(others)
    )
    return replace(record, decision=decision, evidence=replace(record.evidence, seconds=seconds))


def test_the_best_of_each_strategy_stands_where_it_would_be_there_and_the_line_never_falls(record):
    probe, better = option("linear_probe", 0.7, 1.0), option("linear_probe", 0.75, 2.0, stage="joined")
    few, all_of_it = option("few_layers", 0.72, 18.0), option("lp_ft", 0.9, 98.0)
    figure = CHARTS["accuracy_seconds"](weighed(record, few, probe, better, all_of_it, seconds={"a": 1.5, "b": 0.5}))
    (chart,) = figure.charts
    dots = [mark for mark in chart.marks if isinstance(mark, Dots)]
    assert [(dot.points[0].x, dot.points[0].y) for dot in dots] == [(4.0, 0.75), (20.0, 0.72), (100.0, 0.9)]
    assert [dot.tone for dot in dots] == ["quiet", "accent", "quiet"]
    (stairs,) = lines(chart)
    assert [(point.x, point.y) for point in stairs.points] == [
        (4.0, 0.75), (20.0, 0.75), (20.0, 0.75), (100.0, 0.75), (100.0, 0.9)
    ]  # fmt: skip
    assert [mark.label for mark in chart.marks if isinstance(mark, ReferenceLine)] == [
        "linear_probe", "few_layers", "lp_ft"
    ]  # fmt: skip
    assert "after 2" in figure.caption


def test_the_chosen_option_stands_for_its_strategy_and_one_alone_has_no_chart(record):
    chosen, better = option("linear_probe", 0.7, 1.0), option("linear_probe", 0.75, 2.0, stage="joined")
    draw = CHARTS["accuracy_seconds"]
    (chart,) = draw(weighed(record, chosen, better, option("lp_ft", 0.9, 98.0), seconds={"a": 2.0})).charts
    assert [mark.points[0].y for mark in chart.marks if isinstance(mark, Dots)] == [0.7, 0.9]
    assert draw(weighed(record, chosen, better, seconds={"a": 2.0})) is None
    assert draw(weighed(record, chosen, option("lp_ft", 0.9, 98.0), seconds={})) is None


def test_more_time_is_a_figure_of_the_decision(record):
    seen = weighed(record, option("linear_probe", 0.7, 1.0), option("lp_ft", 0.9, 98.0), seconds={"a": 2.0})
    assert "What more time would bring" in section(render(seen), "decision")
