"""Distances from the source without the bias of few images: activations are drawn, so the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferkit.core.errors import OptionError
from transferkit.measure import ChannelMoments, Scale, channel_hellinger, fit_scale, measure_nearness
from transferkit.measure.nearness import remove_bias

CHANNELS = 40
POSITIONS = 9
SOURCE = ChannelMoments(np.zeros(CHANNELS), np.full(CHANNELS, 2.0))


def draw(
    images: int, *, seed: int = 0, shift: float = 0.0, stretch: float = 1.0, channels: int = CHANNELS
) -> np.ndarray:
    """Rows of images whose positions share half of their variance; like `SOURCE` unless shifted or stretched."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(images, channels, 1)) + rng.normal(size=(images, channels, POSITIONS))
    positions = shift + stretch * own
    return np.concatenate([positions.mean(axis=2), (positions**2).mean(axis=2)], axis=1)


def plain(rows: np.ndarray) -> float:
    """The distance that takes the sample's moments for the true ones."""
    mean, square = np.split(rows.mean(axis=0), 2)
    return channel_hellinger(SOURCE, ChannelMoments(mean, square - mean**2))


@pytest.mark.parametrize("images", [10, 50, 200])
def test_images_of_the_source_itself_are_at_distance_zero_whatever_their_number(images):
    draws = [draw(images, seed=seed) for seed in range(40)]
    found = np.array([measure_nearness({"top": SOURCE}, {"top": rows}).distance for rows in draws])
    chance = found.std() / np.sqrt(len(found))
    assert abs(found.mean()) < 4 * chance
    assert np.mean([plain(rows) for rows in draws]) > 10 * chance


def test_the_distance_does_not_drift_with_the_number_of_images():
    few = [measure_nearness({"top": SOURCE}, {"top": draw(20, seed=s, shift=0.5)}).distance for s in range(60)]
    truth = channel_hellinger(SOURCE, ChannelMoments(np.full(CHANNELS, 0.5), SOURCE.variance))
    assert np.mean(few) == pytest.approx(truth, abs=4 * np.std(few) / np.sqrt(60))
    many = measure_nearness({"top": SOURCE}, {"top": draw(5000, shift=0.5)})
    assert many.distance == pytest.approx(truth, abs=4 * many.error)


@pytest.mark.parametrize("images", [12, 60])
def test_the_stated_error_is_the_scatter_over_draws(images):
    found = [measure_nearness({"top": SOURCE}, {"top": draw(images, seed=s, shift=0.7)}) for s in range(80)]
    scatter = np.std([one.distance for one in found])
    assert np.sqrt(np.mean([one.error**2 for one in found])) == pytest.approx(scatter, rel=0.35)


@pytest.mark.parametrize("change", [{"shift": 0.4}, {"shift": -0.4}, {"stretch": 1.5}, {"stretch": 1 / 1.5}])
def test_the_farther_the_greater(change):
    ((name, value),) = change.items()
    steps = (
        [value * part for part in (0, 0.5, 1, 2, 4)] if name == "shift" else [value**part for part in (0, 0.5, 1, 2)]
    )
    found = [measure_nearness({"top": SOURCE}, {"top": draw(400, **{name: step})}) for step in steps]
    for measure in ("distance", "w2", "kl"):
        values = [getattr(one.stages[0], measure) for one in found]
        assert values == sorted(values), measure
    assert found[-1].distance > 20 * found[0].error


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(CHANNELS)))
def test_the_order_of_channels_does_not_matter(order):
    rows = draw(30, shift=0.3)
    scales = np.linspace(0.5, 2, CHANNELS)
    source = ChannelMoments(SOURCE.mean + 0.1 * scales, SOURCE.variance * scales)
    moved = ChannelMoments(source.mean[order], source.variance[order])
    columns = [*order, *(CHANNELS + np.array(order))]
    one = measure_nearness({"top": source}, {"top": rows})
    two = measure_nearness({"top": moved}, {"top": rows[:, columns]})
    assert (two.distance, two.error) == pytest.approx((one.distance, one.error))


def test_the_distance_of_several_stages_is_their_mean_and_its_error_knows_that_they_move_together():
    rows = draw(50, shift=0.5)
    alone = measure_nearness({"a": SOURCE}, {"a": rows})
    twice = measure_nearness({"a": SOURCE, "b": SOURCE}, {"a": rows, "b": rows, "c": rows})
    assert [stage.stage for stage in twice.stages] == ["a", "b"]
    assert (twice.distance, twice.error) == pytest.approx((alone.distance, alone.error))


