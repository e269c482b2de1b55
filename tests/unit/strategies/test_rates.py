"""The arithmetic of rates, and patterns that mean one stage."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferkit.core.errors import OptionError
from transferkit.strategies.rates import decayed_rates, exactly, stage_rules

names = st.text(alphabet="ab01.*?[]!-", min_size=1, max_size=6)


@given(name=names, other=names)
def test_an_exact_pattern_fits_its_own_name_and_no_other(name, other):
    assert fnmatchcase(name, exactly(name))
    assert fnmatchcase(other, exactly(name)) == (other == name)


@given(count=st.integers(1, 13), lr=st.floats(1e-6, 1), decay=st.floats(0.1, 1))
def test_neighbours_differ_by_the_decay_and_the_last_has_the_rate(count, lr, decay):
    stages = [f"stage{number}" for number in range(count)]
    rates = decayed_rates(stages, lr=lr, decay=decay)
    assert list(rates) == stages
    assert rates[stages[-1]] == lr
    for lower, upper in pairwise(stages):
        assert rates[lower] == pytest.approx(decay * rates[upper])


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.5, float("nan")])
def test_a_decay_that_grows_or_stops_is_an_error(decay):
    with pytest.raises(OptionError, match=r"decay must be in \(0, 1\]"):
        decayed_rates(["top"], lr=1.0, decay=decay)


def test_nothing_is_left_over_for_a_rest_that_is_not_there():
    assert [str(rule) for rule in stage_rules({"a": 1.0, "b": 2.0}, ["a", "b"], head=3.0)] == ["head", "b", "a"]
    assert [str(rule) for rule in stage_rules({"b": 2.0}, ["a", "b"], head=3.0)] == ["head", "b", "*"]
