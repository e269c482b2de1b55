"""Axes: round ends around all values, readable ticks, positions by construction."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferkit.core.errors import OptionError
from transferkit.report.charts.axes import Axis, class_axis, count_axis, log_axis, share_axis, value_axis


def texts(axis: Axis) -> list[str]:
    return [tick.text for tick in axis.ticks]


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([0.61, 0.975], 0.6, 1.0),
        ([0.0, 1.0], 0.0, 1.0),
        ([0.6, 0.6], 0.59, 0.6),
        ([0.0], 0.0, 0.01),
        ([1.0], 0.99, 1.0),
    ],
)
def test_an_axis_of_shares_holds_all_values_between_round_ends(values, low, high):
    axis = share_axis(values)
    assert (axis.low, axis.high) == (pytest.approx(low), pytest.approx(high))
    assert axis.place(low) == 0
    assert axis.place(high) == 100
    assert 2 <= len(axis.ticks) <= 6
    assert axis.grid == tuple(tick.at for tick in axis.ticks)


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=9))
def test_an_axis_of_values_has_round_ends_around_all_of_them(values):
    axis = value_axis(values)
    slack = 1e-6 * max(map(abs, values)) + 1e-12
    assert axis.low <= min(values) + slack
    assert max(values) - slack <= axis.high
    assert [tick.at for tick in axis.ticks] == sorted({tick.at for tick in axis.ticks})


def test_values_that_differ_by_a_rounding_error_are_drawn_as_equal():
    axis = value_axis([1e12, math.nextafter(1e12, math.inf)])
    assert axis.low < axis.high


@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=9))
def test_a_log_axis_has_round_ends_around_all_values_and_few_ticks(values):
    axis = log_axis(values)
    assert axis.low <= min(values) * (1 + 1e-8)
    assert max(values) * (1 - 1e-8) <= axis.high
    for end in (axis.low, axis.high):
        assert f"{end:e}"[0] in "125"
    assert 1 <= len(axis.ticks) <= 6
    assert [tick.at for tick in axis.ticks] == sorted({tick.at for tick in axis.ticks})


def test_equal_ratios_are_equal_distances_on_a_log_axis():
    axis = log_axis([0.001, 10])
    assert [axis.place(value) for value in (0.001, 0.01, 0.1, 1, 10)] == [0, 25, 50, 75, 100]
    assert texts(axis) == ["0.001", "0.01", "0.1", "1", "10"]
    assert texts(log_axis([20, 5000])) == ["50", "100", "500", "1,000", "5,000"]
    assert texts(log_axis([1e-9, 1])) == ["1e-09", "1e-07", "1e-05", "0.001", "0.1"]
    assert axis.place(-1) == axis.place(0) == 0  # an error bar may reach below 0


def test_a_log_axis_marks_the_given_ticks_and_ends_at_them():
    axis = log_axis([20, 40, 1258], ticks=[40, 20, 1258])
    assert (axis.low, axis.high) == (20, 1258)
    assert texts(axis) == ["20", "40", "1,258"]
    assert axis.grid == ()


@pytest.mark.parametrize("values", [[0.0, 1.0], [-1.0], [1.0, math.inf], [math.nan]])
def test_a_log_axis_refuses_what_has_no_logarithm(values):
    with pytest.raises(OptionError, match="A log axis needs finite values above 0"):
        log_axis(values)


def test_numbers_that_are_counted_have_equal_slots():
    axis = count_axis(1, 4)
    assert [axis.place(n) for n in (1, 2, 3, 4)] == [12.5, 37.5, 62.5, 87.5]
    assert texts(axis) == ["1", "2", "3", "4"]
    assert texts(count_axis(1, 60)) == ["10", "20", "30", "40", "50", "60"]


def test_classes_have_slots_and_lines_between_them():
    names = ["cat", "Chesapeake Bay retriever"]
    along, down = class_axis(names), class_axis(names, downwards=True)
    assert [tick.at for tick in along.ticks] == [25, 75]
    assert [tick.at for tick in down.ticks] == [75, 25]
    assert along.grid == (0, 50, 100)
    assert [tick.full for tick in along.ticks] == names
    assert len(along.ticks[1].text) == 16


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.0, math.nan), (-math.inf, 0.0)])
def test_an_axis_needs_two_different_finite_ends(low, high):
    with pytest.raises(OptionError, match="two different finite ends"):
        Axis(low=low, high=high, ticks=())


def test_a_log_axis_cannot_end_at_zero():
    with pytest.raises(OptionError, match="A log axis needs ends above 0, got 0 and 1"):
        Axis(low=0, high=1, ticks=(), kind="log")
