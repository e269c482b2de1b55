"""Preprocessing learnt from training data, as a scikit-learn transformer: centring, scaling, decorrelation, whitening.

Statistics of a test set must not reach what is fitted on the training set, or test results are too good. `fit`
therefore takes the split its rows come from and refuses any but training rows; and it remembers which rows it has
seen, so that `transform(rows, split="test")` finds a transformer that was fitted before the split.

What a pretrained backbone expects of its pixels belongs to the checkpoint (`records.Preprocessing`) and is not learnt
here; this is for networks trained from scratch and for features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, OneToOneFeatureMixin, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_array, validate_data

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

BY_CHANNEL = ("image", "channel", "standardise")

MOST_CHANNELS = 4
"""Of a picture. A last axis that is longer, behind a first one of 1 or 3, is a width."""

MAX_WIDTH = 4096
"""Values per row above which principal directions are refused: their matrix would take gigabytes."""

AT_ONCE = 2**21
"""Values that are in double precision at a time while fitting: 16 MB. Images come as bytes, and a copy of all of them
would be eight times as large."""

ROUNDING = 1e-10
"""A standard deviation below this share of the largest value is rounding noise of a constant, which is centred only."""


class WhiteningNotFittedError(OptionError, NotFittedError):  # type: ignore[misc]
    """`transform` before `fit`; scikit-learn's own kind of error as well."""


