"""What knowing fine-tuning's gain could improve, on cells whose gains are known by construction."""

from __future__ import annotations

import numpy as np
import pytest
from regret import policies
from regret.limits import THRESHOLDS, by_threshold, choose, know, markdown

from tests.unit.scripts.test_bench_regret import make_cell

PROBE = 0.8
GAINS = {"a": 0.10, "b": 0.06, "c": 0.015, "d": 0.0, "e": -0.02, "f": -0.10}


@pytest.fixture(autouse=True)
def nothing_learned(monkeypatch):
    monkeypatch.setattr(policies, "_learned", {})


@pytest.fixture
def known():
    return know([make_cell(task, tuned=PROBE + gain) for task, gain in GAINS.items()], ("lp_ft",))


def test_the_probe_is_the_best_one_and_gains_are_over_it(known):
    assert known.probe == pytest.approx([PROBE] * len(GAINS))
    assert known.tested("lp_ft") - known.probe == pytest.approx(list(GAINS.values()))


def test_who_knows_the_true_gains_takes_those_above_the_threshold_and_nothing_else(known):
    rows = [row for row in by_threshold(known) if row["gain"] == "true"]
    assert [row["from, points"] for row in rows] == [100 * threshold for threshold in THRESHOLDS]
    for row, threshold in zip(rows, THRESHOLDS, strict=True):
        taken = [gain for gain in GAINS.values() if gain > 0 and gain >= threshold - 1e-12]
        assert row["cells fine-tuned"] == len(taken)
        assert row["test accuracy"] == pytest.approx(100 * (PROBE + sum(taken) / len(GAINS)), abs=0.01)
        always = sum(GAINS.values()) / len(GAINS)
        assert row["more than always lp_ft"] == pytest.approx(100 * (sum(taken) / len(GAINS) - always), abs=0.01)
        assert row["share of its time"] == pytest.approx(len(taken) / len(GAINS), abs=0.001)
        low, high = row["interval"]
        assert low <= row["more than always lp_ft"] <= high


def test_expected_gains_come_from_other_families(known):
    alike = know([make_cell(task, tuned=PROBE + 0.1) for task in "abc"] + [make_cell("odd", tuned=0.5)], ("lp_ft",))
    expected = dict(zip("abco", alike.expected("lp_ft"), strict=False))
    assert expected["o"] > 0.05  # knows nothing of its own loss
    assert max(expected[task] for task in "abc") < expected["o"]


def test_the_best_expected_strategy_is_chosen_or_the_probe(known):
    nothing, much = np.zeros(len(GAINS)), np.full(len(GAINS), 0.2)
    assert choose(known, {"lp_ft": nothing}) == pytest.approx(known.probe)
    assert choose(known, {"lp_ft": much}) == pytest.approx(known.tested("lp_ft"))


def test_rows_are_printed_as_a_table():
    assert markdown([{"menu": "lp_ft", "test accuracy": 80.0}]).splitlines() == [
        "| menu | test accuracy |",
        "|-|-|",
        "| lp_ft | 80.0 |",
    ]
