"""Groups, copies and lone classes in every estimate: against refits, and at chance where labels are drawn at random."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.measure.problems import OneByOne, chunked, make_problem, refit_without_sets, scaled
from transferkit.core.errors import DataError
from transferkit.measure import (
    fit_logistic,
    fit_ridge,
    knn_accuracy,
    learning_curves,
    ridge,
    ridge_paths,
    select_features,
)
from transferkit.records import Folds

CLASSES = 3
WHOLE = {"a": slice(0, 60), "b": slice(60, 100)}


def grouped(seed, *, groups=40, each=6, spread=0.05, width=100):
    """Random labels per group, images of a group nearly alike: nothing can be learnt that serves a new group."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(groups), each)
    labels = rng.integers(0, CLASSES, groups)
    labels[: 2 * CLASSES] = np.repeat(np.arange(CLASSES), 2)
    features = rng.normal(size=(groups, width))[of] + spread * rng.normal(size=(groups * each, width))
    shuffled = rng.permutation(groups * each)
    return features[shuffled].astype(np.float32), Folds(labels[of][shuffled], of[shuffled], np.arange(groups * each))


def ordered(features, folds):
    return features[folds.order], folds.take(folds.order)


def best(path):
    return float(path.accuracy[path.best])


def estimates(features, folds):
    """Name of every estimate -> its accuracy."""
    labels = folds.labels
    chunks = chunked(features, 50)
    paths = ridge_paths(chunks, labels, WHOLE, classes=CLASSES, folds=folds)
    logistic = fit_logistic(chunks, labels, WHOLE, folds=folds)
    right = logistic.probabilities.argmax(axis=1) == labels[logistic.held_back]
    chosen = select_features(chunks, labels, WHOLE, classes=CLASSES, folds=folds)
    points = learning_curves(chunks, labels, WHOLE, paths, folds=folds)
    return {
        **{f"ridge {name}": best(path) for name, path in paths.items()},
        "logistic": float(np.average(right, weights=logistic.counting)),
        "selected": chosen.accuracy,
        "neighbours": knn_accuracy(features, labels, folds=folds),
        **{f"curve {point.stage} {point.images}": point.accuracy for point in points},
    }


def test_random_labels_per_group_are_at_chance_in_every_estimate():
    found = [estimates(*grouped(seed)) for seed in range(6)]
    for name in found[0]:
        mean = np.mean([one[name] for one in found])
        # 240 groups in all; the largest class has up to half of the images of one draw
        assert mean < 1 / CLASSES + 3.5 * np.sqrt(2 / 9 / 240), name
    # What the figures would be if each image stood for itself: the test must be able to see that.
    features, folds = grouped(0)
    alone = estimates(features, Folds.alone(folds.labels))
    assert all(value > 0.8 for name, value in alone.items() if name in ("ridge joined", "logistic", "neighbours"))


def test_random_labels_on_copies_are_at_chance_and_each_picture_counts_once():
    found = []
    for seed in range(6):
        features, folds = grouped(seed, each=3, spread=0.0)
        copies = Folds(folds.labels, folds.groups, folds.groups)
        assert copies.counting(copies.together).sum() == pytest.approx(40)
        found.append(estimates(features, copies))
    for name in found[0]:
        assert np.mean([one[name] for one in found]) < 1 / CLASSES + 3.5 * np.sqrt(2 / 9 / 240), name


@pytest.mark.parametrize("route", ["dual", "primal", "large sets", "streamed", "streamed, large sets"])
def test_scores_equal_refits_without_each_set(route, monkeypatch):
    groups, width = {"dual": (12, 70), "primal": (12, 18), "streamed": (20, 18)}.get(
        route, (10, 9 if "large" in route else 18)
    )
    each = 12 if "large" in route else 4
    features, folds = grouped(3, groups=groups, each=each, spread=0.8, width=width)
    if "streamed" in route:
        monkeypatch.setattr(ridge, "MAX_RANK", width)
        assert len(folds) > 4 * width  # more images than are solved in memory at this rank
        features, folds = ordered(features, folds)
    blocks = {"a": slice(0, width)}
    fit = fit_ridge(chunked(features, 7), folds.labels, blocks, classes=CLASSES, folds=folds)
    sizes = np.bincount(folds.together)
    assert (sizes.max() > width) == ("large" in route)
    np.testing.assert_array_equal(fit.rows, np.arange(len(folds)))
    known, weights = scaled(features, blocks), np.ones(len(folds))
    expected = refit_without_sets(known, folds.labels, folds.together, CLASSES, fit.penalty, weights)
    np.testing.assert_allclose(fit.held_back, expected, atol=5e-3)


