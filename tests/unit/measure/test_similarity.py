from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from transferkit.core.errors import OptionError
from transferkit.measure.similarity import (
    ChannelMoments,
    channel_hellinger,
    class_mean_similarity,
    emd_of_class_means,
    frechet_distance,
    kl_by_channel,
    mmd,
    proxy_a_distance,
    w2_by_channel,
)

SAMPLE_DISTANCES = [frechet_distance, mmd, proxy_a_distance]


def mean_w2(source, target):
    return float(np.mean(w2_by_channel(source, target)))


def mean_kl(source, target):
    return float(np.mean(kl_by_channel(source, target)))


MOMENT_DISTANCES = [mean_w2, mean_kl, channel_hellinger]


def draw(seed: int, rows: int = 200, width: int = 4, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return shift + scale * np.random.default_rng(seed).normal(size=(rows, width))


def moments_of(sample: np.ndarray) -> ChannelMoments:
    return ChannelMoments(sample.mean(axis=0), sample.var(axis=0))


@pytest.mark.parametrize("distance", MOMENT_DISTANCES)
def test_equal_moments_are_at_no_distance_and_shifts_order(distance):
    source = moments_of(draw(0, width=8))
    assert distance(source, source) == pytest.approx(0, abs=1e-12)
    for moved in ("mean", "variance"):
        steps = [
            ChannelMoments(
                source.mean + (step if moved == "mean" else 0),
                source.variance * (1 + step if moved == "variance" else 1),
            )
            for step in (0.1, 0.3, 1.0, 3.0)
        ]
        found = [distance(source, target) for target in steps]
        assert found == sorted(found)
        assert found[0] > 0


def test_kl_by_channel_is_the_integral_it_stands_for():
    source, target = stats.norm(0.3, 1.2), stats.norm(-0.5, 0.7)
    by_quadrature, _ = integrate.quad(lambda x: target.pdf(x) * (target.logpdf(x) - source.logpdf(x)), -12, 12)
    as_moments = [ChannelMoments(np.array([side.mean()]), np.array([side.var()])) for side in (source, target)]
    assert mean_kl(*as_moments) == pytest.approx(by_quadrature, rel=1e-3)


def test_w2_by_channel_is_the_mean_squared_gap_of_sorted_samples():
    # In one dimension optimal transport pairs the quantiles.
    shares = (np.arange(20_000) + 0.5) / 20_000
    source, target = stats.norm(1, 2), stats.norm(0, 0.5)
    paired = np.mean((source.ppf(shares) - target.ppf(shares)) ** 2) / source.var()
    as_moments = [ChannelMoments(np.array([side.mean()]), np.array([side.var()])) for side in (source, target)]
    assert mean_w2(*as_moments) == pytest.approx(paired, rel=1e-2)


def test_channel_hellinger_is_half_the_integral_of_the_squared_gap_of_roots():
    source, target = stats.norm(1, 2), stats.norm(-0.5, 0.7)

    def gap(x: float) -> float:
        return 0.5 * (np.sqrt(source.pdf(x)) - np.sqrt(target.pdf(x))) ** 2

    by_quadrature, _ = integrate.quad(gap, -30, 30, limit=200)
    as_moments = [ChannelMoments(np.array([side.mean()]), np.array([side.var()])) for side in (source, target)]
    assert channel_hellinger(*as_moments) == pytest.approx(by_quadrature, rel=1e-3)
    assert channel_hellinger(*reversed(as_moments)) == pytest.approx(channel_hellinger(*as_moments))


def test_channel_hellinger_stays_within_its_range_for_a_channel_that_never_varied():
    constant, varied = (
        ChannelMoments(np.array([at]), np.array([variance])) for at, variance in ((0.0, 0.0), (9.0, 4.0))
    )
    assert 0.9 < channel_hellinger(constant, varied) <= 1


@pytest.mark.parametrize("n", [50, 200, 1000])
def test_w2_by_channel_of_the_source_itself_is_its_stated_null(n):
    source = ChannelMoments(np.zeros(4000), np.ones(4000))
    found = mean_w2(source, moments_of(draw(n, rows=n, width=4000)))
    assert found == pytest.approx(1.5 / n, rel=0.1)


@pytest.mark.parametrize("distance", SAMPLE_DISTANCES)
def test_samples_farther_apart_are_at_a_greater_distance(distance):
    source = draw(0)
    found = [distance(source, draw(1, shift=shift)) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert found == sorted(found)
    assert found[-1] > 2 * max(found[0], 0.01)


@pytest.mark.parametrize("distance", SAMPLE_DISTANCES)
def test_the_two_sides_are_alike(distance):
    first, second = draw(0, rows=60), draw(1, rows=90, shift=1)
    assert distance(first, second) == pytest.approx(distance(second, first), abs=0.05)


def test_frechet_distance_of_known_gaussians():
    # Commuting covariances: |shift|^2 + sum (s1 - s2)^2.
    first = draw(2, rows=100_000, width=2) * [1, 2]
    second = draw(3, rows=100_000, width=2, shift=1) * [3, 1]
    assert frechet_distance(first, second) == pytest.approx((3**2 + 1**2) + (2**2 + 1**2), rel=0.02)


@pytest.mark.parametrize(("rows", "more"), [(30, 40), (4, 40), (4, 5)])
def test_frechet_distance_against_the_square_root_of_the_product_of_covariances(rows, more):
    first, second = draw(0, rows=rows, width=6), draw(1, rows=more, width=6, shift=1, scale=2)
    one, two = np.cov(first.T), np.cov(second.T)
    root = np.sqrt(np.maximum(np.real(np.linalg.eigvals(one @ two)), 0)).sum()
    shift = first.mean(axis=0) - second.mean(axis=0)
    expected = shift @ shift + np.trace(one + two) - 2 * root
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_copes_with_fewer_rows_than_columns():
    assert np.isfinite(frechet_distance(draw(0, rows=5, width=20), draw(1, rows=6, width=20)))


def test_mmd_is_unbiased_whatever_the_sample_size():
    for rows in (10, 40):
        found = [mmd(draw(2 * i, rows=rows), draw(2 * i + 1, rows=rows), bandwidth=2.0) for i in range(200)]
        assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(200)


def test_mmd_against_sums_over_pairs():
    first, second = draw(0, rows=4), draw(1, rows=3)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / (2 * 1.5**2)))

    within = [
        np.mean([kernel(side[i], side[j]) for i in range(len(side)) for j in range(len(side)) if i != j])
        for side in (first, second)
    ]
    across = np.mean([kernel(a, b) for a in first for b in second])
    assert mmd(first, second, bandwidth=1.5) == pytest.approx(sum(within) - 2 * across)


