"""A run's training images and new ones -> which stage tells them apart, and what that means for accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from transferkit.records import AccuracyEstimate, ClassShare, Folds, StageShift, UnfamiliarImage
from transferkit.shift.accuracy import Answers, estimate_accuracy
from transferkit.shift.familiarity import fit_familiarity
from transferkit.shift.new_images import NewImages
from transferkit.shift.opinions import Opinions, fit_opinions
from transferkit.shift.proportions import estimate_proportions, match_proportions
from transferkit.shift.reference import Reference
from transferkit.shift.two_sample import ROUNDS, SampleTest, energy_tests, principal_coordinates_of

__all__ = ["CLASSES", "Diagnosed", "compare_images", "find_shift"]

CLASSES = "predicted classes"
"""Name of the test of what the model predicts, beside those of the stages."""

COMPARED = 1_000
"""Images of each side that are tested at most: more would find differences that do not matter."""

FEWEST = 8
"""Images of each side that a test needs: with fewer, permutations are too few or too alike to reject anything."""


@dataclass(frozen=True)
class Diagnosed:
    """What was found.

    Args:
        kind: "none", "classes" or "images".
        stages: Tests, stem -> head, then of the predicted classes.
        classes: Shares of the K classes.
        estimate: Accuracy on the new images.
        p_values: (N,) how familiar each new image is; ones without a witness.
        held_back, new: Answers of the model and of the other heads.
        labels: (M,) of the held-back images.
        proportions: (K,) estimated for the new images.
        opinions: The other heads; None without a witness.
        notes: What could not be measured.
    """

    kind: str
    stages: tuple[StageShift, ...]
    classes: tuple[ClassShare, ...]
    estimate: AccuracyEstimate
    p_values: npt.NDArray[np.float64]
    held_back: Answers
    new: Answers
    labels: npt.NDArray[np.int64]
    proportions: npt.NDArray[np.float64]
    opinions: Opinions | None = None
    notes: tuple[str, ...] = ()

    def unfamiliar(self, items: tuple[str, ...], names: tuple[str, ...], reject: float) -> tuple[UnfamiliarImage, ...]:
        """Images whose p-value is at most `reject`, the strangest first."""
        rows = np.flatnonzero(self.p_values <= reject)
        predicted = self.new.probabilities.argmax(axis=1)
        return tuple(
            UnfamiliarImage(
                item=items[row],
                p_value=float(self.p_values[row]),
                label=names[predicted[row]],
                confidence=float(self.new.probabilities[row, predicted[row]]),
            )
            for row in rows[np.argsort(self.p_values[rows], kind="stable")]
        )


def compare_images(
    reference: Reference,
    new: NewImages,
    *,
    names: tuple[str, ...],
    opinions: Opinions | None = None,
    alpha: float = 0.05,
    seed: int = 0,
) -> Diagnosed:
    """Test for a shift, tell its kind, estimate accuracy on the new images, and how familiar each is.

    Args:
        reference: The run's training images.
        new: The images it is to predict.
        names: Of the K classes.
        opinions: The other heads, if fitted already.
        alpha: Chance of calling equal sets shifted.
        seed: Of samples and permutations.
    """
    scores, folds = reference.scores, reference.folds
    if opinions is None and reference.table is not None:
        opinions = fit_opinions(reference.table, folds, classes=len(names), seed=seed)
    held_back, labels = _held_back_answers(reference, opinions)
    asked = np.empty((0, len(new)), np.int64) if opinions is None else opinions.classify(new.tables)
    answers = Answers(softmax(new.logits, axis=1), asked)
    proportions = estimate_proportions(answers.probabilities, reference.proportions)
    kind, stages, notes = find_shift(reference, new, answers, alpha=alpha, seed=seed)
    right = held_back.probabilities.argmax(axis=1) == labels
    effective = _independent(folds, right, opinions)
    estimate = estimate_accuracy(held_back, labels, answers, kind=kind, effective=effective, seed=seed)
    predicted = np.bincount(answers.probabilities.argmax(axis=1), minlength=len(names)) / len(new)
    training = np.bincount(scores.labels, minlength=len(names)) / len(scores)
    return Diagnosed(
        kind=kind,
        stages=stages,
        classes=tuple(
            ClassShare(name=name, training=float(one), predicted=float(other), estimated=float(min(1.0, share)))
            for name, one, other, share in zip(names, training, predicted, proportions, strict=True)
        ),
        estimate=estimate,
        p_values=_familiarity(reference, new),
        held_back=held_back,
        new=answers,
        labels=labels,
        proportions=proportions,
        opinions=opinions,
        notes=notes,
    )


def _held_back_answers(reference: Reference, opinions: Opinions | None) -> tuple[Answers, npt.NDArray[np.int64]]:
    scores = reference.scores
    probabilities = softmax(np.asarray(scores.logits, np.float64), axis=1)
    if opinions is None:
        return Answers(probabilities, np.empty((0, len(scores)), np.int64)), scores.labels
    chosen = opinions.positions
    return Answers(probabilities[chosen], opinions.held_back), scores.labels[chosen]


def _independent(folds: Folds, right: npt.NDArray[np.bool_], opinions: Opinions | None) -> float:
    known = folds if opinions is None else folds.take(opinions.positions)
    return max(1.0, known.independent(right, known.shares))


def find_shift(
    reference: Reference, new: NewImages, answers: Answers, *, alpha: float = 0.05, rounds: int = ROUNDS, seed: int = 0
) -> tuple[str, tuple[StageShift, ...], tuple[str, ...]]:
    """Kind of shift, the tests, and why there are none.

    Args:
        reference: The run's training images.
        new: The new images.
        answers: What the model says of these.
        alpha: Chance of calling equal sets shifted.
        rounds: Permutations.
        seed: Of samples and permutations.
    """
    proportions = estimate_proportions(answers.probabilities, reference.proportions)
    rng = np.random.default_rng(seed)
    known = reference.independent()
    known = np.sort(rng.permutation(known)[:COMPARED])
    fresh = np.sort(rng.permutation(len(new))[:COMPARED])
    if min(len(known), len(fresh)) < FEWEST:
        few = f"Shift was not tested: that needs {FEWEST} independent images on each side, and there are "
        return "none", (), (f"{few}{len(known)} of training and {len(fresh)} new.",)
    sides = _Sides(reference, new, answers, fresh, rounds)
    tests = sides.test(known, seed=seed)
    if min(test.adjusted for test in tests) > alpha:
        return "none", sides.described(tests, ()), ()
    matched = known[match_proportions(reference.scores.labels[known], proportions, seed=seed)]
    again = sides.test(matched, seed=seed + 1)[:-1] if reference.table is not None else []
    looks_other = any(test.adjusted <= alpha for test in again)
    return "images" if looks_other else "classes", sides.described(tests, again), ()


@dataclass(frozen=True)
class _Sides:
    """Both sides of the tests.

    Args:
        fresh: Positions of the new images that are tested.
        rounds: Permutations.
    """

    reference: Reference
    new: NewImages
    answers: Answers
    fresh: npt.NDArray[np.int64]
    rounds: int

    def test(self, known: npt.NDArray[np.int64], *, seed: int) -> list[SampleTest]:
        """Of each stage, and of the predicted classes last, against these positions of the reference."""
        points, reference = {}, self.reference
        if reference.table is not None:
            table = reference.table.take(known)
            for stage in table.blocks:
                both = np.concatenate([table.load([stage]), self.new.features([stage])[self.fresh]])
                points[stage] = principal_coordinates_of(both)
        classes = reference.scores.logits.shape[1]
        predicted = np.concatenate(
            [
                reference.scores.logits[known].argmax(axis=1),
                self.answers.probabilities[self.fresh].argmax(axis=1),
            ]
        )
        points[CLASSES] = np.eye(classes)[predicted]
        return energy_tests(points, np.arange(len(predicted)) >= len(known), rounds=self.rounds, seed=seed)

    def described(self, tests: list[SampleTest], matched: list[SampleTest] | tuple[()]) -> tuple[StageShift, ...]:
        """As records."""
        again = {test.name: test.adjusted for test in matched}
        stages = max(1, len(tests) - 2)
        return tuple(
            StageShift(
                stage=test.name,
                depth=min(1.0, at / stages),
                effect=min(1.0, test.effect),
                expected=test.expected,
                p_value=test.p_value,
                adjusted=test.adjusted,
                matched=again.get(test.name),
            )
            for at, test in enumerate(tests)
        )


def _familiarity(reference: Reference, new: NewImages) -> npt.NDArray[np.float64]:
    """(N,) p-values by distance at the last stage of the witness."""
    if reference.table is None or len(reference) < FEWEST:
        return np.ones(len(new))
    last = list(reference.table.blocks)[-1:]
    fitted = fit_familiarity(reference.table.load(last), reference.folds.groups)
    return np.concatenate([fitted.p_values(table.load(last)) for table in new.tables])
