"""Calibration of held-back accuracies to accuracies on new images, from earlier tasks.

A held-back accuracy is too high if choices were made by it, and it is uncertain for three reasons: few images were held
back, few were used for training (another draw of them gives another model), and new images may differ in kind from the
training images, depending on the task. The first is binomial. The variance of the other two decreased on earlier tasks
with the root of the images per class, and is described by one number (of the powers 0, 1/4, 1/2, 3/4 and 1, 1/2 was the
likeliest).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from transferkit.decision.belief import Belief

__all__ = ["Calibration", "smoothed_spread"]


def smoothed_spread(accuracy: float, images: float) -> float:
    """Standard deviation of one prediction's correctness, for an accuracy measured on `images` images.

    One correct and one wrong prediction are added (Laplace's rule), so that no error on few images does not imply none.

    Args:
        accuracy: In [0, 1].
        images: >= 1.

    Example:
        >>> round(smoothed_spread(0.5, 100), 2), round(smoothed_spread(1.0, 50), 3)
        (0.5, 0.137)
    """
    share = (accuracy * images + 1) / (images + 2)
    return math.sqrt(share * (1 - share))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Parameters that convert a held-back accuracy to an expected accuracy with a calibrated interval.

    Args:
        optimism: Mean bias of held-back accuracies, in units of `smoothed_spread`.
        task_error: Standard deviation between tasks beyond the binomial error, same units, at one image per class; >=
            0.
        widening: Factor on the error for which 95 % intervals have their nominal coverage; >= 1.
    """

    optimism: float = 0.0
    task_error: float = 0.0
    widening: float = 1.0

    def expect(self, *, accuracy: float, images: float, per_class: float) -> Belief:
        """The expected accuracy on new images.

        Args:
            accuracy: Held-back accuracy, in [0, 1].
            images: Number of held-back images, >= 1.
            per_class: Training images per class, > 0.

        Example:
            >>> found = Calibration(optimism=0.1).expect(accuracy=0.5, images=100, per_class=10)
            >>> round(found.mean, 3), round(found.error, 3)
            (0.45, 0.05)
        """
        spread = smoothed_spread(accuracy, images)
        relative = math.hypot(1 / math.sqrt(images), self.task_error / max(per_class, 1.0) ** 0.25)
        return Belief(mean=accuracy - self.optimism * spread, error=self.widening * spread * relative)
