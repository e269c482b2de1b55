"""Attributes to classes: noise-free answers, the published closed form, and what the selection may look at."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from transferkit.core.errors import DataError, OptionError
from transferkit.measure.attributes import (
    AttributeModel,
    fit_attributes,
    select_attribute_model,
    standardise_table,
)
from transferkit.measure.seen_unseen import score_domains
from transferkit.records import Folds

TABLE = np.array(list(itertools.product([0, 1], repeat=4)), dtype=float)
"""All combinations of four attributes."""


def draw(classes, *, images=12, noise=0.3, width=20, seed=0):
    """Features that are the attributes, mixed, with noise; and their labels."""
    rng = np.random.default_rng(seed)
    mixed = TABLE @ np.random.default_rng(7).normal(size=(4, width))
    labels = np.repeat(classes, images)
    return (mixed[labels] + noise * rng.normal(size=(len(labels), width))).astype(np.float32), labels


@pytest.mark.parametrize("model", [AttributeModel("eszsl", 0.1, 0.1), AttributeModel("dap", 0.1, 1.0)])
@pytest.mark.parametrize("images", [1, 12])  # fewer images than features, and more
def test_unseen_combinations_are_recognised(model, images):
    values, labels = draw(np.arange(12), images=images, noise=0.05)
    weight, bias = fit_attributes(values, labels, TABLE, model)
    new, truth = draw(np.arange(16), noise=0.05, seed=1)
    assert weight.shape == (16, 20)
    assert ((new @ weight.T + bias).argmax(axis=1) == truth).mean() > 0.98


def test_it_is_the_published_closed_form_on_centred_features():
    """Romera-Paredes and Torr: V = (X'X + g)^-1 X'Y S (S'S + l)^-1."""
    values, labels = draw(np.arange(12))
    weight, _ = fit_attributes(values, labels, TABLE, AttributeModel("eszsl", 0.5, 0.2))
    x, s = values - values.mean(axis=0), standardise_table(TABLE)
    y = np.eye(12)[labels]
    y = y - y.mean(axis=0)
    moment = s[:12].T @ s[:12]
    ridge = moment + 0.2 * np.trace(moment) / 4 * np.eye(4)
    v = np.linalg.inv(x.T @ x + 0.5 * np.eye(20)) @ x.T @ y @ s[:12] @ np.linalg.inv(ridge)
    np.testing.assert_allclose(weight, 12 * (v @ s.T).T, atol=1e-4)  # scores are in no unit: 12 times, as 12 classes


def test_dap_ranks_classes_by_the_sum_of_their_attributes_logits():
    values, labels = draw(np.arange(12))
    weight, bias = fit_attributes(values, labels, TABLE, AttributeModel("dap", 0.5, 1.0))
    x, signs = values - values.mean(axis=0), np.where(TABLE > 0.5, 1.0, -1.0)
    wanted = signs[labels] - signs[labels].mean(axis=0)
    logits = x @ np.linalg.solve(x.T @ x + 0.5 * np.eye(20), x.T @ wanted) + signs[labels].mean(axis=0)
    np.testing.assert_allclose(4 * (values @ weight.T + bias), logits @ signs.T, atol=1e-3)


@pytest.mark.parametrize("method", ["eszsl", "dap"])
def test_a_feature_in_other_units_or_moved_changes_nothing_but_rounding(method):
    values, labels = draw(np.arange(12))
    model = AttributeModel(method, 0.1, 0.1)
    plain = fit_attributes(values, labels, TABLE, model)
    moved = fit_attributes(values + 5, labels, TABLE, model)
    np.testing.assert_allclose(plain[0], moved[0], atol=1e-4)
    np.testing.assert_allclose(values @ plain[0].T + plain[1], (values + 5) @ moved[0].T + moved[1], atol=1e-3)


def test_attributes_in_other_units_change_nothing():
    scaled = TABLE * [1, 100, 0.01, 3] + [0, 7, 0, -2]
    np.testing.assert_allclose(standardise_table(scaled), standardise_table(TABLE), atol=1e-12)


def test_a_constant_column_has_no_say_and_a_constant_table_is_refused():
    wide = np.concatenate([TABLE, np.full((16, 1), 0.1)], axis=1)
    np.testing.assert_allclose(standardise_table(wide)[:, :4], standardise_table(TABLE))
    with pytest.raises(DataError, match="All classes have the same attributes"):
        standardise_table(np.ones((3, 2)))


def select(values, labels, table, **more):
    return select_attribute_model(values, Folds.alone(labels), table, seen=int(labels.max()) + 1, **more)


def test_held_back_figures_agree_with_new_images_of_new_classes():
    values, labels = draw(np.arange(12), noise=1.2, images=30)
    found = select(values, labels, TABLE, method="eszsl")
    weight, bias = fit_attributes(values, labels, TABLE, found.model)
    new, truth = draw(np.arange(16), noise=1.2, images=200, seed=5)
    reached = score_domains(new @ weight.T + bias, truth, np.arange(16) < 12).accuracy(found.seen_penalty)
    assert found.calibrated.harmonic == pytest.approx(reached.harmonic, abs=0.15)
    assert found.low <= found.calibrated.harmonic <= found.high
    assert found.folds == 10


def test_calibration_helps_where_seen_classes_look_like_themselves():
    """Each class has a look of its own beside its attributes, which only a fit to its images can know."""
    rng = np.random.default_rng(0)
    own = 2.0 * rng.normal(size=(16, 40))
    table = np.concatenate([TABLE, rng.random((16, 12))], axis=1)  # enough columns to tell seen classes apart by rote

    def look(classes, seed):
        labels = np.repeat(classes, 20)
        noise = np.random.default_rng(seed).normal(size=(len(labels), 40))
        mixed = TABLE @ np.random.default_rng(7).normal(size=(4, 40))
        return (mixed + own)[labels] + 0.5 * noise, labels

    values, labels = look(np.arange(12), 1)
    found = select(values, labels, table)
    assert found.seen_penalty > 0
    assert found.calibrated.harmonic > found.plain.harmonic
    weight, bias = fit_attributes(values, labels, table, found.model)
    new, truth = look(np.arange(16), 2)
    answers = score_domains(new @ weight.T + bias, truth, np.arange(16) < 12)
    assert answers.accuracy(found.seen_penalty).harmonic > answers.accuracy(0.0).harmonic


def test_random_attributes_are_worth_no_more_than_chance():
    values, labels = draw(np.arange(12), noise=0.3)
    table = np.random.default_rng(3).random((16, 6))
    found = select(values, labels, table)
    assert found.among_unseen < 0.5  # five or six classes may be chosen
    assert found.calibrated.harmonic < 0.6


def test_images_of_a_group_are_never_on_both_sides():
    values, labels = draw(np.arange(12), noise=0.3)
    groups = np.arange(len(labels)) % 12  # each group has an image of every class
    folds = Folds(labels, groups, np.arange(len(labels)))
    found = select_attribute_model(values, Folds.alone(labels), TABLE, seen=12)
    assert found.images == len(labels)
    # All groups have images of the classes turned unseen, so that nothing may be trained on.
    with pytest.raises(DataError, match="Too few images"):
        select_attribute_model(values, folds, TABLE, seen=12)


def test_what_cannot_be_is_refused():
    values, labels = draw(np.arange(2))
    with pytest.raises(DataError, match="at least 3 classes"):
        select(values, labels, TABLE[:2])
    with pytest.raises(OptionError, match=r"Unknown method 'ezsl'. Closest known: eszsl"):
        select(values, labels, TABLE[:12], method="ezsl")