def test_proxy_a_distance_spans_its_range():
    assert proxy_a_distance(draw(0), draw(1, shift=20)) == 2.0
    assert proxy_a_distance(draw(0, rows=500), draw(1, rows=500)) < 0.3


def classes(seed: int, means: np.ndarray, each: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """`each` rows around every mean, whose average is exactly that mean."""
    noise = np.random.default_rng(seed).normal(size=(len(means), each, means.shape[1]))
    rows = means[:, None] + noise - noise.mean(axis=1, keepdims=True)
    return rows.reshape(-1, means.shape[1]), np.repeat(np.arange(len(means)), each)


def test_emd_of_balanced_classes_is_the_best_assignment():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(7, 3)), rng.normal(size=(7, 3))
    cost = np.linalg.norm(one[:, None] - two[None], axis=2)
    expected = cost[optimize.linear_sum_assignment(cost)].mean()
    assert emd_of_class_means(*classes(1, one), *classes(2, two)) == pytest.approx(expected)


def test_emd_is_the_gap_of_quantiles_on_a_line_whatever_the_weights():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 5, 60), rng.integers(0, 3, 40)
    one, two = first[:, None] * 1.7, second[:, None] * -2.0 + 1
    expected = stats.wasserstein_distance(one.ravel(), two.ravel())
    assert emd_of_class_means(one, first, two, second) == pytest.approx(expected)


@given(st.floats(-5, 5))
def test_emd_of_a_moved_set_is_the_way_it_moved(step):
    rows, labels = classes(0, np.random.default_rng(1).normal(size=(4, 3)))
    assert emd_of_class_means(rows, labels, rows + step, labels + 9) == pytest.approx(abs(step) * 3**0.5, abs=1e-6)


def test_class_mean_similarity_is_one_at_no_distance_and_falls():
    assert class_mean_similarity(0.0) == 1
    assert class_mean_similarity(100.0) == pytest.approx(np.exp(-1))


def test_shapes_that_do_not_fit_are_said():
    with pytest.raises(OptionError, match="Every row needs a label, got 3 for 200 rows and 200 for 200"):
        emd_of_class_means(draw(0), np.zeros(3, dtype=int), draw(1), np.zeros(200, dtype=int))
    with pytest.raises(OptionError, match=r"Expected \(N, D\) and \(M, D\), got \(200, 4\) and \(200, 3\)"):
        mmd(draw(0), draw(1, width=3))
    with pytest.raises(OptionError, match="at least 2 rows, got 1 and 200"):
        frechet_distance(draw(0, rows=1), draw(1))
    with pytest.raises(OptionError, match="bandwidth must be > 0"):
        mmd(draw(0), draw(1), bandwidth=-1)
    with pytest.raises(OptionError, match="same channels, got 4 and 3"):
        mean_w2(moments_of(draw(0)), moments_of(draw(0, width=3)))
    with pytest.raises(OptionError, match="Variances must be >= 0"):
        ChannelMoments(np.zeros(1), np.array([-1.0]))
    with pytest.raises(OptionError, match=r"two \(C,\) arrays"):
        ChannelMoments(np.zeros(1), np.zeros(2))
