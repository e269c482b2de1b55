"""Learning curves extrapolated: against curves whose continuation is known."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transferkit.core.errors import DataError, OptionError
from transferkit.measure.curve_families import FAMILIES, CurvePrior
from transferkit.measure.data_need import fitted_images, forecast_curve, measure_data_need
from transferkit.records import CurvePoint, DataNeed, Folds, Forecast, WantedAccuracy

SIZES = (20, 40, 80, 160, 320)


def curve(error, *, sizes=SIZES, noise=0.0, stage="joined", seed=0):
    """Points of a curve whose error at n images is error(n)."""
    rng = np.random.default_rng(seed)
    deviation = max(noise, 0.002)
    values = [float(np.clip(1 - error(n) + noise * rng.normal(), 0, 1)) for n in sizes]
    return [CurvePoint(stage=stage, images=n, accuracy=v, error=deviation) for n, v in zip(sizes, values, strict=True)]


def power(n):
    return 0.02 + 1.5 * n**-0.5


def sigmoid(n):
    return 0.05 + 0.7 / (1 + (n / 60) ** 1.2)


def weibull(n):
    return 0.03 + 0.8 * math.exp(-((n / 100) ** 0.6))


# A sigmoid with a floor gives no sign of it before it flattens.
@pytest.mark.parametrize(("error", "slack"), [(power, 0.005), (sigmoid, 0.03), (weibull, 0.005)])
def test_a_clean_curve_is_continued(error, slack):
    found = forecast_curve(curve(error))
    for n in (20, 160, 320, 640, 1280):
        middle, low, high = found.accuracy_at(n)
        assert low <= middle <= high
        assert middle == pytest.approx(1 - error(n), abs=0.02 if n <= 640 else 0.04)
        assert low - slack <= 1 - error(n) <= high + slack
    assert found.problem == ""


@pytest.mark.parametrize("error", [power, sigmoid, weibull])
def test_the_images_for_an_accuracy_are_those_where_the_curve_reaches_it(error):
    found = forecast_curve(curve(error))
    middle, low, high = found.images_for(1 - error(600))
    assert 0.9 * low <= 600 <= 1.1 * high
    assert 0.6 < middle / 600 < 1.7


def test_accuracy_and_images_are_inverse_to_each_other():
    found = forecast_curve(curve(power))
    for n in (100, 1000):
        (accuracy,) = found.accuracy_at(n, (0.5,))
        (images,) = found.images_for(accuracy, (0.5,))
        assert images == pytest.approx(n, rel=0.1)


@pytest.mark.parametrize("factor", [0.85, 1.0, 1.05])
def test_a_curve_on_the_probit_scale_is_found_again(factor):
    def accuracy(n):
        doublings = math.log2(n / 320)
        gain = doublings if factor == 1 else (factor**doublings - 1) / math.log(factor)
        return NormalDist().cdf(0.8 + 0.25 * gain)

    found = forecast_curve(curve(lambda n: 1 - accuracy(n)), families=("probit",))
    for n in (40, 320, 1280, 2560):
        assert found.accuracy_at(n)[0] == pytest.approx(accuracy(n), abs=0.015)
    assert found.images_for(accuracy(1280))[0] == pytest.approx(1280, rel=0.3)


def test_few_noisy_points_are_continued_as_curves_usually_go():
    steep, flat = (
        forecast_curve(
            curve(power, sizes=(20, 40, 80), noise=0.06),
            families=("probit",),
            prior=CurvePrior(slope=slope, slope_deviation=0.02, factor=0.94, factor_deviation=0.05),
        )
        for slope in (0.5, 0.05)
    )
    assert steep.gain(80, 640)[0] > 2 * flat.gain(80, 640)[0]


def test_an_error_that_all_points_share_widens_the_level_more_than_the_gain():
    few, many = (
        forecast_curve([replace(point, error=error if point.images == 320 else 0.002) for point in curve(power)])
        for error in (0.03, 0.003)
    )

    def width(found, of):
        _, low, high = found.gain(320, 640) if of == "gain" else found.accuracy_at(320)
        return high - low

    assert width(few, "level") > 3 * width(many, "level")
    assert width(few, "gain") < width(few, "level")


def test_accuracies_beyond_the_asymptote_are_never_reached_and_below_the_first_point_take_one_image():
    found = forecast_curve(curve(lambda n: 0.1 + 4 * n**-1.5, sizes=(*SIZES, 640, 1280)))
    assert found.images_for(1.0) == (math.inf, math.inf, math.inf)
    assert found.images_for(0.0)[0] == 1.0


def test_a_curve_that_has_levelled_off_is_not_promised_more():
    found = forecast_curve(curve(lambda n: 0.1 + 4 * n**-1.5, sizes=(*SIZES, 640, 1280)))
    _gain, low, high = found.gain(1280, 12800)
    assert low >= 0
    assert high < 0.025
    assert found.images_for(0.95)[0] == math.inf


def test_noise_widens_the_interval():
    widths = []
    for noise in (0.0, 0.02):
        _, low, high = forecast_curve(curve(power, noise=noise)).accuracy_at(5000)
        widths.append(high - low)
    assert widths[1] > 1.5 * widths[0]


def test_farther_is_less_certain():
    found = forecast_curve(curve(power))
    widths = [high - low for _, low, high in (found.accuracy_at(n) for n in (320, 1280, 12800))]
    assert widths == sorted(widths)


def test_the_interval_covers_what_it_says():
    inside = 0
    for seed in range(60):
        exponent = np.random.default_rng(seed).uniform(0.3, 0.9)

        def error(n, exponent=exponent):
            return 0.01 + 2 * n**-exponent / 20 ** (0.5 - exponent)

        _, low, high = forecast_curve(curve(error, noise=0.008, seed=seed)).accuracy_at(1280)
        inside += low <= 1 - error(1280) <= high
    assert inside >= 0.7 * 60


def test_a_falling_curve_is_declared_not_well_behaved():
    points = curve(lambda n: 0.2 + 0.0005 * n)
    found = forecast_curve(points)
    assert "not well behaved" in found.problem
    assert "It is not extrapolated" in found.problem
    assert np.isfinite(found.accuracy_at(640)).all()


def test_a_peak_is_declared_not_well_behaved():
    points = curve(lambda n: 0.3 if n == 80 else power(n))
    assert "not well behaved" in forecast_curve(points).problem


def test_a_step_that_no_family_describes_names_those_that_were_tried():
    points = curve(lambda n: 0.6 if n < 100 else 0.1)
    assert "none of 4 families of curves (probit, pow4, mmf4, wbl4) describes" in forecast_curve(points).problem
    assert "no curve of family pow4 describes" in forecast_curve(points, families=("pow4",)).problem


def pow4(n):
    return 0.005 + 0.6 * (1 + n / 120) ** -0.9


def mmf4(n):
    return 0.005 + 0.6 / (1 + (n / 150) ** 1.1)


def wbl4(n):
    return 0.005 + 0.6 * math.exp(-((n / 200) ** 0.5))


FINE = tuple(20 * 2**i for i in range(7))


@pytest.mark.parametrize("error", [pow4, mmf4, wbl4])
def test_each_family_finds_its_own_curves_again(error):
    known = [replace(point, error=1e-6) for point in curve(error, sizes=FINE)]
    found = forecast_curve(known, families=(error.__name__,))
    for n in (20, 160, 1280, 2560):
        assert found.accuracy_at(n)[0] == pytest.approx(1 - error(n), abs=0.006)
    middle, low, high = found.images_for(1 - error(2560))
    assert 0.97 * low <= 2560 <= 1.03 * high
    assert middle == pytest.approx(2560, rel=0.15)
    assert found.problem == ""


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_alone_has_all_of_the_posterior_and_its_curves_rise(name):
    found = forecast_curve(curve(power), families=(name,))
    assert found.shares == {name: pytest.approx(1.0)}
    middles = [found.accuracy_at(n)[0] for n in (20, 80, 320, 1280, 10**6)]
    assert middles == sorted(middles)
    assert found.images_for(0.0) == (1.0, 1.0, 1.0)
    (images,) = found.images_for(found.accuracy_at(640)[0], (0.5,))
    assert images == pytest.approx(640, rel=0.02)


def test_the_mixture_weighs_families_by_how_well_they_explain_the_points():
    def step(n):
        return 0.1 + 0.7 / (1 + (n / 150) ** 2.5)

    shares = forecast_curve(curve(step, sizes=FINE)).shares
    assert list(shares) == list(FAMILIES)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["mmf4"] > 0.5 > 0.1 > shares["probit"]
    straight = forecast_curve(curve(lambda n: NormalDist().cdf(0.5 - 0.25 * math.log2(n / 20)), sizes=FINE)).shares
    assert max(straight, key=straight.get) == "probit"


def test_the_mixture_lies_between_its_families_and_names_given_twice_count_once():
    points = curve(power, noise=0.01)
    alone = [forecast_curve(points, families=(name,)).accuracy_at(2560)[0] for name in FAMILIES]
    assert min(alone) <= forecast_curve(points).accuracy_at(2560)[0] <= max(alone)
    assert forecast_curve(points, families=("pow4", "pow4")).shares == {"pow4": pytest.approx(1.0)}
    assert forecast_curve(points, families="pow4").shares == {"pow4": pytest.approx(1.0)}


@pytest.mark.parametrize("families", [("probit", "pow3"), ["POW4"], "pow", (3,)])
def test_an_unknown_family_is_refused_with_the_closest(families):
    with pytest.raises(OptionError, match=r"Unknown family of learning curves .*(Closest known: pow4|Known: mmf4)"):
        forecast_curve(curve(power), families=families)


def test_no_family_is_refused():
    with pytest.raises(OptionError, match="one or more of probit, pow4, mmf4, wbl4, got none"):
        forecast_curve(curve(power), families=())


def test_noise_alone_is_not_a_fault():
    faults = [forecast_curve(curve(power, noise=0.01, seed=seed)).problem for seed in range(20)]
    assert sum(map(bool, faults)) <= 1


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_constant_curves_are_extrapolated_as_constants(accuracy):
    found = forecast_curve(curve(lambda n: 1 - accuracy))
    assert found.accuracy_at(640)[0] == pytest.approx(accuracy, abs=0.02)


def test_order_and_ties_do_not_matter():
    points = curve(power)
    assert forecast_curve(points[::-1]).accuracy_at(999) == forecast_curve(points).accuracy_at(999)
    twice = [*points, CurvePoint(stage="joined", images=320, accuracy=points[-1].accuracy, error=0.002)]
    assert forecast_curve(twice).accuracy_at(640)[0] == pytest.approx(
        forecast_curve(points).accuracy_at(640)[0], abs=0.01
    )


def test_too_few_points_are_refused_and_answered_with_nothing():
    with pytest.raises(DataError, match="3 or more different numbers of images, got 2"):
        forecast_curve(curve(power)[:2])
    assert measure_data_need(curve(power)[:2], stage="joined") is None
    assert measure_data_need(curve(power), stage="top") is None


def test_anything_but_points_is_refused():
    with pytest.raises(DataError, match=r"of class CurvePoint, got \(50, 0.6\)"):
        forecast_curve([(50, 0.6), (100, 0.7), (200, 0.8)])


@pytest.mark.parametrize("images", [0, -1, math.nan, math.inf])
def test_a_number_of_images_is_positive(images):
    for ask in (lambda found: found.accuracy_at(images), lambda found: found.gain(100, images)):
        with pytest.raises(OptionError, match="finite and > 0"):
            ask(forecast_curve(curve(power)))


@pytest.mark.parametrize("quantile", [0.0, 1.0, math.nan])
def test_quantiles_are_inside_of_0_and_1(quantile):
    with pytest.raises(OptionError, match=r"in \(0, 1\)"):
        forecast_curve(curve(power)).accuracy_at(100, (quantile,))


@pytest.mark.parametrize("deviations", [(0.0, 0.1), (0.1, -1.0), (0.1, math.nan)])
def test_a_prior_checks_itself(deviations):
    with pytest.raises(OptionError, match="finite deviations > 0"):
        CurvePrior(slope=0.2, slope_deviation=deviations[0], factor=0.9, factor_deviation=deviations[1])


def test_scalars_of_numpy_and_torch_are_numbers():
    sizes, values = [50, 100, 200, 400], [0.6, 0.7, 0.78, 0.83]
    plain, *others = (
        forecast_curve(
            [
                CurvePoint(stage="a", images=n, accuracy=a, error=make(0.01))
                for n, a in zip(sizes, map(make, values), strict=True)
            ]
        ).accuracy_at(800)
        for make in (float, np.float64, torch.tensor)
    )
    for other in others:
        assert other == pytest.approx(plain, abs=1e-4)


def test_points_of_two_stages_are_refused():
    with pytest.raises(DataError, match="of one stage"):
        forecast_curve([*curve(power), *curve(power, stage="top")])


@pytest.mark.parametrize("accuracy", [-0.1, 1.1, math.nan])
def test_an_accuracy_is_a_share(accuracy):
    with pytest.raises(OptionError, match=r"in \[0, 1\]"):
        forecast_curve(curve(power)).images_for(accuracy)


def test_the_answer_has_the_next_accuracies_and_multiples_of_today():
    need = measure_data_need([*curve(power), *curve(sigmoid, stage="top")], stage="joined")
    assert [one.images for one in need.forecasts] == [640, 1280]
    assert [one.accuracy for one in need.wanted] == [0.95, 0.98]
    assert need.images == 320
    assert need.problem == ""
    gains = [one.gain for one in need.forecasts]
    assert gains == sorted(gains)
    assert need.sentences[0].startswith("With 640 images, 2 times as many: +")


def test_the_words_say_what_cannot_be_reached():
    none = WantedAccuracy(accuracy=0.99, images=None, low=5000, high=None)
    never = WantedAccuracy(accuracy=0.995, images=None, low=None, high=None)
    need = DataNeed(stage="joined", images=100, forecasts=(), wanted=(none, never), problem="It is bent.")
    assert need.sentences == (
        "It is bent.",
        "99 % accuracy is unlikely to be reached by more images alone; with luck 5,000 images do.",
        "99.5 % accuracy is unlikely to be reached by more images alone.",
    )


def test_records_check_themselves():
    with pytest.raises(OptionError, match="must lie in its interval"):
        WantedAccuracy(accuracy=0.9, images=10, low=20, high=30)
    with pytest.raises(OptionError, match="gain must lie in its interval"):
        Forecast(images=10, accuracy=0.9, gain=0.5, gain_low=0.6, gain_high=0.7)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=4, max_size=8),
    st.floats(0, 0.05),
    st.integers(2, 40),
)
def test_any_curve_gets_an_answer_inside_its_bounds(accuracies, error, first):
    points = [
        CurvePoint(stage="joined", images=first * 2**i, accuracy=value, error=error)
        for i, value in enumerate(accuracies)
    ]
    found = forecast_curve(points)
    middle, low, high = found.accuracy_at(10**6)
    assert 0 <= low <= middle <= high <= 1
    images, least, most = found.images_for(0.9)
    assert 1 <= least <= images <= most
    assert measure_data_need(points, stage="joined") is not None


def test_the_last_point_counts_the_images_that_were_fitted():
    folds = Folds.alone(np.arange(320) % 20)  # one of each class is left out together
    kept = fitted_images(curve(power), folds)
    assert [point.images for point in kept] == [20, 40, 80, 160, 300]
    assert [point.accuracy for point in kept] == [point.accuracy for point in curve(power)]
    many = Folds.alone(np.arange(320) % 2)  # large classes: each image alone
    assert fitted_images(curve(power), many)[-1].images == 319
    few = curve(power, sizes=(20, 40, 80, 315, 320))
    assert [point.images for point in fitted_images(few, folds)] == [20, 40, 80, 315, 316]