def test_channels_that_are_constant_in_the_source_are_left_out():
    dead = ChannelMoments(np.append(SOURCE.mean, 0), np.append(SOURCE.variance, 1e-12))
    rows = draw(50, channels=CHANNELS + 1)
    living = np.delete(rows, [CHANNELS, 2 * CHANNELS + 1], axis=1)
    found = measure_nearness({"top": dead}, {"top": rows})
    assert found.stages[0].channels == CHANNELS
    expected = measure_nearness({"top": SOURCE}, {"top": living})
    assert (found.distance, found.error) == pytest.approx((expected.distance, expected.error))


def test_one_wild_channel_counts_for_no_more_than_its_share():
    tiny = ChannelMoments(SOURCE.mean, np.append(SOURCE.variance[:-1], 1e-4))
    wild, tame = (measure_nearness({"top": source}, {"top": draw(100)}) for source in (tiny, SOURCE))
    assert wild.distance - tame.distance < 1.1 / CHANNELS
    assert wild.stages[0].w2 == pytest.approx(tame.stages[0].w2, abs=0.01)


def test_two_samples_of_one_source_are_at_distance_zero():
    found = [measure_nearness({"top": draw(30, seed=s)}, {"top": draw(20, seed=1000 + s)}).distance for s in range(60)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(60)


def test_two_samples_come_to_what_known_moments_come_to():
    rows = draw(300, shift=0.5)
    known = measure_nearness({"top": SOURCE}, {"top": rows})
    sampled = measure_nearness({"top": draw(3000, seed=9)}, {"top": rows})
    assert sampled.distance == pytest.approx(known.distance, abs=4 * sampled.error)


def test_leaving_out_one_by_one_makes_the_variance_unbiased():
    # The identity that the jackknife was found by (Quenouille): of the plug-in variance it makes the one over n - 1.
    values = np.random.default_rng(0).normal(size=17)
    left_out = np.array([np.var(np.delete(values, i)) for i in range(17)])
    found, _ = remove_bias(np.array(np.var(values)), left_out, np.full(17, 1 / 17))
    assert found == pytest.approx(np.var(values, ddof=1))


def test_leaving_out_groups_of_a_mean_gives_its_standard_error():
    values = np.random.default_rng(0).normal(size=(600,))
    left_out = np.array([np.delete(values, np.arange(i, i + 6)).mean() for i in range(0, 600, 6)])
    found, variance = remove_bias(np.array(values.mean()), left_out, np.full(100, 0.01))
    assert found == pytest.approx(values.mean())
    assert variance == pytest.approx(np.var(values) / 600, rel=0.3)


@given(st.floats(1e-4, 0.5), st.floats(1.1, 50), st.floats(0, 1), st.floats(0, 1))
def test_a_scale_keeps_its_anchors_and_falls(near, ratio, one, other):
    scale = fit_scale(near, near * ratio)
    assert scale.similarity(near) == pytest.approx(0.75)
    assert scale.similarity(near * ratio) == pytest.approx(0.25)
    assert scale.similarity(0) == scale.similarity(-0.1) == 1
    low, high = sorted((one, other))
    assert 0 <= scale.similarity(high) <= scale.similarity(low) <= 1


def test_what_does_not_fit_is_said():
    with pytest.raises(OptionError, match="no stage in common"):
        measure_nearness({"a": SOURCE}, {"b": draw(5)})
    with pytest.raises(OptionError, match="no stage in common whose channels vary"):
        measure_nearness({"a": ChannelMoments(np.zeros(CHANNELS), np.zeros(CHANNELS))}, {"a": draw(5)})
    with pytest.raises(OptionError, match=r"one N >= 2 for all, got \(1, 80\)"):
        measure_nearness({"a": SOURCE}, {"a": draw(1)})
    with pytest.raises(OptionError, match=r"one N >= 2 for all, got \(4, 80\), \(5, 80\)"):
        measure_nearness({"a": SOURCE}, {"a": draw(4), "b": draw(5)})
    with pytest.raises(
        OptionError, match=r"40 channels in the source, so its rows must be twice as wide, got \(5, 6\)"
    ):
        measure_nearness({"a": SOURCE}, {"a": draw(5, channels=3)})
    with pytest.raises(OptionError, match="0 < near < far, got 0.2 and 0.1"):
        fit_scale(0.2, 0.1)
    with pytest.raises(OptionError, match="middle > 0 and steepness > 0"):
        Scale(0.0, 1.0)
