"""Metrics of a model that predicts several labels per image, or numbers, on one split."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.records._checks import require, require_share
from transferkit.records.targets import MEASURES_OF

__all__ = ["LabelMetrics", "LabelScore", "NumberMetrics", "NumberScore"]


@dataclass(frozen=True, kw_only=True)
class LabelScore:
    """One label on one split.

    Args:
        name: Of the label.
        positives: Images with it.
        average_precision: In [0, 1]; chance is the share of images with the label. None if no image has it.
        low, high: 95 % interval of it, groups of images resampled; None likewise.
        threshold: Probability from which on it is given.
        precision: Share of the images that are given it which have it; None if none is given it.
        recall: Share of the images with it which are given it; None if no image has it.
    """

    name: str
    positives: int
    average_precision: float | None
    low: float | None
    high: float | None
    threshold: float
    precision: float | None
    recall: float | None

    def __post_init__(self) -> None:
        for name in ("average_precision", "precision", "recall"):
            if getattr(self, name) is not None:
                require_share("LabelScore", name, getattr(self, name))

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; None if unknown."""
        if self.recall is None:
            return None
        precision = self.precision or 0.0
        return 2 * precision * self.recall / (precision + self.recall) if precision + self.recall else 0.0


@dataclass(frozen=True, kw_only=True)
class LabelMetrics:
    """Metrics of predicted labels on one split.

    Args:
        images: N.
        mean_average_precision: Mean over the labels that some image has, in [0, 1].
        low, high: 95 % interval of it, groups of images resampled.
        f1: F1 of all decisions together (micro), in [0, 1].
        exact: Share of the images whose labels are all right, in [0, 1].
        log_loss: Binary cross-entropy in nats, mean over images and labels, >= 0.
        calibration_error: Mean gap between probability and share of images with the label over 15 equal-mass bins of
            all decisions, in [0, 1].
        labels: Each label.
    """

    images: int
    mean_average_precision: float
    low: float
    high: float
    f1: float
    exact: float
    log_loss: float
    calibration_error: float
    labels: tuple[LabelScore, ...]

    def __post_init__(self) -> None:
        for name in ("mean_average_precision", "f1", "exact", "calibration_error"):
            require_share("LabelMetrics", name, getattr(self, name))

    @property
    def score(self) -> float:
        """The mean average precision."""
        return self.mean_average_precision

    @property
    def measure(self) -> str:
        """What `score` is."""
        return MEASURES_OF["multi_label"]


@dataclass(frozen=True, kw_only=True)
class NumberScore:
    """One number on one split.

    Args:
        name: Of the number.
        r2: Share of its variance that is explained, at most 1; None if it does not vary.
        low, high: 95 % interval of it, groups of images resampled; None likewise.
        mae, rmse: Mean absolute error, and root of the mean squared error, in its unit, >= 0.
        bias: Mean of predicted minus true, in its unit.
    """

    name: str
    r2: float | None
    low: float | None
    high: float | None
    mae: float
    rmse: float
    bias: float


@dataclass(frozen=True, kw_only=True)
class NumberMetrics:
    """Metrics of predicted numbers on one split.

    Args:
        images: N.
        r2: Mean over the numbers that vary of the share of variance that is explained, at most 1; below 0 is worse than
            predicting the mean.
        low, high: 95 % interval of it, groups of images resampled.
        numbers: Each number.
    """

    images: int
    r2: float
    low: float
    high: float
    numbers: tuple[NumberScore, ...]

    def __post_init__(self) -> None:
        require(self.r2 <= 1, f"NumberMetrics.r2 must be at most 1, got {self.r2!r}.")

    @property
    def mae(self) -> float:
        """Mean absolute error, mean over the numbers."""
        return sum(one.mae for one in self.numbers) / len(self.numbers)

    @property
    def rmse(self) -> float:
        """Root of the mean squared error, mean over the numbers."""
        return sum(one.rmse for one in self.numbers) / len(self.numbers)

    @property
    def score(self) -> float:
        """R2."""
        return self.r2

    @property
    def measure(self) -> str:
        """What `score` is."""
        return MEASURES_OF["regression"]