@pytest.mark.parametrize(("classes", "each"), [(20, 5), (40, 5), (10, 12)])
def test_streamed_features_score_small_classes_as_in_memory(classes, each, monkeypatch):
    rng = np.random.default_rng(classes)
    labels = rng.permutation(np.repeat(np.arange(classes), each))
    features = (rng.normal(size=(len(labels), 24)) + 0.6 * rng.normal(size=(classes, 24))[labels]).astype(np.float32)
    features, folds = ordered(features, Folds.alone(labels))
    blocks = {"a": slice(0, 16), "b": slice(16, 24)}
    memory = ridge_paths(chunked(features, 64), folds.labels, blocks, classes=classes, folds=folds)
    single = ridge_paths(
        chunked(features, 64), folds.labels, blocks, classes=classes, folds=OneByOne.alone(folds.labels)
    )
    assert best(memory["joined"]) > best(single["joined"])  # leaving out single images reads too low
    monkeypatch.setattr(ridge, "MAX_RANK", 24)
    assert len(labels) > 4 * 24  # more images than are solved in memory at this rank
    streamed = ridge_paths(chunked(features, 64), folds.labels, blocks, classes=classes, folds=folds)
    for name, path in memory.items():
        np.testing.assert_allclose(streamed[name].squared_error, path.squared_error, rtol=1e-3)
        assert abs(best(streamed[name]) - best(path)) < 0.01


def test_held_back_accuracy_of_small_classes_is_that_of_new_images():
    rng = np.random.default_rng(1)
    classes, each, width = 20, 5, 60
    promised, found = [], []
    for _ in range(8):
        centres = 0.9 * rng.normal(size=(classes, width))
        labels = np.repeat(np.arange(classes), each)
        features = (centres[labels] + rng.normal(size=(len(labels), width))).astype(np.float32)
        head = fit_ridge(lambda rows=features: [rows], labels, {"a": slice(0, width)}, classes=classes)
        new = rng.integers(0, classes, 2000)
        scores = (centres[new] + rng.normal(size=(2000, width))) @ head.weight.T + head.bias
        promised.append(best(head.path))
        found.append(float((scores.argmax(axis=1) == new).mean()))
    assert abs(np.mean(promised) - np.mean(found)) < 0.05


def test_streaming_wants_images_of_a_set_side_by_side(monkeypatch):
    features, folds = grouped(0, groups=12, each=4, width=9)
    monkeypatch.setattr(ridge, "MAX_RANK", 9)
    with pytest.raises(DataError, match="adjacent if features are streamed"):
        ridge_paths(chunked(features, 7), folds.labels, {"a": slice(0, 9)}, classes=CLASSES, folds=folds)


def test_with_one_image_per_class_every_accuracy_is_unknown_and_a_head_is_fitted_all_the_same():
    features, blocks = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32), {"a": slice(0, 9)}
    labels = np.arange(3)
    chunks = chunked(features, 3)
    paths = ridge_paths(chunks, labels, blocks, classes=3)
    assert not any(path.known for path in paths.values())
    assert all(np.isnan(path.accuracy).all() and path.penalties[path.best] == 1 for path in paths.values())
    assert learning_curves(chunks, labels, blocks, paths) == ()
    chosen = select_features(chunks, labels, blocks, classes=3)
    assert not chosen.known
    assert np.isnan([chosen.accuracy, chosen.gain, chosen.squared_error]).all()
    head = fit_ridge(chunks, labels, blocks, classes=3)
    assert ((features @ head.weight.T + head.bias).argmax(axis=1) == labels).all()


def test_many_scores_are_returned_of_evenly_spaced_images_only(monkeypatch):
    features, labels, blocks = make_problem(4, images=90, widths=(9,))
    monkeypatch.setattr(ridge, "MAX_RANK", 8)
    features, folds = ordered(features, Folds.alone(labels))
    chunks = chunked(features, 16)
    every = fit_ridge(chunks, folds.labels, blocks, classes=3, folds=folds)
    monkeypatch.setattr(ridge, "KEPT_SCORES", 60)
    some = fit_ridge(chunks, folds.labels, blocks, classes=3, folds=folds)
    assert len(some.rows) == 20
    np.testing.assert_allclose(some.held_back, every.held_back[some.rows], atol=1e-6)
    np.testing.assert_array_equal(some.path.right, every.path.right)


def test_a_logistic_head_of_many_images_is_fitted_to_a_stratified_sample(monkeypatch):
    monkeypatch.setattr("transferkit.measure.logistic.FITTED_IMAGES", 60)
    features, labels, blocks = make_problem(6, images=200, widths=(6,))
    fit = fit_logistic(chunked(features, 64), labels, blocks)
    assert fit.fitted == 60
    assert len(np.unique(fit.held_back)) == 60
    assert (fit.probabilities.argmax(axis=1) == labels[fit.held_back]).mean() > 0.5
