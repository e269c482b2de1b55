"""Preprocessing learnt from training data, as a scikit-learn transformer: centring, scaling, decorrelation, whitening.

Statistics of a test set must not reach what is fitted on the training set, or test results are too good. `fit`
therefore takes the split its rows come from and refuses any but training rows; and it remembers which rows it has
seen, so that `transform(rows, split="test")` finds a transformer that was fitted before the split.

What a pretrained backbone expects of its pixels belongs to the checkpoint (`records.Preprocessing`) and is not learnt
here; this is for networks trained from scratch and for features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA

from transferkit.core.errors import DataError, OptionError, unknown_name

__all__ = ["KINDS", "Whitening"]

Array = npt.NDArray[np.float64]

KINDS = {
    "image": "each image minus its own mean, per channel; nothing is fitted",
    "channel": "minus the training mean of each channel",
    "mean_image": "minus the mean training image, a mean per pixel",
    "standardise": "channels (of images) or features (of arrays) with mean 0 and standard deviation 1",
    "pca": "decorrelated: rotated to the principal directions, largest variance first",
    "pca_whiten": "decorrelated, and every direction scaled to variance 1",
    "zca": "whitened, then rotated back: the closest whitened data to the original (Mahalanobis whitening)",
}
"""Kind -> what comes out."""

BY_DIRECTION = ("pca", "pca_whiten", "zca")

MAX_WIDTH = 4096
"""Values per row above which principal directions are refused: their matrix would take gigabytes."""

ROUNDING = 1e-10
"""A standard deviation below this share of the largest value is rounding noise of a constant, which is centred only."""


class Whitening(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Centre, scale, decorrelate or whiten images or feature arrays by the statistics of training data.

    Args:
        kind: A key of `KINDS`.
        components: With "pca" and "pca_whiten": how many directions are kept, at least 1; None keeps all. With "zca"
            how
            many are whitened; the others are dropped before rotating back.
        ridge: Added to every variance before scaling, in units of the mean variance, >= 0. Whitening divides by
            standard
            deviations: without it, directions that hold only noise are blown up to variance 1.

    Attributes:
        mean_: What is subtracted: a number per channel, or the mean row.
        scale_: What is divided by (1 where only centred): per channel, feature or direction.
        directions_: (R, D) principal directions; None for the kinds without.
        shape_: Of one row.

    Raises:
        OptionError: Of `fit`: an argument is out of range, or the kind does not fit the data's shape.
        DataError: Of `fit`: rows are not of the training split, or too few; of `transform`: the rows have another
            shape, or are of a validation or test split and were used in `fit`.

    References:
        Kessy, Lewin and Strimmer, The American Statistician 2018, on ZCA and PCA whitening. Deviation: `ridge`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> rows = rng.normal(size=(500, 3)) @ np.array([[2, 1, 0], [0, 1, 0], [0, 0, 5]])
        >>> white = Whitening("zca", ridge=0).fit_transform(rows)
        >>> np.allclose(np.cov(white.T, bias=True), np.eye(3))
        True
        >>> fitted = Whitening("pca").fit(rows, split="train")  # any other split is an error
    """

    def __init__(self, kind: str = "standardise", *, components: int | None = None, ridge: float = 1e-5) -> None:
        self.kind = kind
        self.components = components
        self.ridge = ridge

    def fit(self, X: npt.ArrayLike, y: Any = None, *, split: str | Sequence[str] = "train") -> Whitening:
        """Learn the statistics of training rows.

        Args:
            X: (N, D) features, (N, H, W) or (N, H, W, C) images, integers or floats.
            y: Ignored.
            split: The split that all rows belong to, or one for each row.
        """
        rows = _as_rows(X)
        self._check(rows, split)
        axes = tuple(range(rows.ndim - 1)) if self.kind == "channel" or rows.ndim > 2 else (0,)
        mean, scale, directions = np.zeros(1), np.ones(1), None
        if self.kind in BY_DIRECTION:
            mean, scale, directions = self._fit_directions(rows.reshape(len(rows), -1).astype(np.float64))
        elif self.kind == "mean_image":
            mean = rows.mean(axis=0, dtype=np.float64)
        elif self.kind in ("channel", "standardise"):
            mean = rows.mean(axis=axes, dtype=np.float64)
            if self.kind == "standardise":
                scale = _deviations(rows.var(axis=axes, dtype=np.float64), largest=np.abs(rows).max(axis=axes))
        self.mean_, self.scale_, self.directions_ = mean, scale, directions
        self.shape_, self._given_shape, self._seen = rows.shape[1:], np.shape(X)[1:], _digests(rows)
        return self

    def transform(self, X: npt.ArrayLike, *, split: str | None = None) -> Array:
        """Apply what was learnt.

        Args:
            X: Rows of the shape that was fitted.
            split: The split they belong to. Rows of any other than "train" must not be among those that were fitted.

        Returns:
            float64; the shape of X, except (N, R) for "pca" and "pca_whiten".
        """
        rows = self._ready(X)
        if split is not None and split != "train" and (known := int(np.isin(_digests(rows), self._seen).sum())):
            raise DataError(
                f"{known} of these {len(rows)} rows of split {split!r} were used to fit the preprocessing, so results "
                "on them would be too good. Split first, and fit on the training rows alone. (Copies of a training "
                "image count.)"
            )
        if self.kind == "image":
            return (rows - rows.mean(axis=(1, 2), keepdims=True)).reshape(np.shape(X))
        if self.directions_ is None:
            return np.asarray((rows - self.mean_) / self.scale_).reshape(np.shape(X))
        turned = (rows.reshape(len(rows), -1) - self.mean_) @ self.directions_.T / self.scale_
        return (turned @ self.directions_).reshape(np.shape(X)) if self.kind == "zca" else turned

    def inverse_transform(self, X: npt.ArrayLike) -> Array:
        """The rows that `transform` makes these of; what dropped directions held is lost.

        Raises:
            OptionError: With kind "image": the means are gone.
        """
        if self.kind == "image":
            raise OptionError(
                "kind='image' cannot be inverted: the mean of each image is not kept. Use kind='channel'."
            )
        self._require_fitted()
        values = np.asarray(X, dtype=np.float64)
        if self.directions_ is None:
            raw = values.reshape(-1, *self.shape_) * self.scale_ + self.mean_
        else:
            turned = values.reshape(len(values), -1)
            turned = turned @ self.directions_.T if self.kind == "zca" else turned
            raw = (turned * self.scale_) @ self.directions_ + self.mean_
        return raw.reshape(-1, *self._given_shape)

    def _check(self, rows: npt.NDArray[Any], split: str | Sequence[str]) -> None:
        if self.kind not in KINDS:
            raise OptionError(unknown_name("kind of whitening", self.kind, KINDS))
        if not (np.isfinite(self.ridge) and self.ridge >= 0):
            raise OptionError(f"Whitening.ridge must be finite and >= 0, got {self.ridge!r}.")
        if self.components is not None and self.components < 1:
            raise OptionError(f"Whitening.components must be >= 1 or None, got {self.components!r}.")
        names = [split] * len(rows) if isinstance(split, str) else list(split)
        if len(names) != len(rows):
            raise DataError(f"split must be one name, or one for each of the {len(rows)} rows, got {len(names)}.")
        for name in dict.fromkeys(names):
            if name != "train":
                raise DataError(
                    f"Whitening is fitted on training rows only, got {names.count(name)} rows of split {name!r}. "
                    "Fit on the training split and transform the others."
                )
        if self.kind == "image" and rows.ndim == 2:
            raise OptionError("kind='image' needs images, (N, H, W) or (N, H, W, C), got rows of features (N, D).")
        width = int(np.prod(rows.shape[1:]))
        if self.kind in BY_DIRECTION and width > MAX_WIDTH:
            raise OptionError(
                f"kind={self.kind!r} takes rows of up to {MAX_WIDTH:,} values, got {width:,}: make the images "
                "smaller, or use kind='standardise'."
            )

    def _fit_directions(self, flat: Array) -> tuple[Array, Array, Array]:
        """Mean, scale and principal directions."""
        if len(flat) < 2:
            raise DataError(f"Decorrelation needs at least 2 training rows, got {len(flat)}.")
        # scikit-learn's covariance loses digits where means are large.
        mean = flat.mean(axis=0)
        centred = flat - mean
        limit = min(flat.shape)
        kept = limit if self.components is None else min(self.components, limit)
        with np.errstate(invalid="ignore", divide="ignore"):  # shares of a variance of 0
            fitted = PCA(kept, svd_solver="covariance_eigh" if flat.shape[1] <= len(flat) else "full").fit(centred)
        if self.kind == "pca":
            return mean, np.ones(kept), fitted.components_
        # scikit-learn divides by N - 1; whitened training rows have variance 1 by N.
        variance = np.maximum(fitted.explained_variance_ * (len(flat) - 1) / len(flat), 0)
        softened = np.sqrt(variance + self.ridge * centred.var(axis=0).mean())
        noise = _deviations(variance, largest=np.full(kept, np.abs(flat).max()))
        return mean, np.where(noise == 1.0, 1.0, softened), fitted.components_

    def _ready(self, X: npt.ArrayLike) -> Array:
        self._require_fitted()
        rows = _as_rows(X)
        if rows.shape[1:] != self.shape_:
            raise DataError(f"Rows of shape {self.shape_} were fitted, got {rows.shape[1:]}.")
        return np.asarray(rows, dtype=np.float64)

    def _require_fitted(self) -> None:
        if not hasattr(self, "shape_"):
            raise OptionError("This Whitening is not fitted. Call fit(training_rows) first.")


