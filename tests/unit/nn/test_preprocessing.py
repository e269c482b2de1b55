"""Centring, scaling, decorrelation and whitening, fitted to training rows alone."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import fractional_matrix_power
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from transferkit.core.errors import DataError, OptionError
from transferkit.nn import preprocessing
from transferkit.nn.preprocessing import KINDS, Whitening

BY_DIRECTION = ("pca", "pca_whiten", "zca")


@pytest.fixture
def rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6)


@pytest.fixture
def images() -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (50, 5, 4, 3), dtype=np.uint8)


def test_standardised_features_are_those_of_scikit_learn(rows):
    np.testing.assert_allclose(Whitening().fit_transform(rows), StandardScaler().fit_transform(rows))


def test_decorrelated_rows_have_a_diagonal_covariance_in_falling_order(rows):
    covariance = np.cov(Whitening("pca").fit_transform(rows).T)
    assert np.allclose(covariance, np.diag(np.diag(covariance)))
    assert (np.diff(np.diag(covariance)) <= 0).all()
    np.testing.assert_allclose(np.diag(covariance), PCA().fit(rows).explained_variance_)


@pytest.mark.parametrize("kind", ["pca_whiten", "zca"])
def test_whitened_rows_have_the_identity_as_covariance(rows, kind):
    white = Whitening(kind, ridge=0).fit_transform(rows)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(6), atol=1e-8)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-8)


def test_zca_is_the_inverse_root_of_the_covariance(rows):
    values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    np.testing.assert_allclose(Whitening("zca", ridge=0).fit_transform(rows), (rows - rows.mean(axis=0)) @ root)


def test_zca_stays_closer_to_the_rows_than_pca(rows):
    centred = rows - rows.mean(axis=0)
    zca, pca = (Whitening(kind, ridge=0).fit_transform(rows) for kind in ("zca", "pca_whiten"))
    assert ((zca - centred) ** 2).sum() < ((pca - centred) ** 2).sum()


def test_a_ridge_keeps_noise_small(rows):
    flat = np.column_stack([rows, 1e-4 * np.random.default_rng(2).normal(size=300)])
    assert Whitening("pca_whiten", ridge=0).fit_transform(flat)[:, -1].std() == pytest.approx(1)
    assert Whitening("pca_whiten", ridge=1e-5).fit_transform(flat)[:, -1].std() < 0.05


def test_each_image_is_centred_by_itself(images):
    out = Whitening("image").fit(images[:10]).transform(images[10:])
    np.testing.assert_allclose(out.mean(axis=(1, 2)), 0, atol=1e-9)
    assert out.shape == (40, 5, 4, 3)


def test_channels_and_mean_image_are_those_of_the_training_images(images):
    train, test = images[:30], images[30:]
    channel, mean = Whitening("channel").fit(train), Whitening("mean_image").fit(train)
    np.testing.assert_allclose(channel.transform(test), test - train.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(mean.transform(test), test - train.mean(axis=0))
    scaled = Whitening(ridge=0).fit_transform(train)
    np.testing.assert_allclose(scaled.std(axis=(0, 1, 2)), 1)


def test_grey_images_keep_their_shape(images):
    grey = images[..., 0]
    for kind in ("image", "channel", "mean_image", "standardise", "zca"):
        assert Whitening(kind).fit_transform(grey).shape == grey.shape
        if kind != "image":
            known = Whitening(kind).fit(grey)
            np.testing.assert_allclose(known.inverse_transform(known.transform(grey)), grey, atol=1e-6)
    assert Whitening("pca").fit_transform(grey).shape == (50, 20)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"image"}))
def test_what_was_transformed_comes_back(images, kind):
    known = Whitening(kind).fit(images)
    np.testing.assert_allclose(known.inverse_transform(known.transform(images)), images, atol=1e-6)


def test_the_mean_of_each_image_is_gone(images):
    with pytest.raises(OptionError, match="cannot be inverted"):
        Whitening("image").fit(images).inverse_transform(images)


def test_dropped_directions_come_back_as_their_mean(rows):
    known = Whitening("pca", components=2).fit(rows)
    assert known.transform(rows).shape == (300, 2)
    lost = ((known.inverse_transform(known.transform(rows)) - rows) ** 2).sum() / len(rows)
    assert lost == pytest.approx(PCA().fit(rows).explained_variance_[2:].sum() * 299 / 300)


def test_fewer_rows_than_values_are_no_obstacle(images):
    white = Whitening("zca").fit_transform(images[:8])
    assert white.shape == (8, 5, 4, 3)
    assert np.isfinite(white).all()


def test_constant_features_are_centred_only(rows):
    constant = np.column_stack([rows, np.full(300, 7.0)])
    for kind in ("standardise", *BY_DIRECTION):
        assert np.isfinite(Whitening(kind, ridge=0).fit_transform(constant)).all()
    assert (Whitening(ridge=0).fit_transform(constant)[:, -1] == 0).all()


@pytest.mark.parametrize("split", ["val", "test", "all"])
def test_other_rows_than_training_rows_are_refused(rows, split):
    with pytest.raises(DataError, match=f"training rows only, got 300 rows of split '{split}'"):
        Whitening().fit(rows, split=split)


def test_the_pool_before_the_split_is_refused_if_it_says_so(rows):
    names = ["train"] * 200 + ["val"] * 60 + ["test"] * 40
    with pytest.raises(DataError, match="got 60 rows of split 'val'"):
        Whitening().fit(rows, split=names)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_fit_before_the_split_is_found_when_the_test_rows_come(images, kind):
    known = Whitening(kind).fit(images)  # the pool
    with pytest.raises(DataError, match="20 of these 20 rows of split 'test' were used to fit"):
        known.transform(images[30:], split="test")
    assert Whitening(kind).fit(images[:30]).transform(images[30:], split="test").shape[0] == 20


def test_it_is_found_in_another_type_as_well(images):
    known = Whitening().fit(images)
    with pytest.raises(DataError, match="were used to fit"):
        known.transform(images[:5].astype(np.float32), split="val")


def test_training_rows_may_be_transformed(rows):
    known = Whitening().fit(rows)
    np.testing.assert_array_equal(known.transform(rows, split="train"), known.transform(rows))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "zac"}, "Unknown kind of whitening 'zac'. Closest known: zca"),
        ({"ridge": -1.0}, "ridge must be finite and >= 0"),
        ({"components": 0}, "components must be >= 1"),
        ({"kind": "image"}, "needs images"),
    ],
)
def test_wrong_settings_are_refused(rows, wrong, message):
    with pytest.raises(OptionError, match=message):
        Whitening(**wrong).fit(rows)


def test_wrong_rows_are_refused(rows):
    with pytest.raises(DataError, match="got shape"):
        Whitening().fit(rows[0])
    with pytest.raises(DataError, match="finite"):
        Whitening().fit(np.full((3, 2), np.nan))
    with pytest.raises(DataError, match="were fitted, got"):
        Whitening().fit(rows).transform(rows[:, :3])
    with pytest.raises(OptionError, match="not fitted"):
        Whitening().transform(rows)
    with pytest.raises(OptionError, match="up to 4,096 values"):
        Whitening("zca").fit(np.zeros((3, 40, 40, 3)))
    with pytest.raises(DataError, match="one for each of the 300"):
        Whitening().fit(rows, split=["train"] * 3)


def test_it_is_a_scikit_learn_transformer(rows):
    labels = (rows[:, 0] > rows[:, 0].mean()).astype(int)
    pipeline = make_pipeline(Whitening("pca_whiten", components=4), LogisticRegression())
    assert cross_val_score(pipeline, rows, labels, cv=3).shape == (3,)
    assert clone(Whitening("zca", ridge=0.1)).get_params() == {"kind": "zca", "components": None, "ridge": 0.1}
    known = Whitening("zca").fit(rows)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(known)).transform(rows), known.transform(rows))


@settings(max_examples=25, deadline=None)
@given(shift=st.floats(-100, 100), scale=st.floats(0.01, 100))
def test_whitened_rows_know_neither_shift_nor_scale(shift, scale):
    rows = np.random.default_rng(3).normal(size=(60, 4))
    first, second = (Whitening("zca", ridge=1e-3).fit_transform(one) for one in (rows, scale * rows + shift))
    np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("scales", [(1, 1e3, 1e6), (1e-8, 1, 1), (1, 1e7, 1)])
def test_features_of_any_scale_are_standardised(scales):
    rows = np.random.default_rng(4).normal(size=(500, 3)) * scales
    np.testing.assert_allclose(Whitening().fit_transform(rows).std(axis=0), 1)


@pytest.mark.parametrize("kind", ["standardise", "pca_whiten", "zca"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_constant_rows_stay_zero(kind, value):
    assert np.abs(Whitening(kind, ridge=0).fit_transform(np.full((100, 3), value))).max() < 1e-6


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("mean", [0, 100, 1000])
def test_whitening_bears_large_means_and_short_numbers(dtype, mean):
    rows = (np.random.default_rng(5).normal(size=(800, 4)) * 20 + mean).astype(dtype)
    white = Whitening("pca_whiten", ridge=0).fit_transform(rows)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(4), atol=1e-6)


def test_copies_are_found_in_any_precision(rows):
    known = Whitening().fit(rows)
    with pytest.raises(DataError, match="were used to fit"):
        known.transform(rows[:4].astype(np.float32), split="test")


def test_a_failed_fit_leaves_nothing(rows):
    known = Whitening("pca")
    with pytest.raises(DataError, match="at least 2"):
        known.fit(rows[:1])
    with pytest.raises(OptionError, match="not fitted"):
        known.transform(rows)


@pytest.mark.parametrize("kind", ["standardise", "channel", "mean_image", *BY_DIRECTION])
def test_scikit_learn_finds_nothing_wrong(kind):
    found = check_estimator(Whitening(kind), on_skip=None, on_fail=None)
    assert [(one["check_name"], one["exception"]) for one in found if one["status"] == "failed"] == []
    assert len(found) > 40


@pytest.mark.parametrize("kind", ["standardise", "zca"])
def test_columns_keep_their_names(rows, kind):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(rows, columns=[f"größe {i}" for i in range(6)])
    white = Whitening(kind).set_output(transform="pandas").fit(frame)
    out = white.transform(frame)
    assert list(out.columns) == list(frame.columns)
    np.testing.assert_allclose(out.to_numpy(), Whitening(kind).fit_transform(rows))
    with pytest.raises(ValueError, match="feature names"):
        white.transform(frame[frame.columns[::-1]])


def test_directions_are_numbered(rows):
    white = Whitening("pca", components=3).set_output(transform="default").fit(rows)
    assert white.get_feature_names_out().tolist() == ["whitening0", "whitening1", "whitening2"]
    named = make_pipeline(StandardScaler(), Whitening("zca")).fit(rows)
    assert named.get_feature_names_out().tolist() == [f"x{i}" for i in range(6)]
    assert Whitening("channel").fit(np.zeros((3, 2, 2, 3))).n_features_in_ == 12


def test_not_fitted_is_scikit_learns_error_as_well(rows):
    with pytest.raises(NotFittedError, match="Call fit"):
        Whitening().transform(rows)


def direct(kind: str, values: np.ndarray, ridge: float) -> np.ndarray:
    """The definition, on a full copy in double precision."""
    wide = values.astype(np.float64)
    if kind == "channel":
        return wide - wide.mean(axis=(0, 1, 2))
    if kind == "mean_image":
        return wide - wide.mean(axis=0)
    if kind == "standardise":
        return (wide - wide.mean(axis=(0, 1, 2))) / wide.std(axis=(0, 1, 2))
    flat = wide.reshape(len(wide), -1)
    covariance = np.cov(flat.T, bias=True)
    root = fractional_matrix_power(
        covariance + ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance)), -0.5
    )
    return ((flat - flat.mean(axis=0)) @ root).reshape(wide.shape)


@pytest.mark.parametrize("kind", ["channel", "mean_image", "standardise", "zca"])
def test_chunks_give_what_the_whole_gives(images, kind, monkeypatch):
    many = np.random.default_rng(8).integers(0, 256, (120, 5, 4, 3), dtype=np.uint8)
    whole = direct(kind, many, 1e-5)
    monkeypatch.setattr(preprocessing, "AT_ONCE", 7 * 60)
    np.testing.assert_allclose(Whitening(kind).fit_transform(many), whole, atol=1e-7)


@pytest.mark.parametrize("kind", ["channel", "mean_image", "standardise", "pca_whiten", "zca"])
def test_bytes_are_fitted_without_a_copy_in_double_precision(kind):
    many = np.random.default_rng(9).integers(0, 256, (40_000, 12, 12, 3), dtype=np.uint8)
    tracemalloc.start()
    try:
        Whitening(kind).fit(many)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 70e6 < 8 * many.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_tensors_are_rows_as_well(dtype):
    rows = (40 * torch.rand(30, 4, generator=torch.Generator().manual_seed(0)) + 5).to(dtype)
    if dtype is torch.float32:
        rows.requires_grad_()
    white = Whitening().fit(rows)
    np.testing.assert_allclose(white.transform(rows), StandardScaler().fit_transform(rows.detach().double().numpy()))
    assert white.inverse_transform(white.transform(rows)).shape == (30, 4)


@pytest.mark.parametrize("kind", ["image", "channel", "standardise"])
def test_channels_in_front_are_refused_where_channels_count(images, kind):
    large = np.random.default_rng(6).random((4, 3, 16, 12))
    with pytest.raises(DataError, match=r"looks like \(N, C, H, W\)"):
        Whitening(kind).fit(large)
    assert Whitening(kind).fit_transform(np.moveaxis(large, 1, -1)).shape == (4, 16, 12, 3)
    assert Whitening(kind).fit_transform(np.moveaxis(large, 1, -1)[:, :3]).shape == (4, 3, 12, 3)
    assert Whitening("mean_image").fit_transform(large).shape == large.shape


@pytest.mark.parametrize("kind", ["standardise", "mean_image", "pca", "zca"])
def test_rows_of_another_width_do_not_come_back(rows, kind):
    """100 rows of 3 are as many numbers as 60 rows of 5."""
    white = Whitening(kind).fit(rows[:, :5])
    with pytest.raises(DataError, match=r"of shape \(5,\), got \(3,\)"):
        white.inverse_transform(rows[:100, :3])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"components": 2.5}, "a whole number"), ({"ridge": "0"}, "ridge must be"), ({"ridge": None}, "ridge must be")],
)
def test_settings_of_another_type_are_refused(rows, wrong, message):
    with pytest.raises(OptionError, match=message):
        Whitening("pca", **wrong).fit(rows)
    with pytest.raises(DataError, match="split must name"):
        Whitening().fit(rows, split=None)
    with pytest.raises(DataError, match="got a list"):
        Whitening().fit([[1.0, 2.0], [3.0]])
