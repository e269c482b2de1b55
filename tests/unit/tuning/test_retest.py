"""Whether stored settings still hold, without training."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from transferkit.core.errors import OptionError
from transferkit.core.serialization import from_json, to_json
from transferkit.records import Alternative, DataSummary, Decision, Retest, RetestedSettings
from transferkit.tuning.retest import compare_paired
from transferkit.tuning.search_options import TuneOptions
from transferkit.tuning.style import choose_style

DATA = DataSummary(origin="x", classes=("cat", "dog"), counts={"train": (30, 30)}, split_rule="")


def settings(name, accuracy, **more):
    given = {"name": name, "strategy": "lp_ft", "values": {}, "accuracy": accuracy, "log_loss": 0.5, **more}
    return RetestedSettings(**given)


def retest(*tested, **more):
    return Retest(**{"data": DATA, "backbone": "net", "changes": (), "tested": tested, "images": 60, **more})


STORED = settings("stored best", 0.9, accuracy_then=0.92)


def test_a_difference_within_chance_leaves_the_stored_best():
    found = retest(STORED, settings("advised", 0.92, gain=0.02, low=-0.01, high=0.05))
    assert not found.is_stale
    assert found.chosen is STORED
    assert found.sentences == (
        "Nothing has changed since the search: images and backbone are the same.",
        "The stored settings still hold (90.0 % held back (60 images), 92.0 % then; the best of the others, advised, "
        "is +2.0 points beside it (-1.0 to +5.0)).",
    )


def test_a_difference_beyond_chance_is_stale():
    found = retest(
        STORED,
        settings("stored 2", 0.93, gain=0.03, low=-0.01, high=0.07),
        settings("advised", 0.923, gain=0.023, low=0.004, high=0.041),
        changes=("The backbone is b, it was a.",),
    )
    assert found.is_stale
    assert found.chosen.name == "advised"
    changed, said = found.sentences
    assert changed == "The backbone is b, it was a."
    assert said.startswith(
        "Intuition has gone stale: advised is now +2.3 points better than the stored best (+0.4 to +4.1; 90.0 % held "
    )
    assert said.endswith("Search again, with another tune.study or out.")
    assert from_json(Retest, to_json(found)) == found


def test_a_stored_best_that_fails_gives_way_to_the_best_of_the_others():
    failed = settings("stored best", None, log_loss=None, error="No stage 'x'.")
    found = retest(failed, settings("stored 2", 0.8), settings("advised", 0.85))
    assert found.is_stale
    assert found.chosen.name == "advised"
    assert "cannot be used any more (No stage 'x'" in found.sentences[1]
    nothing = retest(failed, settings("advised", None, error="No memory."))
    assert nothing.is_stale
    assert "None of the stored settings can be used any more" in nothing.sentences[1]


def test_a_retest_needs_settings():
    with pytest.raises(OptionError, match="must hold the stored best"):
        retest()


@given(st.integers(0, 2**32), st.integers(20, 200), st.integers(1, 4))
def test_the_paired_gain_is_the_difference_of_accuracies_and_its_interval_is_antisymmetric(seed, images, comparisons):
    rng = np.random.default_rng(seed)
    one, two = rng.random((2, images)) < 0.7
    gain, low, high = compare_paired(one, two, comparisons=comparisons)
    assert gain == pytest.approx(two.mean() - one.mean())
    assert low <= gain <= high
    back = compare_paired(two, one, comparisons=comparisons)
    assert back == pytest.approx((-gain, -high, -low))
    assert high - low >= np.diff(compare_paired(one, two)[1:])[0] - 1e-12


def test_beyond_chance_is_about_what_mcnemar_says():
    for more, expected in ((20, True), (5, False)):
        one = np.array([False] * more + [True] * 3 + [True] * 77)
        two = np.array([True] * more + [False] * 3 + [True] * 77)
        assert (compare_paired(one, two)[1] > 0) is expected
        assert bool(binomtest(more, more + 3).pvalue < 0.05) is expected


def decision(cost):
    expected = None if cost is None else Alternative(
        strategy="lp_ft", stage="top", expected_accuracy=0.9, low=0.8, high=1.0, cost_seconds=cost
    )  # fmt: skip
    return Decision(strategy="lp_ft", stage="top", mode="given", reasons=("x",), expected=expected, lr=1e-3,
                    lr_scale=0.1, norm="keep")  # fmt: skip


@pytest.mark.parametrize(
    ("options", "cost", "style", "said"),
    [
        ({"seconds": 600.0}, 12.0, "caviar", "style: caviar, as 50 trainings of 12 s fit into 600 s on "),
        ({"seconds": 60.0}, 12.0, "panda", "style: panda, as only 5 trainings of 12 s fit into 60 s on "),
        ({"seconds": 12.0}, 12.0, "panda", "style: panda, as only 1 training of 12 s fit into 12 s on "),
        ({}, 12.0, "caviar", "style: caviar, as a training takes about 12 s on "),
        ({}, 7200.0, "panda", "style: panda, as a training takes about 7200 s on "),
        ({"seconds": 60.0}, None, "caviar", "it is not known how long a training takes"),
        ({"seconds": 60.0, "trials": 9}, 12.0, "caviar", ""),
        ({"seconds": 60.0, "sampler": "tpe"}, 12.0, "caviar", ""),
        ({"seconds": 60.0, "workers": 2}, 12.0, "caviar", ""),
        ({"style": "panda"}, 1.0, "panda", ""),
        ({"style": "caviar", "seconds": 1.0}, 12.0, "caviar", ""),
    ],
)
def test_the_style_follows_from_what_fits_into_the_time(options, cost, style, said):
    found, why = choose_style(TuneOptions(**options), decision(cost))
    assert found == style
    assert why.startswith(said) if said.startswith("style") else said in why


def test_a_study_is_gone_on_with():
    assert choose_style(TuneOptions(seconds=1.0), decision(12.0), continues=True) == ("caviar", "")


def test_a_linear_probe_is_not_babysat():
    with pytest.raises(OptionError, match="a linear probe is solved for"):
        choose_style(TuneOptions(style="panda", strategy="linear_probe"), decision(1.0))