def _as_rows(X: npt.ArrayLike) -> npt.NDArray[Any]:
    rows = np.asarray(X)
    if rows.ndim == 3:
        rows = rows[..., None]  # one grey channel
    if rows.ndim not in (2, 4) or not len(rows):
        raise DataError(f"Expected (N, D) features or (N, H, W[, C]) images with N >= 1, got shape {np.shape(X)}.")
    if rows.dtype.kind not in "fiub" or not np.isfinite(rows).all():
        raise DataError(f"Expected finite numbers, got dtype {rows.dtype} with NaN, infinite or other values.")
    return rows


def _deviations(variance: Array, *, largest: npt.NDArray[Any]) -> Array:
    """Square roots of variances; 1 where a variance is rounding noise of values of this size, so that constants stay
    0."""
    noise = (ROUNDING * largest.astype(np.float64)) ** 2
    return np.where(variance <= noise, 1.0, np.sqrt(np.maximum(variance, np.finfo(np.float64).tiny)))


def _digests(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """(N,) of each row's values in single precision, whatever their type and the sign of zero."""
    found = (
        hashlib.blake2b((row.astype(np.float32) + np.float32(0)).tobytes(), digest_size=8).digest()
        for row in rows.reshape(len(rows), -1)
    )
    return np.frombuffer(b"".join(found), dtype=np.uint64)
