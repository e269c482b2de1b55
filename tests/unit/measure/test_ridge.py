"""The closed form against what it claims to equal: refits, scikit-learn, and itself after changes that do not count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from sklearn.linear_model import Ridge, RidgeClassifier

from tests.unit.measure.problems import (
    OneByOne,
    chunked,
    make_problem,
    refit_without_each,
    refit_without_sets,
    scaled,
)
from transferkit.measure import ridge
from transferkit.measure.ridge import PENALTIES, fit_ridge, principal_coordinates, ridge_paths
from transferkit.records import Folds

SHAPES = {"dual": (24, (20, 16)), "primal": (40, (5, 4)), "streamed": (70, (9, 7))}


TOLERANCE = np.where(PENALTIES < 1e-2, 0.05, 2e-3)
"""Single precision: where a fit passes almost through every image, 1 - leverage has few digits left."""


def same_errors(actual, expected):
    return bool((np.abs(actual - expected) <= TOLERANCE * expected).all())


HELD_BACK = {"one by one": OneByOne, "one of each class": Folds}
"""How images are left out where classes are large, and where they are small, as they are here."""


def arrange(how: str, features, labels):
    """Features, labels and folds, images that are left out together side by side."""
    folds = HELD_BACK[how].alone(labels)
    return features[folds.order], labels[folds.order], folds.take(folds.order)


def route(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the shapes above take the route that they are named after."""
    if name == "streamed":
        monkeypatch.setattr(ridge, "MAX_RANK", 16)


@pytest.mark.parametrize("name", SHAPES)
def test_features_are_read_once_more_where_they_fit_in_memory_and_several_times_where_they_are_streamed(
    name, monkeypatch
):
    """Once to scale them; the others tell that the shapes take the routes that they are named after."""
    route(name, monkeypatch)
    images, widths = SHAPES[name]
    features, labels, blocks = make_problem(0, images=images, widths=widths)
    features, labels, folds = arrange("one of each class", features, labels)
    passes = []

    def chunks():
        passes.append(name)
        return chunked(features, 11)()

    for fit in (ridge_paths, fit_ridge):
        passes.clear()
        fit(chunks, labels, blocks, classes=3, folds=folds)
        assert (len(passes) > 2) == (name == "streamed")
    assert (images <= sum(widths)) == (name == "dual")


def balanced(labels):
    return 1 / np.bincount(labels)[labels]


@pytest.mark.parametrize("how", HELD_BACK)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_leaving_out_equals_refitting_without_each_set(name, weighted, how, monkeypatch):
    route(name, monkeypatch)
    images, widths = SHAPES[name]
    features, labels, blocks = make_problem(1, images=images, widths=widths)
    features, labels, folds = arrange(how, features, labels)
    weights = balanced(labels) if weighted else np.ones(images)
    weights = weights / weights.mean()
    given = weights if weighted else None
    paths = ridge_paths(chunked(features, 11), labels, blocks, classes=3, weights=given, folds=folds)
    assert list(paths) == ["s0", "s1", "joined"]
    for stage, path in paths.items():
        own = blocks if stage == "joined" else {stage: blocks[stage]}
        columns = np.concatenate([np.arange(block.start, block.stop) for block in own.values()])
        known = scaled(features, blocks, weights)[:, columns]
        for p in (0, 4, 6, 10):
            scores = refit_without_sets(known, labels, folds.together, 3, PENALTIES[p], weights)
            error = weights @ ((scores - np.eye(3)[labels]) ** 2).sum(axis=1) / images
            assert path.squared_error[p] == pytest.approx(error, rel=TOLERANCE[p]), (stage, PENALTIES[p])
            assert path.accuracy[p] == pytest.approx((scores.argmax(axis=1) == labels).mean())


@pytest.mark.parametrize("how", HELD_BACK)
@pytest.mark.parametrize("name", SHAPES)
def test_held_back_scores_of_the_fit_equal_refits(name, how, monkeypatch):
    route(name, monkeypatch)
    images, widths = SHAPES[name]
    features, labels, blocks = make_problem(2, images=images, widths=widths)
    features, labels, folds = arrange(how, features, labels)
    fit = fit_ridge(chunked(features, 13), labels, blocks, classes=3, folds=folds)
    known = scaled(features, blocks)
    expected = refit_without_sets(known, labels, folds.together, 3, fit.penalty, np.ones(images))
    np.testing.assert_allclose(fit.held_back, expected, atol=2e-3)


