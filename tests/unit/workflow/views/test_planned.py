"""The views that are planned are those that are run."""

from __future__ import annotations

import pytest

from transferkit.data import open_data
from transferkit.records import Preprocessing
from transferkit.workflow.views import ask_views
from transferkit.workflow.views.planned import plan_views

OWN = Preprocessing(size=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop_pct=0.8)


@pytest.fixture(scope="module")
def digits():
    return open_data("builtin/digits", test=0.5)  # square pictures: squash, full and pad show the same


def named(asked, digits, *, pace=1e-4, budget=None):
    return [
        (one.name + "+mirror" * one.mirrored, one.is_used, one.is_certain)
        for one in plan_views(asked, OWN, digits, image_seconds=pace, budget=budget)
    ]


def test_auto_averages_what_is_affordable_and_perhaps_its_mirror_images(digits):
    plain = [("crop", True, True), ("squash", True, True), ("zoom", True, True), ("wide", True, True)]
    mirrored = [(f"{name}+mirror", True, False) for name, *_ in plain]
    assert named(ask_views(), digits) == plain + mirrored
    assert named(ask_views(), digits, pace=60 / (3.5 * len(digits)))[:4] == plain  # three further passes in 60 s
    assert named(ask_views(), digits, pace=60 / (2.5 * len(digits)))[:3] == plain[:3]
    assert named(ask_views(), digits, pace=1e3) == plain[:1]


def test_a_budget_gives_half_of_its_seconds(digits):
    pace = 1 / len(digits)
    assert named(ask_views(), digits, pace=pace, budget=4) == named(ask_views(), digits, pace=60 / (2.5 * len(digits)))


@pytest.mark.parametrize(
    ("geometry", "views", "run"),
    [
        ("zoom", 1, ["zoom"]),
        ("auto", "crop+zoom", ["crop", "zoom"]),
        ("auto", "crop+mirror", ["crop", "crop+mirror"]),
        ("auto", "crop+zoom+mirror", ["crop", "zoom", "crop+mirror", "zoom+mirror"]),
        ("auto", 1, ["crop", "full"]),
    ],
)
def test_what_is_asked_for_is_run(geometry, views, run, digits):
    found = named(ask_views(geometry, views), digits)
    assert [name for name, *_ in found] == run
    assert all(certain for *_, certain in found)


def test_without_views_there_is_one_pass(digits):
    assert named(None, digits) == [("crop", True, True)]
