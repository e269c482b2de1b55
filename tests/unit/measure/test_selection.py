"""Feature selection: against the same steps taken with scikit-learn, and where it is known what must be found."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_selection import f_classif
from sklearn.linear_model import Ridge

from tests.unit.measure.problems import chunked, least_squares, make_problem, refit_without_each, scaled
from transferkit.core.errors import DataError
from transferkit.measure import selection
from transferkit.measure.ridge import fit_ridge
from transferkit.measure.selection import PENALTIES, SHARES, select_features
from transferkit.records import Folds


def needles(seed: int, *, images: int = 120, width: int = 200, useful: int = 6, classes: int = 3):
    """Noise, but for a few columns."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    features = rng.normal(size=(images, width))
    columns = rng.permutation(width)[:useful]
    features[:, columns] += 1.5 * rng.normal(size=(classes, useful))[labels]
    blocks = {"a": slice(0, width // 2), "b": slice(width // 2, width)}
    return features.astype(np.float32), labels, blocks, columns


def choose(features, labels, blocks, *, weights=None, seed=0):
    classes = int(labels.max()) + 1
    return select_features(chunked(features, 50), labels, blocks, classes=classes, weights=weights, seed=seed)


@pytest.mark.parametrize("seed", range(3))
def test_a_few_informative_columns_are_found_among_noise(seed):
    features, labels, blocks, columns = needles(seed)
    chosen = choose(features, labels, blocks)
    assert chosen.gain > 3 * chosen.gain_error > 0
    assert chosen.kept < 50
    assert set(np.argsort(-chosen.emphasis)[:4]) <= set(columns)


def test_columns_alike_in_everything_are_all_kept():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    features = (rng.normal(size=(200, 40)) + 0.35 * labels[:, None]).astype(np.float32)
    chosen = choose(features, labels, {"a": slice(0, 40)})
    assert chosen.share == 1
    assert chosen.kept > 35


def by_hand(features, labels, blocks, fitted, share, penalty):
    """(N, K) scores of a fit to the images `fitted`, step by step as the module's first lines have it."""
    classes = int(labels.max()) + 1
    known = scaled(features, blocks)
    part, targets = known[fitted] - known[fitted].mean(axis=0), np.eye(classes)[labels[fitted]]
    without = refit_without_each(np.zeros((len(fitted), 1)), labels[fitted], classes, 1.0, np.ones(len(fitted)))
    factors = np.sqrt(np.sqrt(np.maximum(f_classif(part, labels[fitted])[0] - 1, 0)))
    for block in blocks.values():
        scores = refit_without_each(part[:, block], labels[fitted], classes, 1.0, np.ones(len(fitted)))
        factors[block] *= np.sqrt(max(1 - ((scores - targets) ** 2).sum() / ((without - targets) ** 2).sum(), 1e-3))
    relevance = np.linalg.norm(Ridge(alpha=PENALTIES[1]).fit(part, targets).coef_, axis=0) * factors
    kept = np.argsort(-relevance)[: int(np.ceil(share * np.count_nonzero(factors)))]
    weighted = (known - known[fitted].mean(axis=0))[:, kept] * factors[kept]
    weighted *= np.sqrt(len(blocks) / (weighted[fitted] ** 2).mean(axis=0).sum())
    return Ridge(alpha=penalty).fit(weighted[fitted], targets).predict(weighted)


@pytest.mark.parametrize("widths", [(6, 50), (30, 40)], ids=["primal and dual", "dual"])
def test_scores_of_every_fold_equal_the_same_steps_taken_one_by_one(widths):
    features, labels, blocks = make_problem(5, images=36, widths=widths)
    chosen = choose(features, labels, blocks)
    fold = Folds.alone(labels).assign_splits(seed=0)
    for held in range(5):
        rest = fold == held
        scores = by_hand(features, labels, blocks, np.flatnonzero(~rest), chosen.share, chosen.penalty)
        np.testing.assert_allclose(chosen.scores[rest], scores[rest], atol=2e-4)


def test_the_fit_to_all_images_reads_the_weighted_features_alone():
    features, labels, blocks, _ = needles(1)
    chosen = choose(features, labels, blocks)
    head = fit_ridge(chunked(features, 50), labels, blocks, classes=3, emphasis=chosen.emphasis)
    assert (head.weight[:, chosen.emphasis == 0] == 0).all()
    known = scaled(features, blocks) * chosen.emphasis
    assert (known**2).mean(axis=0).sum() == pytest.approx(len(blocks), rel=1e-4)
    slope, bias = least_squares(known, np.eye(3)[labels], head.penalty, np.ones(len(labels)))
    np.testing.assert_allclose(features @ head.weight.T + head.bias, known @ slope + bias, atol=2e-3)


def test_labels_drawn_at_random_are_not_predicted():
    found, flattered = [], []
    for seed in range(6):
        features, labels, blocks, _ = needles(seed, images=60, width=400)
        labels = np.random.default_rng(seed).permutation(labels)
        chosen = choose(features, labels, blocks)
        found.append(chosen.accuracy)
        # What the figure would be with the selection outside the folds: the test must be able to see that.
        fold = Folds.alone(labels).assign_splits(seed=seed)
        known = scaled(features, blocks) * chosen.emphasis
        for held in range(5):
            fit = Ridge().fit(known[fold != held], np.eye(3)[labels[fold != held]])
            flattered.append((fit.predict(known[fold == held]).argmax(axis=1) == labels[fold == held]).mean())
    # 360 images: one standard error is 2.5 points.
    assert np.mean(found) < 1 / 3 + 0.075
    assert np.mean(flattered) > 0.6


def test_a_class_of_one_image_is_no_obstacle():
    features, labels, blocks, _ = needles(0, images=40)
    labels[3] = 3
    chosen = choose(features, labels, blocks)
    assert chosen.scores.shape == (40, 4)
    assert np.isfinite(chosen.scores).all()
    assert np.isfinite(chosen.emphasis).all()


@pytest.mark.parametrize("images", [2, 3, 7])
def test_a_handful_of_images_gives_finite_numbers(images):
    features, labels, blocks, _ = needles(0, images=images)
    chosen = choose(features, labels, blocks)
    assert np.isfinite(chosen.scores).all()
    assert chosen.kept >= 1
    assert np.isfinite([chosen.gain, chosen.gain_error, chosen.squared_error]).all() == chosen.known == (images > 3)


def test_constant_features_are_never_kept():
    features, labels, blocks, _ = needles(0)
    features[:, 10:20] = 5
    assert (choose(features, labels, blocks).emphasis[10:20] == 0).all()
    assert np.isfinite(choose(np.ones_like(features), labels, blocks).scores).all()


def test_the_seed_alone_deals_the_folds():
    features, labels, blocks, _ = needles(0)
    first, again, other = (choose(features, labels, blocks, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.scores, again.scores)
    np.testing.assert_array_equal(first.emphasis, again.emphasis)
    assert (first.scores != other.scores).any()


def test_weights_count_by_their_ratios_only():
    features, labels, blocks, _ = needles(2)
    weights = np.where(labels == 0, 3.0, 1.0)
    first, again = (choose(features, labels, blocks, weights=factor * weights) for factor in (1, 10))
    np.testing.assert_allclose(first.scores, again.scores, atol=1e-5)
    assert (first.scores[:, 0].mean() - choose(features, labels, blocks).scores[:, 0].mean()) > 0.02


def test_many_images_leave_the_choice_to_a_stratified_sample(monkeypatch):
    monkeypatch.setattr(selection, "SELECTION_IMAGES", 60)
    features, labels, blocks, columns = needles(0, images=300)
    chosen = choose(features, labels, blocks)
    assert len(chosen.rows) == len(chosen.scores) == 60
    np.testing.assert_array_equal(np.bincount(chosen.labels), [20, 20, 20])
    np.testing.assert_array_equal(chosen.labels, labels[chosen.rows])
    assert set(np.argsort(-chosen.emphasis)[:3]) <= set(columns)


@pytest.mark.parametrize("images", [2, 9])
def test_features_without_any_spread_are_no_reason_to_stop(images):
    labels = np.arange(images) % 2
    same = np.ones((images, 6), dtype=np.float32)
    differ = same + labels[:, None].astype(np.float32)
    for features in (same, differ):  # of two images one is left, which does not vary
        chosen = choose(features, labels, {"a": slice(0, 3), "b": slice(3, 6)})
        assert np.isfinite(chosen.emphasis).all()
        assert np.isfinite(chosen.scores).all()


def test_one_image_is_an_error():
    features, labels, blocks, _ = needles(0, images=1)
    with pytest.raises(DataError, match="at least 2 images, got 1"):
        choose(features, labels, blocks)


def test_all_features_are_among_the_shares():
    assert SHARES[-1] == 1
    assert sorted(SHARES) == list(SHARES)