@pytest.mark.parametrize("how", HELD_BACK)
@pytest.mark.parametrize("name", SHAPES)
def test_fit_chooses_the_penalty_that_the_joined_path_prefers(name, how, monkeypatch):
    route(name, monkeypatch)
    images, widths = SHAPES[name]
    features, labels, blocks = make_problem(3, images=images, widths=widths)
    features, labels, folds = arrange(how, features, labels)
    path = ridge_paths(chunked(features, 13), labels, blocks, classes=3, folds=folds)["joined"]
    fit = fit_ridge(chunked(features, 13), labels, blocks, classes=3, folds=folds)
    np.testing.assert_allclose(fit.path.squared_error, path.squared_error, rtol=1e-4)
    assert fit.penalty == PENALTIES[np.argmin(path.squared_error)]
    assert path.best == np.argmin(path.squared_error)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_fit_equals_scikit_learns_ridge(name, weighted, monkeypatch):
    route(name, monkeypatch)
    images, widths = SHAPES[name]
    features, labels, blocks = make_problem(4, images=images, widths=widths)
    features, labels, folds = arrange("one of each class", features, labels)
    weights = balanced(labels) / balanced(labels).mean() if weighted else np.ones(images)
    given = weights if weighted else None
    fit = fit_ridge(chunked(features, 17), labels, blocks, classes=3, weights=given, folds=folds)
    known = scaled(features, blocks, weights)
    model = Ridge(alpha=fit.penalty).fit(known, np.eye(3)[labels], sample_weight=weights)
    scores = features @ fit.weight.T + fit.bias
    np.testing.assert_allclose(scores, model.predict(known), atol=2e-4)
    if not weighted:
        classifier = RidgeClassifier(alpha=fit.penalty).fit(known, labels)  # targets of -1 and 1: the same answers
        assert (scores.argmax(axis=1) == classifier.predict(known)).mean() == 1


def test_two_classes_equal_scikit_learns_classifier():
    features, labels, blocks = make_problem(5, images=30, widths=(8,), classes=2)
    fit = fit_ridge(chunked(features, 30), labels, blocks, classes=2)
    model = RidgeClassifier(alpha=fit.penalty).fit(scaled(features, blocks), labels)
    scores = features @ fit.weight.T + fit.bias
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-4)
    np.testing.assert_allclose(
        scores[:, 1] - scores[:, 0], model.decision_function(scaled(features, blocks)), atol=1e-4
    )


@pytest.mark.parametrize("how", HELD_BACK)
def test_streaming_with_enough_rank_equals_the_route_in_memory(how, monkeypatch):
    features, labels, blocks = make_problem(6, images=90, widths=(9, 7), classes=4)
    features, labels, folds = arrange(how, features, labels)
    weights = balanced(labels)
    chunks = chunked(features, 16)
    in_memory = ridge_paths(chunks, labels, blocks, classes=4, weights=weights, folds=folds)
    head = fit_ridge(chunks, labels, blocks, classes=4, weights=weights, folds=folds)
    coordinates = principal_coordinates(chunks, 90, blocks)
    monkeypatch.setattr(ridge, "MAX_RANK", 16)
    streamed = ridge_paths(chunks, labels, blocks, classes=4, weights=weights, folds=folds)
    for stage, path in in_memory.items():
        np.testing.assert_allclose(streamed[stage].squared_error, path.squared_error, rtol=1e-4)
        np.testing.assert_array_equal(streamed[stage].accuracy, path.accuracy)
    again = fit_ridge(chunks, labels, blocks, classes=4, weights=weights, folds=folds)
    np.testing.assert_allclose(again.weight, head.weight, atol=1e-4 * np.abs(head.weight).max())
    np.testing.assert_allclose(again.held_back, head.held_back, atol=1e-4)
    other = principal_coordinates(chunks, 90, blocks)
    np.testing.assert_allclose(pdist(other.values), pdist(coordinates.values), rtol=1e-4)


