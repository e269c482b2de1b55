"""What people see of a monitored fit: charts with a sentence each, and the diagnosis."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.report.conftest import build_training
from tests.unit.report.test_report_render import section
from transferkit.records import Histogram, MonitoredStage, MonitorRecord, Symptom
from transferkit.report import render
from transferkit.report.charts import Band, Boxes, Line
from transferkit.report.charts.inside_network import distributions, features, updates
from transferkit.report.sections._training import write_training


def histogram(at: int, *, zeros: int = 0) -> Histogram:
    return Histogram(counts=tuple(zeros if n == 0 else 10 if n == at else 0 for n in range(28)))


def stage(name: str, ratio: float, **facts) -> MonitoredStage:
    known = {
        "ratio": (None, ratio, ratio),
        "gradient": (None, 1.0, 0.5),
        "noise": (None, None, 0.5),
        "similarity": (0.9, 0.8),
        "weights": (histogram(20), histogram(20)),
        "gradients": (histogram(16), histogram(12, zeros=5)),
        "dead": (0.1, 0.25),
    }
    return MonitoredStage(stage=name, **{**known, **facts})


def monitor(**facts) -> MonitorRecord:
    stages = (
        stage("stem", 2e-5, similarity=(1.0, 0.99)),
        stage("blocks.0", 1e-3),
        stage("top", 2e-3, similarity=(0.7, 0.5), dead=(0.2, 0.4)),
        stage("head", 5e-4, dead=(), similarity=(0.9, None)),
    )
    known = {"every": 20, "steps": (0, 20, 40), "losses": (2.0, 1.0, 0.5), "gradients": (3.0, 1.0, None)}
    return MonitorRecord(**{**known, "stages": stages, "compared": (20, 40), "images": 16, **facts})


@pytest.fixture
def watched(trained_record):
    return replace(trained_record, training=replace(build_training(), monitor=monitor(), symptoms=()))


def plain(text: str) -> str:
    return text.replace("\u202f", " ").replace("\u2011", "-")


def lines(chart):
    return [mark for mark in chart.marks if isinstance(mark, Line)]


def test_ratios_lie_over_the_usual_range_and_are_said(watched):
    figure = updates(watched)
    ratios, gradients = figure.charts
    (band,) = [mark for mark in ratios.marks if isinstance(mark, Band)]
    assert (band.low, band.high, band.axis) == (1e-4, 1e-2, "y")
    assert [[point.y for point in line.points] for line in lines(ratios)] == [
        [1e-3] * 2,
        [2e-5] * 2,
        [2e-3] * 2,
        [5e-4] * 2,
    ]
    assert [line.legend for line in lines(ratios)] == ["other stages", "stem", "top", "head"]
    assert [point.y for point in lines(gradients)[0].points] == [3.0, 1.0]
    assert plain(figure.caption) == (
        "A step changes the weights by 0.002 % (stem) to 0.2 % (top), median over the steps. Stages below the usual "
        "range learn slowly, as their rates ask for. The gradient's norm, before clipping, goes from 3 to 1. First "
        "fold, every 20th step."
    )


def test_histograms_are_shares_of_all_stages(watched):
    _, gradients = distributions(watched).charts
    start, end = lines(gradients)
    assert sum(point.y for point in start.points) == pytest.approx(1.0)
    assert end.points[0].y == pytest.approx(1 / 3)
    assert max(start.points, key=lambda point: point.y).x > max(end.points[1:], key=lambda point: point.y).x
    assert plain(distributions(watched).caption).startswith(
        "The median of the weights stays at 0.02. The median of the gradients goes from 0.0002 to 2e-06."
    )


def test_features_and_dead_units(watched):
    similarity, dead = features(watched).charts
    assert all(line.points[0].y == 1.0 for line in lines(similarity))
    bars = [mark for mark in dead.marks if isinstance(mark, Boxes)]
    assert [[box.x[1] for box in mark.boxes] for mark in bars] == [[0.1, 0.1, 0.2], [0.25, 0.25, 0.4]]
    assert plain(features(watched).caption) == (
        "Features of 16 fixed images moved most in top: linear CKA 0.50 to the start; 1 is unchanged up to rotation "
        "and scale. Dead are at most 40 % of a stage's rectified units (top; 20 % at the start): they give one output "
        "for all of 8 images."
    )


def test_every_picture_has_a_title_and_the_section_a_reassurance(watched):
    page = render(watched)
    for name in ("updates", "distributions", "features"):
        assert f'data-chart="{name}"' in page
    assert page.count("the caption says it in words</title>") == 6
    assert "No sign of trouble." in section(page, "training")


def test_symptoms_take_the_place_of_the_reassurance(watched):
    bad = Symptom(cause="lr_too_high", severity="alarm", evidence="It <rises>.", remedy="Lower it.")
    page = section(render(replace(watched, training=replace(watched.training, symptoms=(bad,)))), "training")
    assert "alarm: lr too high" in page
    assert "It <rises>. Lower it." in page
    assert "No sign of trouble" not in page


def test_a_run_of_before_says_nothing_of_either():
    written = write_training(build_training())
    assert written.symptoms == ()
    assert written.reassurance == ""


@pytest.mark.parametrize(
    "facts",
    [
        {"steps": (0,), "losses": (None,), "gradients": (None,), "stages": (), "compared": ()},
        {"steps": (), "losses": (), "gradients": (), "stages": (), "compared": ()},
        {"gradients": (0.0, 0.0, None), "stages": (), "compared": ()},
        {
            "stages": (MonitoredStage(stage="a", ratio=(None,) * 3, gradient=(None,) * 3, noise=(None,) * 3),),
            "compared": (),
        },
        {"stages": (stage("a", 0.0, similarity=(None, None), dead=(0.0, 0.0), weights=(), gradients=()),)},
    ],
)
def test_what_was_not_measured_has_no_chart(watched, facts):
    record = replace(watched, training=replace(watched.training, monitor=monitor(**facts)))
    assert "How it was trained" in render(record)
