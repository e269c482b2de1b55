"""Held-back scores check themselves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from transferkit.core.errors import OptionError
from transferkit.records import HeldBackScores

LOGITS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
GOOD = {"labels": np.array([0, 2, 1, 1]), "logits": LOGITS, "rows": np.arange(4)}


def test_probabilities_are_a_softmax_and_rows_can_be_taken():
    scores = HeldBackScores(**GOOD)
    np.testing.assert_allclose(scores.probabilities, softmax(LOGITS, axis=1), rtol=1e-6)
    part = scores.take(np.array([3, 0]))
    assert (len(part), part.rows.tolist(), part.labels.tolist()) == (2, [3, 0], [1, 0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": np.array([0, 1])}, "needs M labels"),
        ({"rows": np.arange(5)}, "and M rows"),
        ({"logits": LOGITS[0]}, r"\(M, K\) logits"),
        ({"logits": np.where(LOGITS > 0, np.nan, LOGITS)}, "must be finite"),
        ({"labels": np.array([0, 3, 1, 1])}, r"must be in \[0, 3\)"),
        ({"labels": np.array([0, -1, 1, 1])}, r"must be in \[0, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message):
    with pytest.raises(OptionError, match=message):
        HeldBackScores(**(GOOD | wrong))