@pytest.mark.parametrize("how", HELD_BACK)
def test_streaming_with_less_rank_keeps_each_stage_exact_and_the_joined_one_near(how, monkeypatch):
    features, labels, blocks = make_problem(7, images=120, widths=(12, 10))
    features, labels, folds = arrange(how, features, labels)
    exact = ridge_paths(chunked(features, 50), labels, blocks, classes=3, folds=folds)
    monkeypatch.setattr(ridge, "MAX_RANK", 14)
    near = ridge_paths(chunked(features, 50), labels, blocks, classes=3, folds=folds)
    for stage in ("s0", "s1"):
        np.testing.assert_allclose(near[stage].squared_error, exact[stage].squared_error, rtol=1e-4)
    assert near["joined"].squared_error.min() == pytest.approx(exact["joined"].squared_error.min(), rel=0.3)
    fit = fit_ridge(chunked(features, 50), labels, blocks, classes=3, folds=folds)
    np.testing.assert_allclose(fit.path.squared_error, near["joined"].squared_error, rtol=1e-4)
    # The weights handed out do what the leave-one-out scores were measured for: both see the leading directions only.
    known = principal_coordinates(chunked(features, 50), 120, blocks)
    assert known.values.shape == (120, 14)
    model = Ridge(alpha=fit.penalty).fit(known.values, np.eye(3)[labels])
    np.testing.assert_allclose(features @ fit.weight.T + fit.bias, model.predict(known.values), atol=1e-3)


def errors_of(features, labels, blocks, *, folds=None, classes=3, weights=None, size=1000):
    paths = ridge_paths(chunked(features, size), labels, blocks, classes=classes, weights=weights, folds=folds)
    return np.array([path.squared_error for path in paths.values()])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), name=st.sampled_from(["dual", "primal"]), how=st.sampled_from([*HELD_BACK]))
def test_order_of_images_does_not_matter(seed, name, how):
    images, widths = SHAPES[name]
    features, labels, blocks = make_problem(seed, images=images, widths=widths)
    order = np.random.default_rng(seed).permutation(images)
    folds = HELD_BACK[how].alone(labels)
    expected = errors_of(features, labels, blocks, folds=folds)
    assert same_errors(errors_of(features[order], labels[order], blocks, folds=folds.take(order)), expected)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    name=st.sampled_from(["dual", "primal"]),
    shift=st.floats(-20, 20),
    factor=st.floats(1e-3, 1e3),
    how=st.sampled_from([*HELD_BACK]),
)
def test_offset_and_unit_of_features_do_not_matter(seed, name, shift, factor, how):
    images, widths = SHAPES[name]
    features, labels, blocks = make_problem(seed, images=images, widths=widths)
    changed = (factor * (features + np.float32(shift))).astype(np.float32)
    folds = HELD_BACK[how].alone(labels)
    expected = errors_of(features, labels, blocks, folds=folds)
    assert same_errors(errors_of(changed, labels, blocks, folds=folds), expected)


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 80), streamed=st.booleans(), how=st.sampled_from([*HELD_BACK]))
def test_size_of_chunks_does_not_matter(size, streamed, how):
    images, widths = SHAPES["streamed"]
    features, labels, blocks = make_problem(8, images=images, widths=widths)
    features, labels, folds = arrange(how, features, labels)
    with pytest.MonkeyPatch.context() as patch:
        if streamed:
            patch.setattr(ridge, "MAX_RANK", 16)
        expected = errors_of(features, labels, blocks, folds=folds)
        assert same_errors(errors_of(features, labels, blocks, folds=folds, size=size), expected)


def test_scale_of_weights_does_not_matter():
    features, labels, blocks = make_problem(9, images=40, widths=(5, 4))
    once = errors_of(features, labels, blocks, weights=balanced(labels))
    np.testing.assert_allclose(errors_of(features, labels, blocks, weights=1e4 * balanced(labels)), once, rtol=1e-5)
    equal = errors_of(features, labels, blocks, weights=np.full(40, 3.0))
    np.testing.assert_allclose(equal, errors_of(features, labels, blocks), rtol=1e-6)


