"""How far held-back accuracies are from accuracies on new images, as earlier tasks showed.

A held-back accuracy is too high where choices were made by it, and it is uncertain for three reasons: few images were
held back, few were learnt from (another draw of them gives another model), and new images differ in kind from the
training ones, by task. The first is binomial. The variance of the other two shrank on earlier tasks with the root of
the images per class, and is told by one number (of the powers 0, 1/4, 1/2, 3/4 and 1 a half was the likeliest).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from transferkit.decision.belief import Belief

__all__ = ["Calibration", "smoothed_spread"]


def smoothed_spread(accuracy: float, images: float) -> float:
    """Standard deviation of whether one answer is right, of an accuracy that so many images told.

    One right and one wrong answer are added (Laplace's rule), so that no mistake on few images does not count as none
    at all.

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
    """What makes a held-back accuracy an expected accuracy with an honest interval.

    Args:
        optimism: How much too high held-back accuracies were, in units of the spread of an answer.
        task_error: How far tasks were apart beyond the binomial error, in the same units, at one image per class; >= 0.
        widening: What the error is multiplied by so that 95 % intervals cover; >= 1.
    """

    optimism: float = 0.0
    task_error: float = 0.0
    widening: float = 1.0

    def expect(self, *, accuracy: float, images: float, per_class: float) -> Belief:
        """The accuracy on new images to expect.

        Args:
            accuracy: Held-back accuracy, in [0, 1].
            images: How many were held back, >= 1.
            per_class: Training images per class, > 0.

        Example:
            >>> found = Calibration(optimism=0.1).expect(accuracy=0.5, images=100, per_class=10)
            >>> round(found.mean, 3), round(found.error, 3)
            (0.45, 0.05)
        """
        spread = smoothed_spread(accuracy, images)
        relative = math.hypot(1 / math.sqrt(images), self.task_error / max(per_class, 1.0) ** 0.25)
        return Belief(mean=accuracy - self.optimism * spread, error=self.widening * spread * relative)
