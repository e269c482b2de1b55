"""The regret benchmark's arithmetic, on cells whose regrets are known by construction."""

from __future__ import annotations

import numpy as np
import pytest
from regret import policies as ways
from regret.cells import Cell, restore
from regret.learning import Lesson, regress
from regret.running import shrink
from regret.scoring import interval, relative_costs, score

from transferkit.data import open_data
from transferkit.records import JOINED, SELECTED

STAGES = ("stem", "top")


def probe(stage: str, accuracy: float) -> dict:
    return {
        "stage": stage,
        "method": "ridge",
        "dim": 8,
        "accuracy": accuracy,
        "low": accuracy - 0.1,
        "high": accuracy + 0.1,
        "squared_error": 0.5,
        "gain_error": 0.0 if stage == JOINED else 0.01,
    }


def make_cell(task: str, *, tuned: float, family: str | None = None, selected: float = 0.8) -> Cell:
    """Ridge heads on four representations, one second each, and one way of fine-tuning, ten seconds."""
    right = {"stem": 0.5, "top": 0.6, JOINED: 0.7, SELECTED: selected}
    described = {"task": task, "model": "toy", "classes": 4, "stages": STAGES}
    evidence = {
        "probes": [probe(stage, accuracy) for stage, accuracy in right.items()],
        "similarity": 0.3,
        "seconds": {"similarity": 0.5, "probe": 1.0, "selection": 0.5},
    }
    return Cell(
        task=task,
        family=family or task,
        evidence=restore(described, {"images": 80, "evidence": evidence}),
        level=20,
        test_images=100,
        strategies={
            f"{stage} ridge": {
                "held_back": accuracy,
                "log_loss": 1 - accuracy,
                "test": accuracy,
                "seconds": 1.0,
                "kept": True,
            }
            for stage, accuracy in right.items()
        },
        tuned={
            "lp_ft": {
                "test": tuned,
                "kept": 1.0,
                "held_back": {"0.0": [selected, 0.5, 0.0], "1.0": [tuned, 0.4, 0.02]},
                "epochs": [10, 10],
                "seconds": 10.0,
            }
        },
    )


CELLS = [
    make_cell("a", tuned=0.95),
    make_cell("a_noise", family="a", tuned=0.9),
    make_cell("b", tuned=0.9),
    make_cell("c", tuned=0.7),
]


@pytest.fixture
def policies(monkeypatch):
    """Those that the toy cells have the heads for."""
    known = ("mode=evidence", "best constant", "always joined, ridge", "cross-validation of everything")
    monkeypatch.setattr(ways, "POLICIES", {name: ways.POLICIES[name] for name in known})
    monkeypatch.setattr(ways, "_learned", {})
    monkeypatch.setattr(ways, "_constants", {})


def test_regret_is_what_the_best_strategy_has_more(policies):
    found = score(CELLS, CELLS)
    # 25, 20 and 20 points behind fine-tuning, and 10 behind the selected features.
    assert found["always joined, ridge"]["mean"] == pytest.approx((25 + 20 + 20 + 10) / 4)
    assert found["always joined, ridge"]["worst task"] == ["a", 25.0]
    assert found["always lp_ft"]["mean"] == pytest.approx((0 + 0 + 0 + 10) / 4)
    assert found["always lp_ft"]["share of exhaustive time"] == pytest.approx((10 + 2) / (4 + 0.5 + 10), abs=1e-3)
    # Held-back accuracies are the test's here, so whoever tries everything finds the best.
    assert found["cross-validation of everything"]["mean"] == 0
    assert found["cross-validation of everything"]["share of exhaustive time"] == 1


def test_the_best_constant_never_saw_the_family_it_is_judged_on(policies):
    only_b_gains = [make_cell("b", tuned=0.99), make_cell("c", tuned=0.75), make_cell("d", tuned=0.75)]
    found = score(only_b_gains, only_b_gains)["best constant"]
    # For b the others know selected features as best, for c and d fine-tuning: 19 points on one, 5 on the other.
    assert found["mean"] == pytest.approx((19 + 5 + 5) / 3, abs=0.01)


def test_an_interval_draws_families_together():
    values = [0.0, 0.0, 1.0, 1.0]
    apart = [make_cell(name, tuned=0.9) for name in "abcd"]
    together = [make_cell(name, family=family, tuned=0.9) for name, family in zip("abcd", "xxyy", strict=True)]
    assert interval(together, values) == (0.0, 1.0)  # one of two families alone is drawn in half of the draws
    low, high = interval([*apart, *(make_cell(name, tuned=0.9) for name in "efgh")], values * 2)
    assert 0 < low < 0.5 < high < 1


def test_least_squares_find_the_coefficients_and_what_they_leave_beyond_the_noise_of_the_test():
    rng = np.random.default_rng(0)
    truth, left, noise = np.array([0.3, -0.2, 0.5]), 0.2, 0.1
    seen = []
    for number in range(2000):
        covariates = (1.0, *rng.random(2))
        gain = float(np.dot(truth, covariates) + rng.normal(0, np.hypot(left, noise)))
        seen.append(Lesson(kind="lp_ft", task=str(number), covariates=covariates, gain=gain, noise=noise**2))
    found, spread = regress(seen)
    np.testing.assert_allclose(found, truth, atol=0.04)
    assert spread == pytest.approx(left, abs=0.02)


def test_a_shrunk_task_keeps_its_test_images_and_counts_what_is_left(stripes):
    data = open_data(stripes, progress=False)
    small = shrink(data, 2, 0)
    assert small.summary.counts["train"] == tuple(2 for _ in data.summary.classes)
    assert small.summary.counts["test"] == data.summary.counts["test"]
    assert [small.items[i] for i in small.indices("test")] == [data.items[i] for i in data.indices("test")]
    assert {small.items[i] for i in small.indices("train")} < {data.items[i] for i in data.indices("train")}
    assert len(data.indices("train")) > len(small.indices("train"))  # what was given is as it was


def test_costs_are_told_in_those_of_the_same_cell():
    cells = [make_cell("a", tuned=0.9), make_cell("b", tuned=0.9)]
    for cell, seconds in zip(cells, (5.0, 20.0), strict=True):
        cell.tuned["lora"] = {**cell.tuned["lp_ft"], "seconds": seconds}
    assert relative_costs(cells) == {"lora": 1.0, "lp_ft": 1.0}
