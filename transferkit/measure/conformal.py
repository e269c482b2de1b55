"""Prediction sets: for each image the classes among which the true one is, with a stated coverage.

Calibrated on scores of images that were held back from the fit. Where those come from exact leave-one-out, no image is
spent on calibration and nothing is fitted again (the jackknife of conformal prediction).

What holds: if the images are exchangeable with those that will be predicted, and the scores of an image do not depend
on whether it was held back, the true class is in the set with probability >= coverage, averaged over images and over
draws of the training images. Leave-one-out scores come from a fit with slightly fewer images than the model returned,
so the second condition holds approximately, and on the safe side where more images make scores better. The bound that
holds in every case, of the jackknife+ with coverage 1 - a, is 1 - 2 a.

What does not hold: coverage within a class, within a group, or for a single image; and any coverage after a shift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import OptionError, unknown_name
from transferkit.records import HeldBackScores, HeldOut, SetSummary

__all__ = ["SET_SCORES", "ConformalSets", "check_coverage", "fit_sets", "set_scores", "summarise_sets"]

SET_SCORES = ("lac", "aps", "raps")
"""Scores that decide which classes enter a set."""

RAPS_WEIGHT, RAPS_FREE = 0.01, 5
"""Penalty per rank, and the number of ranks without one: the values that Angelopoulos et al. recommend for ImageNet."""

SHOWN_COVERAGES = (0.8, 0.9, 0.95)
"""In the report."""

Array = npt.NDArray[np.float64]


def check_coverage(coverage: float) -> None:
    """Check that a coverage is a number in (0, 1).

    Raises:
        OptionError: It is not.
    """
    is_number = isinstance(coverage, (int, float, np.floating)) and not isinstance(coverage, bool)
    if not is_number or not 0 < coverage < 1:
        raise OptionError(
            f"coverage is the share of images whose set is to contain the true class, in (0, 1): 0.9 is 90 %. Got "
            f"{coverage!r}."
        )


def set_scores(
    probabilities: npt.NDArray[np.floating], *, score: str = "lac", rng: np.random.Generator | None = None
) -> Array:
    """(N, K) how badly each class fits each image; lower fits better.

    Args:
        probabilities: (N, K), rows sum to 1.
        score: "lac", 1 - probability: the smallest sets on average. "aps", the probability of all classes down to this
            one: sets that grow more with an image's difficulty. "raps", the same plus a penalty for each rank below the
            fifth: fewer very large sets.
        rng: For "aps" and "raps", draws the part of the class's own probability that counts, once per image; None
            counts all of it, which makes sets larger than they need to be.

    Raises:
        OptionError: The score is unknown.

    References:
        Sadinle, Lei and Wasserman, JASA 2019 (lac); Romano, Sesia and Candes, NeurIPS 2020 (aps); Angelopoulos et al.,
        ICLR 2021 (raps).

    Example:
        >>> set_scores(np.array([[0.7, 0.1, 0.2]]), score="aps").round(1).tolist()
        [[0.7, 1.0, 0.9]]
    """
    if score not in SET_SCORES:
        raise OptionError(unknown_name("score of prediction sets", score, SET_SCORES))
    known = np.asarray(probabilities, dtype=np.float64)
    if score == "lac":
        return 1 - known
    order = np.argsort(-known, axis=1, kind="stable")
    ranked = np.take_along_axis(known, order, axis=1)
    own = 1.0 if rng is None else rng.random((len(known), 1))
    found = np.cumsum(ranked, axis=1) - (1 - own) * ranked
    if score == "raps":
        found = found + RAPS_WEIGHT * np.maximum(0, np.arange(1, known.shape[1] + 1) - RAPS_FREE)
    scores = np.empty_like(known)
    np.put_along_axis(scores, order, found, axis=1)
    return scores


@dataclass(frozen=True, kw_only=True)
class ConformalSets:
    """A rule that makes prediction sets of probabilities.

    Args:
        coverage: Stated share of images whose set contains the true class, in (0, 1).
        threshold: Classes whose score is at most this enter the set; infinite if there were too few images.
        images: Number of images that it was calibrated on.
        score: One of `SET_SCORES`.
    """

    coverage: float
    threshold: float
    images: int
    score: str = "lac"

    def sets(
        self,
        probabilities: npt.NDArray[np.floating],
        *,
        rng: np.random.Generator | None = None,
        allow_empty: bool = False,
    ) -> npt.NDArray[np.bool_]:
        """(N, K) whether each class is in the set of each image.

        Args:
            probabilities: (N, K), rows sum to 1, from the model that was calibrated.
            rng: As for `set_scores`.
            allow_empty: Whether a set may be empty. Otherwise the most probable class is always in it, so that where
                the model's accuracy is above the stated coverage, the coverage is at least the accuracy.
        """
        chosen = set_scores(probabilities, score=self.score, rng=rng) <= self.threshold
        if not allow_empty and len(chosen):
            chosen[np.arange(len(chosen)), np.argmax(probabilities, axis=1)] = True
        return chosen


def fit_sets(
    probabilities: npt.NDArray[np.floating],
    labels: npt.NDArray[np.int64],
    *,
    coverage: float,
    score: str = "lac",
    rng: np.random.Generator | None = None,
) -> ConformalSets:
    """The rule whose sets contain the true class for `coverage` of new images.

    Args:
        probabilities: (M, K) of images that were held back from the fit, each while it was held back.
        labels: (M,) int in [0, K).
        coverage: In (0, 1).
        score: One of `SET_SCORES`.
        rng: As for `set_scores`.

    Returns:
        A rule whose threshold is the ceil((M + 1) coverage)-th smallest score of a true class; if that is beyond M,
        there are too few images, and every set contains all classes.

    Raises:
        OptionError: The coverage is not in (0, 1), or the score is unknown.

    References:
        Vovk, Gammerman and Shafer, 2005. Barber, Candes, Ramdas and Tibshirani, Annals of Statistics 2021, for what
        leave-one-out scores guarantee. Deviation: the full model's scores are compared with the leave-one-out ones
        (their jackknife), not those of N models (their jackknife+).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(0, 3, 2_000)
        >>> noisy = rng.normal(size=(2_000, 3)) + 1.5 * np.eye(3)[labels]
        >>> known = np.exp(noisy) / np.exp(noisy).sum(axis=1, keepdims=True)
        >>> rule = fit_sets(known[:1_000], labels[:1_000], coverage=0.9)
        >>> float(rule.sets(known[1_000:])[np.arange(1_000), labels[1_000:]].mean().round(1))
        0.9
    """
    check_coverage(coverage)
    true = np.sort(set_scores(probabilities, score=score, rng=rng)[np.arange(len(labels)), labels])
    # Rounded first: 0.9 * 10 is 9.000000000000002 in some products.
    rank = math.ceil(round((len(true) + 1) * float(coverage), 9))
    threshold = math.inf if rank > len(true) else float(true[rank - 1])
    return ConformalSets(coverage=float(coverage), threshold=threshold, images=len(true), score=score)


def summarise_sets(scores: HeldBackScores | None, answers: HeldOut | None) -> tuple[SetSummary, ...]:
    """Coverage and size of the sets of a run, at `SHOWN_COVERAGES`.

    Args:
        scores: Of the images that were held back; None leaves nothing to calibrate on, and gives no rows.
        answers: The model's probabilities on a split that nothing was chosen on; None if there is none.
    """
    if scores is None or not len(scores):
        return ()
    probabilities, labels = scores.probabilities, scores.labels
    found = []
    for coverage in SHOWN_COVERAGES:
        rule = fit_sets(probabilities, labels, coverage=coverage)
        sets = rule.sets(probabilities)
        tested = None if answers is None else rule.sets(answers.probabilities)
        found.append(
            SetSummary(
                coverage=coverage,
                images=len(labels),
                held_back_coverage=_hit_share(sets, labels),
                held_back_size=float(sets.sum(axis=1).mean()),
                tested_coverage=None if answers is None or tested is None else _hit_share(tested, answers.labels),
                tested_size=None if tested is None else float(tested.sum(axis=1).mean()),
            )
        )
    return tuple(found)


def _hit_share(sets: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64]) -> float:
    return float(sets[np.arange(len(labels)), labels].mean())
