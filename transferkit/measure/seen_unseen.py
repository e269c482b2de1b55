"""Accuracy on classes with and without training images, and the penalty that balances the two (calibrated stacking).

A classifier over all classes that was fitted to images of some of them prefers these, the seen classes. A constant that
is taken off their scores moves it along a curve from accuracy on seen classes to accuracy on unseen ones; every point
of that curve follows from one sort of the margins.

References:
    Chao et al., ECCV 2016 (calibrated stacking); Xian et al., CVPR 2017 (harmonic mean of mean accuracies per class).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["DomainAnswers", "SeenUnseen", "harmonic_mean", "score_domains"]

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def harmonic_mean(seen: float, unseen: float) -> float:
    """2 s u / (s + u): as low as the lower one; higher is better.

    Args:
        seen, unseen: Accuracies in [0, 1].

    Example:
        >>> round(harmonic_mean(0.9, 0.1), 2), harmonic_mean(0.5, 0.5), harmonic_mean(0.0, 0.0)
        (0.18, 0.5, 0.0)
    """
    return 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0


@dataclass(frozen=True)
class SeenUnseen:
    """Mean accuracies per class among all classes, on images of seen and of unseen ones, in [0, 1]."""

    seen: float
    unseen: float

    @property
    def harmonic(self) -> float:
        """Their harmonic mean."""
        return harmonic_mean(self.seen, self.unseen)


@dataclass(frozen=True)
class DomainAnswers:
    """The best seen and the best unseen class of M images: what is chosen between them depends on the penalty alone.

    Args:
        labels: (M,) int, the classes.
        is_seen: (M,) whether the label is a seen class.
        inside: (M,) whether the best class of the label's own domain is the label.
        margin: (M,) best score of a seen class minus best score of an unseen one.
        counting: (M,) >= 0, weight of each image within its class.
    """

    labels: Ints
    is_seen: Flags
    inside: Flags
    margin: Floats
    counting: Floats

    def take(self, rows: npt.NDArray[np.integer] | Flags) -> DomainAnswers:
        """The same for some of the images."""
        return DomainAnswers(
            self.labels[rows], self.is_seen[rows], self.inside[rows], self.margin[rows], self.counting[rows]
        )

    @classmethod
    def joined(cls, answers: list[DomainAnswers]) -> DomainAnswers:
        """All of them, one after the other."""
        return cls(
            np.concatenate([one.labels for one in answers]),
            np.concatenate([one.is_seen for one in answers]),
            np.concatenate([one.inside for one in answers]),
            np.concatenate([one.margin for one in answers]),
            np.concatenate([one.counting for one in answers]),
        )

    def right(self, penalty: float = 0.0) -> Flags:
        """(M,) whether the image is classified correctly with this penalty on seen classes."""
        as_seen = self.margin > penalty
        return self.inside & (as_seen == self.is_seen)

    def accuracy(self, penalty: float = 0.0) -> SeenUnseen:
        """Mean accuracies per class with this penalty on the scores of seen classes."""
        right, shares = self.right(penalty), self._shares()
        return SeenUnseen(float(shares[right & self.is_seen].sum()), float(shares[right & ~self.is_seen].sum()))

    @property
    def among_unseen(self) -> float:
        """Mean accuracy per class on images of unseen classes if only these can be chosen."""
        return float(self._shares()[self.inside & ~self.is_seen].sum())

    def best_penalty(self) -> float:
        """The penalty with the highest harmonic mean: the middle of the widest interval between margins that has it.

        Every penalty is one of M + 1 cases, which lie between neighbouring margins.

        Example:
            >>> answers = score_domains(np.array([[3.0, 1.0], [3.0, 2.0]]), np.array([0, 1]), np.array([True, False]))
            >>> answers.best_penalty(), answers.accuracy(0.0).harmonic, answers.accuracy(1.5).harmonic
            (1.5, 0.0, 1.0)
        """
        order = np.argsort(self.margin, kind="stable")
        margins, shares, inside = self.margin[order], self._shares()[order], self.inside[order]
        seen = self.is_seen[order]
        # Case k: the first k images go to unseen classes.
        unseen_right = np.concatenate([[0.0], np.cumsum(shares * (inside & ~seen))])
        seen_share = shares * (inside & seen)
        seen_right = seen_share.sum() - np.concatenate([[0.0], np.cumsum(seen_share)])
        total = seen_right + unseen_right
        harmonic = np.where(total > 0, 2 * seen_right * unseen_right / np.where(total > 0, total, 1), 0.0)
        spread = float(margins[-1] - margins[0]) or 1.0
        edges = np.concatenate([[margins[0] - spread], margins, [margins[-1] + spread]])
        widths = np.diff(edges)
        harmonic[widths <= 0] = -1.0  # equal margins cannot be parted
        top = np.flatnonzero(harmonic >= harmonic.max() - ROUNDING)
        chosen = top[int(np.argmax(widths[top]))]
        return float((edges[chosen] + edges[chosen + 1]) / 2)

    def harmonic_interval(self, penalty: float, *, seed: int = 0, draws: int = 1000) -> tuple[float, float]:
        """95 % bootstrap interval of the harmonic mean over other draws of classes."""
        rng = np.random.default_rng(seed)
        right = self.right(penalty) * self._shares()
        means = []
        for domain in (self.is_seen, ~self.is_seen):
            _, code = np.unique(self.labels[domain], return_inverse=True)
            means.append(np.bincount(code.reshape(-1), weights=right[domain]) * (code.max(initial=0) + 1))
        picked = [mean[rng.integers(0, len(mean), (draws, len(mean)))].mean(axis=1) for mean in means]
        harmonics = [harmonic_mean(float(s), float(u)) for s, u in zip(*picked, strict=True)]
        low, high = np.quantile(harmonics, [0.025, 0.975])
        return float(low), float(high)

    def _shares(self) -> Floats:
        """(M,) weight of each image in its domain's mean accuracy per class; they sum to 1 in each domain."""
        shares = np.zeros(len(self.labels))
        for domain in (self.is_seen, ~self.is_seen):
            if not domain.any():
                continue
            _, code = np.unique(self.labels[domain], return_inverse=True)
            totals = np.bincount(code.reshape(-1), weights=self.counting[domain])
            positive = max(int(np.count_nonzero(totals)), 1)
            shares[domain] = self.counting[domain] / np.where(totals > 0, totals, 1)[code.reshape(-1)] / positive
        return shares


ROUNDING = 1e-12
"""Harmonic means that differ by less are equal: they come from sums in another order."""


def score_domains(
    scores: npt.NDArray[np.floating], labels: Ints, seen: Flags, *, counting: Floats | None = None
) -> DomainAnswers:
    """What a classifier over seen and unseen classes answers, whatever penalty seen classes get.

    Args:
        scores: (M, K) float, higher is more likely.
        labels: (M,) int in [0, K).
        seen: (K,) which classes had training images; at least one class is of each kind.
        counting: (M,) >= 0, weight of each image; None: 1.
    """
    best = []
    for domain in (seen, ~seen):
        among = np.flatnonzero(domain)
        place = scores[:, among].argmax(axis=1)
        best.append((among[place], scores[np.arange(len(scores)), among[place]].astype(np.float64)))
    (seen_class, seen_score), (unseen_class, unseen_score) = best
    is_seen = seen[labels]
    inside = np.where(is_seen, seen_class, unseen_class) == labels
    weights = np.ones(len(labels)) if counting is None else counting
    return DomainAnswers(labels, is_seen, inside, seen_score - unseen_score, weights)
