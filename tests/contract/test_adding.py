"""One more strategy, measure, kind of normalisation, chart and verb, added at run time as a new file would add it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import transferkit as tk
from tests.unit.report.conftest import build_record, build_training
from tests.unit.workflow.test_rank import ALL, ONE, PLAIN, Colours, Tinted
from transferkit import cli
from transferkit.cli.composition import compose_settings
from transferkit.measure import MEASURES
from transferkit.measure.transferability.catalog import Measure
from transferkit.nn.norm.kinds import NORM_KINDS
from transferkit.report import render
from transferkit.report.charts import CHARTS, Band, Chart, Figure, Line, Point, count_axis, log_axis
from transferkit.strategies import STRATEGIES, few_layers


@pytest.fixture
def added(monkeypatch):
    """A function that adds to a registry until the test is over."""

    def add(registry, name, entry):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        registry.register(name)(entry)

    return add


def test_a_strategy(added, tmp_path):
    added(STRATEGIES, "toy", lambda decision, stages: few_layers(decision, stages))
    quick = {"train": {"epochs": 1, "folds": 1, "lr": 1e-3}, "geometry": "crop", "views": 1, "progress": False}
    data = {"train": Tinted(24)}
    result = tk.adapt(Colours(ALL), data, strategy="toy", preprocessing=PLAIN, image_size=16, cache=tmp_path, **quick)
    assert result.decision.strategy == "toy"
    assert result.record.training is not None
    assert compose_settings(["strategy=toy"]).strategy == "toy"


def test_a_measure(added, tmp_path):
    def spread(features, labels):
        return float(np.var(features))

    added(MEASURES, "spread", Measure(function=spread, needs="features", comparable="Nothing: a toy."))
    data = {"train": Tinted()}
    ranking = tk.rank([Colours(ALL), Colours(ONE)], data, preprocessing=PLAIN, cache=tmp_path, progress=False)
    assert all(any(score.measure == "spread" for score in model.scores) for model in ranking.models)


def test_a_kind_of_normalisation(added):
    added(NORM_KINDS, "nothing", lambda layer, groups: nn.Identity())
    network = tk.swap_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), to="nothing")
    assert isinstance(network[1], nn.Identity)
    assert torch.equal(network(torch.ones(1, 3, 2, 2)), network[0](torch.ones(1, 3, 2, 2)))


def test_a_chart(added):
    def rates(record):
        if record.training is None:
            return None
        points = [Point(x=epoch.number + 1, y=epoch.lr, title=f"toy: {epoch.lr:g}") for epoch in record.training.epochs]
        chart = Chart(
            title="Learning rate by epoch",
            x=count_axis(1, len(points), name="Epoch"),
            y=log_axis([point.y for point in points], name="Learning rate"),
            marks=[Band(low=1e-3, high=5e-3, axis="y", legend="usual"), Line(points=points)],
        )
        return Figure(section="training", heading="Toy rates", caption="Shaded: the usual range.", charts=[chart])

    added(CHARTS, "toy", rates)
    probe = build_record(("ant", "bee", "cat"))
    page = render(replace(probe, training=build_training()))
    drawn = page[page.index('data-chart="toy"') : page.index("Shaded: the usual range.")]
    assert page.index('id="training"') < page.index("Toy rates") < page.index('id="kept"')
    for part in ('aria-label="Learning rate by epoch"', "usual</li>", ">0.005</text>", 'class="line in-accent"'):
        assert part in drawn
    assert "Toy rates" not in render(probe)


def test_a_verb(monkeypatch, capsys):
    monkeypatch.setitem(cli.VERBS, "shout", lambda words: print(" ".join(words).upper()))
    cli.main(["shout", "name=toy"])
    assert capsys.readouterr().out == "NAME=TOY\n"
    with pytest.raises(SystemExit):
        cli.main(["shuot"])
    assert "Closest known: shout" in capsys.readouterr().err