class Whitening(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Centre, scale, decorrelate or whiten images or feature arrays by the statistics of training data.

    Args:
        kind: A key of `KINDS`.
        components: With "pca" and "pca_whiten": how many directions are kept, at least 1; None keeps all. With "zca"
            how many are whitened; the others are dropped before rotating back.
        ridge: Added to every variance before scaling, in units of the mean variance, >= 0. Whitening divides by
            standard deviations: without it, directions that hold only noise are blown up to variance 1.

    Attributes:
        mean_: What is subtracted: a number per channel, or the mean row.
        scale_: What is divided by (1 where only centred): per channel, feature or direction.
        directions_: (R, D) principal directions; None for the kinds without.
        shape_: Of one row.
        n_features_in_: Values per row.
        feature_names_in_: Column names, where rows were given with names.

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
        width = rows.shape[-1]  # statistics of a channel, or of a feature
        mean: Array = np.zeros(1)
        scale: Array = np.ones(1)
        directions: Array | None = None
        if self.kind in BY_DIRECTION:
            mean, scale, directions = self._fit_directions(rows.reshape(len(rows), -1))
        elif self.kind == "mean_image":
            mean = _mean(rows.reshape(len(rows), -1)).reshape(rows.shape[1:])
        elif self.kind in ("channel", "standardise"):
            values = rows.reshape(-1, width)
            mean = _mean(values)
            if self.kind == "standardise":
                scale = _deviations(_variance(values, mean), largest=_largest(values))
        self.mean_, self.scale_, self.directions_ = mean, scale, directions
        self.shape_, self._given_shape, self._seen = rows.shape[1:], _given_shape(X, rows), _digests(rows)
        if rows.ndim == 2:
            validate_data(self, X, skip_check_array=True)  # names and number of features
        else:
            self.n_features_in_ = int(np.prod(self.shape_))
            self.__dict__.pop("feature_names_in_", None)  # of an earlier fit
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
        shape = (self._n_features_out,) if self._turns else self.shape_
        found = np.empty((len(rows), *shape))
        for part in _parts(rows):
            found[part] = self._apply(rows[part].astype(np.float64))
        return found if self._turns else found.reshape(len(rows), *self._given_shape)

    def _apply(self, rows: Array) -> Array:
        if self.kind == "image":
            return np.asarray(rows - rows.mean(axis=(1, 2), keepdims=True))
        if self.directions_ is None:
            return np.asarray((rows - self.mean_) / self.scale_)
        turned = (rows.reshape(len(rows), -1) - self.mean_) @ self.directions_.T / self.scale_
        return np.asarray(turned if self._turns else (turned @ self.directions_).reshape(rows.shape))

    @property
    def _turns(self) -> bool:
        """Whether what comes out are directions, (N, R), not rows as they came."""
        return self.kind in ("pca", "pca_whiten")

    @property
    def _n_features_out(self) -> int:
        # ClassNamePrefixFeaturesOutMixin asks for it by this name.
        return len(self.directions_) if self._turns and self.directions_ is not None else self.n_features_in_

    def get_feature_names_out(self, input_features: npt.ArrayLike | None = None) -> npt.NDArray[np.object_]:
        """Names of the columns that come out: those that went in, or whitening0, whitening1, ... for directions.

        Args:
            input_features: (D,) names; None takes those of the fit, or x0, x1, ...

        Example:
            >>> Whitening("pca", components=2).fit(np.eye(4)).get_feature_names_out().tolist()
            ['whitening0', 'whitening1']
        """
        self._require_fitted()
        mixin = ClassNamePrefixFeaturesOutMixin if self._turns else OneToOneFeatureMixin
        return np.asarray(mixin.get_feature_names_out(self, input_features), dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "shape_")

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
        values = _as_numbers(X).astype(np.float64)
        expected = (self._n_features_out,) if self._turns else self._given_shape
        if values.shape[1:] != expected:
            raise DataError(f"Expected rows as transform gives them, of shape {expected}, got {values.shape[1:]}.")
        if self.directions_ is None:
            raw = values.reshape(-1, *self.shape_) * self.scale_ + self.mean_
        else:
            turned = values.reshape(len(values), -1)
            turned = turned @ self.directions_.T if self.kind == "zca" else turned
            raw = (turned * self.scale_) @ self.directions_ + self.mean_
        return raw.reshape(-1, *self._given_shape)

    def _check(self, rows: npt.NDArray[Any], split: str | Sequence[str] | None) -> None:
        if self.kind not in KINDS:
            raise OptionError(unknown_name("kind of whitening", self.kind, KINDS))
        ridge: Any = self.ridge
        if not (isinstance(ridge, (float, int, np.number)) and np.isfinite(ridge) and ridge >= 0):
            raise OptionError(f"Whitening.ridge must be finite and >= 0, got {ridge!r}.")
        kept: Any = self.components
        if kept is not None and not (isinstance(kept, (int, np.integer)) and kept >= 1):
            raise OptionError(f"Whitening.components must be >= 1, a whole number, or None, got {kept!r}.")
        if split is None:
            raise DataError("split must name the split of these rows, or of each; leave it out for training rows.")
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
        if (
            self.kind in BY_CHANNEL
            and rows.ndim == 4
            and rows.shape[1] in (1, 3)
            and min(rows.shape[2:]) > MOST_CHANNELS
        ):
            raise DataError(
                f"kind={self.kind!r} takes the last axis for channels, but shape {rows.shape} looks like (N, C, H, W). "
                "Move the channels: np.moveaxis(images, 1, -1)."
            )
        width = int(np.prod(rows.shape[1:]))
        if self.kind in BY_DIRECTION and width > MAX_WIDTH:
            raise OptionError(
                f"kind={self.kind!r} takes rows of up to {MAX_WIDTH:,} values, got {width:,}: make the images "
                "smaller, or use kind='standardise'."
            )

    def _fit_directions(self, flat: npt.NDArray[Any]) -> tuple[Array, Array, Array]:
        """Mean, scale and principal directions."""
        if len(flat) < 2:
            raise DataError(f"Decorrelation needs at least 2 training rows, got n_samples = {len(flat)}.")
        mean = _mean(flat)
        limit = min(flat.shape)
        kept = limit if self.components is None else min(self.components, limit)
        if flat.shape[1] <= len(flat):
            variance, directions = _eigen(_covariance(flat, mean))
        else:
            with np.errstate(invalid="ignore", divide="ignore"):  # shares of a variance of 0
                fitted = PCA(svd_solver="full").fit(flat - mean)
            # scikit-learn divides by N - 1; whitened training rows have variance 1 by N.
            variance, directions = fitted.explained_variance_ * (len(flat) - 1) / len(flat), fitted.components_
        total, variance, directions = variance.sum(), np.maximum(variance[:kept], 0), directions[:kept]
        if self.kind == "pca":
            return mean, np.ones(kept), directions
        softened = np.sqrt(variance + self.ridge * max(total, 0) / flat.shape[1])
        noise = _deviations(variance, largest=np.full(kept, _largest(flat).max()))
        return mean, np.where(noise == 1.0, 1.0, softened), directions

    def _ready(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        self._require_fitted()
        rows = _as_rows(X)
        if len(self.shape_) == 1 and rows.ndim == 2:
            try:
                validate_data(self, X, reset=False, skip_check_array=True)  # as many columns, of the same names
            except ValueError as error:
                raise DataError(f"Rows of shape {self.shape_} were fitted, got {rows.shape[1:]}. {error}") from error
        if rows.shape[1:] != self.shape_:
            raise DataError(f"Rows of shape {self.shape_} were fitted, got {rows.shape[1:]}.")
        return rows

    def _require_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise WhiteningNotFittedError("This Whitening is not fitted. Call fit(training_rows) first.")


def _as_rows(X: npt.ArrayLike) -> npt.NDArray[Any]:
    rows = _as_numbers(X)
    if rows.ndim == 3:
        rows = rows[..., None]  # one grey channel
    if rows.ndim not in (2, 4):
        raise DataError(f"Expected (N, D) features or (N, H, W[, C]) images with N >= 1, got shape {rows.shape}.")
    return rows


def _as_numbers(X: Any) -> npt.NDArray[Any]:
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu()
        X = X.float() if X.dtype == torch.bfloat16 else X  # which NumPy does not have
    try:
        return np.asarray(check_array(X, allow_nd=True))
    except ValueError as error:
        shape = getattr(X, "shape", None)
        came = f"shape {tuple(shape)}" if shape is not None else f"a {type(X).__name__}"
        raise DataError(
            f"Expected finite numbers, (N, D) features or (N, H, W[, C]) images with N >= 1, got {came}. {error}"
        ) from error


def _given_shape(X: Any, rows: npt.NDArray[Any]) -> tuple[int, ...]:
    """Of one row as it came: a grey image may have no axis of channels."""
    return rows.shape[1:-1] if rows.ndim == 4 and np.ndim(X) == 3 else rows.shape[1:]


def _parts(rows: npt.NDArray[Any]) -> Iterator[slice]:
    """Slices of rows of `AT_ONCE` values or less."""
    step = max(1, AT_ONCE // max(1, int(np.prod(rows.shape[1:]))))
    for start in range(0, len(rows), step):
        yield slice(start, start + step)


def _mean(values: npt.NDArray[Any]) -> Array:
    """(D,) of (N, D) values; their sums are exact enough in double precision, and less so in that of the values."""
    return np.asarray(sum(values[part].sum(axis=0, dtype=np.float64) for part in _parts(values)) / len(values))


def _variance(values: npt.NDArray[Any], mean: Array) -> Array:
    # Centred first: sums of squares lose digits where means are large.
    return np.asarray(sum(((values[part] - mean) ** 2).sum(axis=0) for part in _parts(values)) / len(values))


def _covariance(values: npt.NDArray[Any], mean: Array) -> Array:
    """(D, D), by N, of (N, D) values."""
    found = np.zeros((len(mean), len(mean)))
    for part in _parts(values):
        centred = values[part] - mean
        found += centred.T @ centred
    return found / len(values)


def _eigen(covariance: Array) -> tuple[Array, Array]:
    """Variances, largest first, and (D, D) directions as rows, signed as scikit-learn does: the largest entry > 0."""
    variance, vectors = np.linalg.eigh(covariance)
    directions = vectors.T[::-1]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    return variance[::-1], directions * np.where(largest < 0, -1.0, 1.0)


def _largest(values: npt.NDArray[Any]) -> Array:
    """(D,) largest absolute value of each column."""
    low, high = values.min(axis=0).astype(np.float64), values.max(axis=0).astype(np.float64)
    return np.asarray(np.maximum(np.abs(low), np.abs(high)))


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