def test_an_image_of_weight_two_counts_as_two_images_in_the_fit():
    features, labels, blocks = make_problem(10, images=40, widths=(5, 4))
    twice = np.append(np.arange(40), 0)
    weights = np.where(np.arange(40) == 0, 2.0, 1.0)
    one = fit_ridge(chunked(features, 9), labels, blocks, classes=3, weights=weights)
    # Weights are scaled to mean 1, which scales the squared error against the penalty by 40 / 41.
    model = Ridge(alpha=one.penalty * 41 / 40)
    known = scaled(features, blocks, weights)
    model.fit(known[twice], np.eye(3)[labels[twice]])
    np.testing.assert_allclose(features @ one.weight.T + one.bias, model.predict(known), atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(value=st.floats(-1e4, 1e4, width=32), images=st.integers(12, 40), size=st.integers(1, 40))
def test_constant_features_change_nothing_and_get_no_weight(value, images, size):
    features, labels, blocks = make_problem(11, images=images, widths=(6,))
    constant = np.full((images, 2), value, dtype=np.float32)
    wider = np.concatenate([features, constant], axis=1)
    expected = errors_of(features, labels, blocks)[0]
    assert same_errors(errors_of(wider, labels, {"s0": slice(0, 8)}, size=size)[0], expected)
    fit = fit_ridge(chunked(wider, size), labels, {"s0": slice(0, 8)}, classes=3)
    assert np.abs(fit.weight[:, 6:]).max() == 0
    assert np.isfinite(fit.bias).all()


@settings(max_examples=25, deadline=None)
@given(value=st.floats(-1e4, 1e4, width=32), images=st.integers(12, 40), size=st.integers(1, 40))
def test_stage_that_is_constant_throughout_knows_the_class_shares_only(value, images, size):
    features, labels, blocks = make_problem(12, images=images, widths=(6,))
    wider = np.concatenate([features, np.full((images, 3), value, dtype=np.float32)], axis=1)
    alone = OneByOne.alone(labels)
    paths = ridge_paths(chunked(wider, size), labels, {**blocks, "dead": slice(6, 9)}, classes=3, folds=alone)
    counts = np.bincount(labels)
    shares = (counts[None, :] - np.eye(3)[labels]) / (images - 1)  # of the others
    error = ((shares - np.eye(3)[labels]) ** 2).sum(axis=1).mean()
    np.testing.assert_allclose(paths["dead"].squared_error, error, rtol=1e-4)
    assert same_errors(paths["joined"].squared_error, paths["s0"].squared_error)


def test_a_stage_given_twice_is_the_stage_at_half_the_penalty():
    features, labels, blocks = make_problem(13, images=24, widths=(30,))
    twice = np.concatenate([features, features], axis=1)
    fit = fit_ridge(chunked(twice, 24), labels, {**blocks, "again": slice(30, 60)}, classes=3)
    model = Ridge(alpha=fit.penalty / 2).fit(scaled(features, blocks), np.eye(3)[labels])
    np.testing.assert_allclose(twice @ fit.weight.T + fit.bias, model.predict(scaled(features, blocks)), atol=1e-4)
    np.testing.assert_allclose(fit.weight[:, :30], fit.weight[:, 30:], atol=1e-6 * np.abs(fit.weight).max())


def test_the_only_image_of_a_class_does_not_count():
    features, labels, blocks = make_problem(14, images=30, widths=(5,))
    labels = np.where(labels == 2, 1, labels)
    labels[7] = 2
    expected = refit_without_each(scaled(features, blocks), labels, 3, 1.0, np.ones(30))
    alone = OneByOne.alone(labels)
    fit = fit_ridge(chunked(features, 30), labels, blocks, classes=3, folds=alone)
    assert np.isfinite(fit.held_back).all()
    assert fit.held_back[7, 2] == pytest.approx(0, abs=1e-4)  # a target that no other image has
    path = ridge_paths(chunked(features, 30), labels, blocks, classes=3, folds=alone)["s0"]
    others = np.arange(30) != 7
    np.testing.assert_array_equal(path.counting, others)
    assert path.accuracy[6] == pytest.approx((expected.argmax(axis=1) == labels)[others].mean())


def test_class_without_images_is_never_answered():
    features, labels, blocks = make_problem(15, images=30, widths=(5,), classes=2)
    fit = fit_ridge(chunked(features, 30), labels, blocks, classes=3)
    assert np.abs(fit.weight[2]).max() == 0
    assert fit.bias[2] == 0


def test_a_feature_that_hardly_varied_in_training_does_not_decide_about_a_new_image():
    rng = np.random.default_rng(21)
    labels = np.arange(60) % 2
    features = rng.normal(size=(60, 20)).astype(np.float32)
    features[:, 0] += 3 * labels
    features[:, 1] = 1e-3 * (rng.normal(size=60) + labels)
    fit = fit_ridge(chunked(features, 60), labels, {"s": slice(0, 20)}, classes=2)
    new = features[labels == 1].mean(axis=0)
    before = new @ fit.weight.T + fit.bias
    new[1] -= 0.1  # a hundred deviations, and a tenth of what the others vary by
    after = new @ fit.weight.T + fit.bias
    assert before.argmax() == after.argmax() == 1
    assert np.abs(after - before).max() < 0.1 * np.ptp(before)


def test_features_that_tell_the_class_are_read_perfectly():
    labels = np.repeat([0, 1, 2], 10)
    features = np.eye(3, dtype=np.float32)[labels] * 5 + 100
    paths = ridge_paths(chunked(features, 7), labels, {"s": slice(0, 3)}, classes=3)
    assert paths["s"].accuracy[paths["s"].best] == 1
    assert paths["s"].squared_error.min() < 1e-3


def test_random_labels_are_not_read_better_than_chance():
    rng = np.random.default_rng(16)
    features, labels = rng.normal(size=(400, 300)).astype(np.float32), np.arange(400) % 4
    path = ridge_paths(chunked(features, 64), labels, {"s": slice(0, 300)}, classes=4)["s"]
    # 5 standard deviations of a share of 400; a fit to the images themselves would be near 1.
    assert path.accuracy.max() < 0.25 + 5 * np.sqrt(0.25 * 0.75 / 400)


def test_single_precision_suffices_with_many_images():
    features, labels, blocks = make_problem(17, images=1500, widths=(60, 40))
    path = ridge_paths(chunked(features, 200), labels, blocks, classes=3)["joined"]
    known = scaled(features, blocks)
    values, vectors = np.linalg.eigh(known.T @ known)
    projected = known @ vectors
    targets = np.eye(3)[labels] - np.bincount(labels) / 1500
    for p, penalty in enumerate(PENALTIES):
        residual = targets - projected @ ((projected.T @ targets) / (values[:, None] + penalty))
        leverage = (projected**2 / (values + penalty)).sum(axis=1) + 1 / 1500
        error = ((residual / (1 - leverage)[:, None]) ** 2).sum(axis=1).mean()
        assert path.squared_error[p] == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_principal_coordinates_keep_all_distances(name, monkeypatch):
    route(name, monkeypatch)
    images, widths = SHAPES[name]
    features, _, blocks = make_problem(18, images=images, widths=widths)
    coordinates = principal_coordinates(chunked(features, 10), images, blocks)
    assert coordinates.values.shape[1] <= min(images, sum(widths))
    np.testing.assert_allclose(pdist(coordinates.values), pdist(scaled(features, blocks)), rtol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_classifier_on_coordinates_scores_the_same_on_raw_features(name, monkeypatch):
    route(name, monkeypatch)
    images, widths = SHAPES[name]
    features, labels, blocks = make_problem(19, images=images, widths=widths)
    coordinates = principal_coordinates(chunked(features, 10), images, blocks)
    # A fitted classifier lies in the span of the images; a random one need not.
    model = Ridge(alpha=0.1).fit(coordinates.values, np.eye(3)[labels])
    weight, bias = coordinates.to_raw(model.coef_, model.intercept_)
    assert weight.shape == (3, sum(widths))
    np.testing.assert_allclose(features @ weight.T + bias, model.predict(coordinates.values), atol=1e-3)


def test_principal_coordinates_of_equal_images_are_nothing():
    features = np.ones((6, 9), dtype=np.float32)
    found = principal_coordinates(lambda: [features], 6, {"a": slice(0, 9)})
    assert not found.values.any()
    assert not found.basis.any()
