"""Weights of an ensemble: what is useless gets none, and the estimate is honest."""

from __future__ import annotations

import numpy as np
import pytest

from transferkit.core.errors import OptionError
from transferkit.ensemble import weigh_members


def draw(members: int, images: int, *, signal: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, images)
    return signal * np.eye(3)[labels] + rng.normal(size=(members, images, 3)), labels


def test_independent_members_share_the_weight_and_win():
    logits, labels = draw(4, 2_000, signal=1.0)
    weighed = weigh_members(logits, labels)
    shares = weighed.weights / weighed.weights.sum()
    np.testing.assert_allclose(shares, 0.25, atol=0.06)
    singles = (logits.argmax(axis=2) == labels).mean(axis=1)
    assert weighed.accuracy > singles.max() + 0.1
    # The best weights for independent noise of variance 1 are `signal` each.
    np.testing.assert_allclose(weighed.weights, 1.0, atol=0.2)


def test_a_useless_member_gets_nothing():
    logits, labels = draw(2, 1_000, signal=2.0)
    noise = 5 * np.random.default_rng(1).normal(size=logits[:1].shape)
    assert weigh_members(np.concatenate([logits, noise]), labels).weights[2] == 0


def test_the_estimate_does_not_grow_with_useless_members():
    """Of 60 members that guess, the best 20 look good on the images that chose them; held back they do not."""
    logits, labels = draw(60, 90, signal=0.0)
    weighed = weigh_members(logits, labels)
    seen = (np.tensordot(weighed.weights, logits, axes=1).argmax(axis=1) == labels).mean()
    assert seen > 0.5
    assert weighed.accuracy < 0.45


def test_one_member_is_only_scaled():
    logits, labels = draw(1, 500, signal=1.5)
    weighed = weigh_members(logits, labels)
    assert weighed.kept == 1
    assert weighed.accuracy == (logits[0].argmax(axis=1) == labels).mean()


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (4, 3), (2, 5, 3)])
def test_shapes_that_do_not_fit_are_refused(shape):
    with pytest.raises(OptionError, match=r"\(P, M, K\) logits and M labels"):
        weigh_members(np.zeros(shape), np.zeros(4 if 0 not in shape else shape[1], dtype=np.int64))
