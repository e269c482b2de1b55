"""The benchmark's calibration and its judging of promises, where the truth is known by construction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from regret.calibrating import Outcome, fit_calibration
from regret.carrying_over import compare_similarities, share_of_faster
from regret.cells import without_family
from regret.paths import CELLS, MODEL, folder_of
from regret.policies import constants_of
from regret.promises import AFTER_TUNING, BEFORE_PROBE, Promise, by_size, promises_of

from tests.unit.scripts.test_bench_regret import CELLS as TOYS
from tests.unit.scripts.test_bench_regret import make_cell
from transferkit.decision import Calibration, GainModel
from transferkit.decision.calibration import smoothed_spread

HONEST = GainModel(coefficients={}, spread={})


def outcomes(optimism: float, task_error: float, *, tasks: int = 300, images: int = 200, per_class: float = 20.0):
    """Held-back accuracies that are too high by so many spreads, on tasks that differ by so many."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(tasks):
        accuracy = rng.uniform(0.4, 0.9)
        spread = smoothed_spread(accuracy, images)
        error = spread * np.hypot(1 / np.sqrt(images), task_error / per_class**0.25)
        truth = accuracy - optimism * spread + rng.normal(0, error)
        found.append(
            Outcome(
                kind="network", task=str(number), family=str(number // 3), accuracy=accuracy, images=images,
                per_class=per_class, truth=truth, error=1e-6,
            )
        )  # fmt: skip
    return found


@pytest.mark.parametrize(("optimism", "task_error"), [(0.1, 0.3), (0.0, 0.0), (-0.05, 0.15)])
def test_calibration_finds_optimism_and_task_error_again(optimism, task_error):
    found = fit_calibration(outcomes(optimism, task_error))
    assert found.optimism == pytest.approx(optimism, abs=0.03)
    assert found.task_error == pytest.approx(task_error, abs=0.08)
    assert found.widening <= 1.15  # the errors are normal, so their own width covers


def test_intervals_are_widened_until_they_cover_what_is_not_normal():
    usual = outcomes(0.0, 0.1)
    wild = [
        Outcome(**{**vars(one), "truth": one.truth + (0.25 if number % 12 == 0 else 0.0)})
        for number, one in enumerate(usual)
    ]
    assert fit_calibration(wild).widening > fit_calibration(usual).widening


def promise(expected: float, test: float, *, half: float = 0.05, error: float = 0.0, per_class: float = 5) -> Promise:
    return Promise(
        said="x", task="a", model="toy", per_class=per_class, expected=expected, low=expected - half,
        high=expected + half, test=test, error=error,
    )  # fmt: skip


def test_a_promise_is_kept_if_its_interval_and_the_tests_error_together_cover_the_miss():
    assert promise(0.9, 0.851).is_kept
    assert not promise(0.9, 0.849).is_kept
    assert promise(0.9, 0.849, error=0.01).is_kept  # hypot(0.05, 0.0196) is 0.054
    assert not promise(0.9, 0.8, error=0.01).is_kept
    assert not promise(0.8, 0.9).is_kept


def test_promises_are_summed_up_by_images_per_class():
    found = by_size([promise(0.9, 0.8), promise(0.8, 0.8), promise(0.7, 0.8, per_class=100)])
    assert found["all"]["promises"] == 3
    assert found["all"]["expected less test, points"] == 0
    assert found["5"]["expected less test, points"] == 5
    assert (found["5"]["covered"], found["80 or more"]["covered"]) == (0.5, 0.0)


def test_a_cells_promises_are_those_of_the_package():
    said = {one.said: one for one in promises_of(make_cell("a", tuned=0.9), HONEST)}
    assert (said[BEFORE_PROBE].expected, said[BEFORE_PROBE].test) == (pytest.approx(0.8), 0.8)
    assert said[AFTER_TUNING].expected == pytest.approx(0.9)  # held back as on the test
    doubting = GainModel(coefficients={}, spread={}, calibration={"network": Calibration(optimism=0.1)})
    lowered = {one.said: one for one in promises_of(make_cell("a", tuned=0.9), doubting)}
    assert lowered[AFTER_TUNING].expected < said[AFTER_TUNING].expected
    assert lowered[BEFORE_PROBE] == said[BEFORE_PROBE]


def test_cells_of_other_backbones_have_a_folder_each():
    assert folder_of(MODEL) == CELLS
    assert folder_of("resnet50_half") == CELLS / "resnet50_half"
    assert folder_of("timm/resnet18.a1_in1k") == CELLS / "resnet18.a1_in1k"
    assert folder_of("torchvision/resnet50:IMAGENET1K_V2") == CELLS / "resnet50_IMAGENET1K_V2"


def test_what_is_constant_over_backbones_is_what_all_of_them_have():
    other = make_cell("b", tuned=0.9)
    renamed = {name.replace("stem", "conv1"): found for name, found in other.strategies.items()}
    other = type(other)(**{**vars(other), "strategies": renamed, "model": "other"})
    assert set(constants_of([*TOYS, other])) == {"top ridge", "joined ridge", "selected ridge", "lp_ft"}
    assert "stem ridge" in constants_of(TOYS)
    assert {cell.task for cell in without_family([*TOYS, other], "b")} == {"a", "a_noise", "c"}


def test_similarities_and_rates_are_compared_task_by_task():
    def cells(similarities):
        found = [make_cell(name, tuned=0.9) for name in "abc"]
        return [
            replace(cell, evidence=replace(cell.evidence, similarity=similarity))
            for cell, similarity in zip(found, similarities, strict=True)
        ]

    here, there = cells([0.1, 0.2, 0.6]), cells([0.3, 0.5, 0.4])
    found = compare_similarities(here, there)
    assert (found["tasks"], found["mean here"], found["mean on the others"]) == (3, 0.3, 0.4)
    assert found["rank correlation"] == 0.5
    assert compare_similarities(here[:2], there)["rank correlation"] is None
    assert compare_similarities(cells([None] * 3), there)["tasks"] == 0
    for cell, factor in zip(here, (3.0, 3.0, 1.0), strict=True):
        cell.tuned["lp_ft"]["lr_factor"] = factor
    assert share_of_faster(here) == {"lp_ft": 0.67}
