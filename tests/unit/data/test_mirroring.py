"""Whether mirroring is found safe where it is, and unsafe where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferkit.core.errors import DataError
from transferkit.data import choose_flip, flip_is_safe


def rights(plain_only: int, mirrored_only: int, both: int, neither: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """So many images that are right only as they are, only mirrored, both ways, and neither way."""
    plain = np.repeat([True, False, True, False], [plain_only, mirrored_only, both, neither])
    mirrored = np.repeat([False, True, True, False], [plain_only, mirrored_only, both, neither])
    return plain, mirrored


@pytest.mark.parametrize(
    ("counts", "safe"),
    [
        ((0, 0, 45), True),
        ((0, 0, 44), False),  # too few to show anything
        ((0, 0, 0), False),
        ((75, 14, 190, 21), False),  # scikit-learn's digits
        ((2, 6, 277, 15), True),  # tiles of photos
        ((10, 5, 239, 46), True),  # clothes
        ((0, 0, 140, 160), False),  # a classifier that knows nothing
        ((0, 30, 240, 30), True),  # mirrored ones are even better
    ],
)
def test_mirroring_is_safe_if_it_demonstrably_costs_little(counts, safe):
    assert flip_is_safe(*rights(*counts)) is safe


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 300), st.integers(0, 40))
def test_one_more_loss_never_makes_it_safe(plain_only, mirrored_only, both, neither):
    before = flip_is_safe(*rights(plain_only, mirrored_only, both + 1, neither))
    after = flip_is_safe(*rights(plain_only + 1, mirrored_only, both, neither))
    assert before or not after


def test_what_costs_as_much_as_is_tolerated_is_seldom_found_safe():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(1000):
        plain = np.ones(200, dtype=bool)
        found += flip_is_safe(plain, rng.random(200) >= 0.05)
    assert found <= 65  # 5 % of 1000, and two standard deviations


def test_two_letters_among_sixty_are_enough_to_forbid_it():
    labels = np.repeat(np.arange(60), 20)
    plain = np.ones(1200, dtype=bool)
    mirrored = labels >= 2
    assert flip_is_safe(plain, mirrored)
    assert not flip_is_safe(plain, mirrored, labels=labels)


def test_classes_that_change_by_chance_do_not_forbid_it():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 60)
    safe = 0
    for _ in range(100):
        plain, mirrored = rng.random((2, 600)) > 0.03
        safe += flip_is_safe(plain, mirrored, labels=labels)
    assert safe >= 95


def test_lengths_that_differ_are_an_error():
    with pytest.raises(DataError, match=r"Expected equal shapes, got \(3,\) and \(4,\)"):
        flip_is_safe(np.ones(3, dtype=bool), np.ones(4, dtype=bool))


@pytest.mark.parametrize("safe", [None, False, True])
def test_what_was_asked_for_goes_before_what_was_measured(safe):
    assert choose_flip(True, safe=safe) is True
    assert choose_flip(False, safe=safe) is False
    assert choose_flip(None, safe=safe) is bool(safe)
