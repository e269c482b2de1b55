"""Ranges, choices, random points, grids, narrowing, spaces from plain values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferkit.core.errors import OptionError
from transferkit.tuning.space import Choices, Range, draw_points, lay_grid, narrow, read_space

RATE = Range(low=1e-5, high=1e-1, log=True)

shares = st.floats(0, 1)
bounds = st.tuples(st.floats(1e-6, 1e6), st.floats(1.1, 1e6)).map(lambda pair: (pair[0], pair[0] * pair[1]))


@given(bounds, shares, st.booleans())
def test_a_value_lies_in_its_range_and_leads_back_to_its_share(ends, share, log):
    one = Range(low=ends[0], high=ends[1], log=log)
    value = one.at(share)
    assert one.low <= value <= one.high
    assert value == pytest.approx(one.at(one.share(value)), rel=2e-3)


def test_each_order_of_magnitude_is_equally_probable_on_a_log_scale():
    values = [point["lr"] for point in draw_points({"lr": RATE}, 4000, seed=0)]
    counts, _ = np.histogram(np.log10(values), bins=[-5, -4, -3, -2, -1])
    assert counts == pytest.approx([1000] * 4, abs=120)


def test_without_log_the_highest_tenth_gets_nine_of_ten():
    values = [point["lr"] for point in draw_points({"lr": Range(low=1e-5, high=1e-1)}, 1000, seed=0)]
    assert np.mean(np.array(values) > 1e-2) == pytest.approx(0.9, abs=0.04)


@pytest.mark.parametrize("log", [False, True])
def test_whole_numbers_reach_both_ends(log):
    values = [Range(low=1, high=4, log=log, whole=True).at(share) for share in np.linspace(0, 1, 1001)]
    assert set(values) == {1, 2, 3, 4}
    assert all(isinstance(value, int) for value in values)
    if not log:
        assert np.bincount(values)[1:] == pytest.approx([250] * 4, abs=2)


def test_a_coin_falls_on_both_sides():
    values = [point["flip"] for point in draw_points({"flip": Choices(values=(True, False))}, 1000, seed=3)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.05)


def test_a_point_does_not_depend_on_how_many_are_drawn_and_seeds_differ():
    space = {"lr": RATE, "schedule": Choices(values=("cosine", "linear"))}
    assert draw_points(space, 5, seed=1)[4] == draw_points(space, 1, seed=1, first=4)[0]
    assert draw_points(space, 5, seed=1) != draw_points(space, 5, seed=2)


def test_a_grid_has_at_most_the_asked_points_and_all_corners():
    space = {"a": RATE, "b": Range(low=0, high=1), "c": Choices(values=("x", "y"))}
    points = lay_grid(space, 50)
    assert len(points) == 2 * 5 * 5
    assert {"a": 1e-5, "b": 1.0, "c": "y"} in points
    assert len({tuple(point.values()) for point in points}) == 50


@given(st.lists(shares, min_size=1, max_size=4))
def test_a_narrowed_range_holds_the_points_it_was_made_from(found):
    values = [RATE.at(share) for share in found]
    part = RATE.around(values)
    assert RATE.low <= part.low < part.high <= RATE.high
    assert all(part.low <= value * 1.002 and value <= part.high * 1.002 for value in values)
    width = math.log(part.high / part.low) / math.log(RATE.high / RATE.low)
    assert width >= 0.3 - 1e-3


def test_narrowing_keeps_the_choices_that_did_well():
    space = {"lr": RATE, "schedule": Choices(values=("cosine", "linear", "constant"))}
    found = narrow(space, [{"lr": 1e-3, "schedule": "linear"}, {"lr": 2e-3, "schedule": "linear"}])
    assert found["schedule"] == Choices(values=("linear",))
    assert found["lr"].low > 1e-5
    assert found["lr"].high < 1e-1


def test_a_space_is_read_from_nested_plain_values():
    found = read_space(
        {"train": {"lr": {"low": 1e-4, "high": 0.1, "log": True}, "dropout": [0.0, 0.5]}, "unfreeze": None}
    )
    assert found == {"train.lr": Range(low=1e-4, high=0.1, log=True), "train.dropout": Choices(values=(0.0, 0.5))}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("own.yaml", "must give names their ranges.*--config-dir=DIR tune=NAME"),
        ({}, "It is empty; give it at least one name"),
        ({"train.lr": 0.1}, "train.lr: Expected a list of values, or low and high"),
        ({"train.lr": {"low": 0, "high": 1, "log": True}}, "train.lr: A range with log=true needs low > 0"),
        ({"train.lr": {"low": 2, "high": 1}}, "train.lr: A range needs finite bounds with low < high"),
        ({"train.lr": {"low": "1e-4", "high": 1}}, "YAML reads 1e-4 as text: write 1.0e-4"),
        ({"train.views": {"low": 0.5, "high": 3, "whole": True}}, "whole bounds"),
        ({"train.optimizer": []}, "A choice needs at least one value"),
        ({"train.optimizer": ["sgd", "sgd"]}, "The choice 'sgd' is there twice"),
        ({"a": 1, "b": 2}, "(?s)- a: .*- b: "),
    ],
)
def test_what_is_no_space_is_refused_with_the_reason(given, message):
    with pytest.raises(OptionError, match=message):
        read_space(given)
