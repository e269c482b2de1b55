"""The page of a ranking: what it says, and that nothing in it can do harm."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from transferkit.records import DataSummary, LeftOut, MeasureScore, ProbeScore, RankedModel, Ranking
from transferkit.report import render_ranking
from transferkit.report._ranking import write_ranking

NASTY = "<script>alert(1)</script>"


def probe(stage, accuracy):
    return ProbeScore(stage=stage, method="ridge", dim=40, accuracy=accuracy, low=accuracy - 0.05, high=accuracy + 0.05)


def row(name, rank, **other):
    facts = {
        "name": name,
        "rank": rank,
        "rank_low": max(1, rank - 1),
        "rank_high": rank,
        "best": 1.0 if rank == 1 else 0.0,
        "joined": probe("joined", 0.9 - 0.1 * rank),
        "best_stage": probe("blocks.3", 0.7),
        "prior": 0.7512,
        "prior_rank": rank,
        "scores": (
            MeasureScore(measure="press", stage="top", value=0.7654, seconds=0.1),
            MeasureScore(measure="leep", stage="top", value=None, seconds=0.0, reason="No classifier."),
        ),
        "images_per_second": None,
        "parameters": 3_400_000,
        "image_size": 96,
        "width": 4192,
        "gigaflops": 0.141,
        "pretrained": True,
    }
    return RankedModel(**{**facts, **other})


@pytest.fixture
def ranking():
    data = DataSummary(origin="photos", classes=("a", "b"), counts={"train": (30, 31)}, split_rule="")
    return Ranking(
        models=(row("zoo/first_net", 1), row("zoo/second_net", 2)),
        reasons=("zoo/first_net is first.",),
        data=data,
        prior="published accuracy",
        left_out=(LeftOut(name="zoo/lost", reason="Could not be fetched."),),
        images=61,
        measured_images=61,
        resamples=1000,
        pooling="avg",
        seed=0,
        command="transferkit rank",
    )


class Words(HTMLParser):
    def __init__(self):
        super().__init__()
        self.text, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def read(ranking):
    words = Words()
    words.feed(render_ranking(ranking))
    return "".join(words.text).replace("\u202f", " "), words.tags


def test_the_page_holds_ranks_costs_measures_and_who_is_missing(ranking):
    text, _ = read(ranking)
    for part in ("zoo/first_net", "1 to 2", "80.0 %", "blocks.3: 70.0 %", "75.1 % (1)", "0.141", "0.765"):
        assert part in text
    assert "leep of zoo/first_net: No classifier." in text
    assert "Could not be fetched." in text
    assert "Not all pretrained" not in text
    assert "Not all pretrained" in read(replace(ranking, models=(row("x", 1, pretrained=False),)))[0]


def test_the_page_opens_offline_and_holds_no_script(ranking):
    nasty = replace(
        ranking,
        models=(row(NASTY, 1),),
        reasons=(NASTY,),
        left_out=(LeftOut(name=NASTY, reason=NASTY),),
        command=NASTY,
        data=replace(ranking.data, origin=f"{NASTY}\udcff"),
    )
    text, tags = read(nasty)
    assert text.count(NASTY) >= 5
    assert not [tag for tag, _ in tags if tag in ("script", "link", "iframe")]
    assert not [value for _, attributes in tags for key, value in attributes.items() if key in ("src", "href")]


def test_ranks_stand_where_their_numbers_are(ranking):
    page = write_ranking(ranking)
    assert [tick.text for tick in page.rank_axis.ticks] == ["1", "2"]
    assert [strip.at for strip in page.ranks] == [tick.at for tick in page.rank_axis.ticks] == [25.0, 75.0]
    assert (page.ranks[1].low, page.ranks[1].high) == (25.0, 75.0)


def test_parameters_as_prior_are_a_count(ranking):
    page = write_ranking(replace(ranking, prior="parameters", models=(row("x", 1, prior=3.4e6),)))
    assert page.costs[0][3] == "3,400,000 (1)"


def test_many_models_share_few_ticks(ranking):
    page = write_ranking(replace(ranking, models=tuple(row(f"net{n}", n) for n in range(1, 41) if n < 9)))
    assert len(page.rank_axis.ticks) == 8
    page = write_ranking(replace(ranking, models=tuple(row(f"net{n}", 1) for n in range(40))))
    assert len(page.rank_axis.ticks) <= 12
