"""Classes described by attributes: linear classifiers over classes with and without training images, in closed form.

With features X of N images, one-hot labels Y and the table S of class attributes (K rows), two models:

    eszsl   the minimum of |X V S' - Y|^2 + g |V S'|^2 + l |X V|^2 + g l |V|^2, which is the ridge regression of X onto
            the whitened attributes S (S'S + l)^-1 of each image's class; scores are X V S_all'
    dap     a ridge regression of X onto each attribute as -1 or 1; with an even prior the posterior of a class is the
            sum of its attributes' logits, so scores are again linear, X V sign(S_all)'

Both are one linear layer over the features, with a row for every class of the table. Which model, its penalties and the
penalty on seen classes are chosen with seen classes turned unseen: fitted without all their images, and scored on these
and on held-back images of the others, among all of them.

References:
    Lampert et al., CVPR 2009 and TPAMI 2014 (DAP). Deviation: ridge regressions in place of SVMs with Platt scaling,
    binary attributes by the mean of their column.
    Romera-Paredes and Torr, ICML 2015 (ESZSL). Deviation: one-hot targets and a free intercept in place of targets -1
    and 1; attributes are standardised, rows of the table have length 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

from transferkit.core.errors import DataError, OptionError, unknown_name
from transferkit.core.limits import N_SPLITS
from transferkit.measure.quality import fit_temperature
from transferkit.measure.seen_unseen import DomainAnswers, SeenUnseen, score_domains
from transferkit.records import Folds

__all__ = [
    "ATTRIBUTE_METHODS",
    "FEWEST_SEEN",
    "AttributeModel",
    "AttributeSelection",
    "fit_attributes",
    "select_attribute_model",
    "standardise_table",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ATTRIBUTE_METHODS = ("auto", "eszsl", "dap")

FEWEST_SEEN = 3
"""Classes with images that are needed: one is turned unseen, and two are left to tell apart."""

PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Of the features, whose stages have total variance 1 each."""

TABLE_PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Of the attributes, in units of the mean variance of an attribute over the seen classes."""

CLASS_FOLDS = 10
"""Times that classes are turned unseen. With as large a share at a time as unseen classes are of all, the penalty was
too high where there are many: on fonts with four fifths unseen it took the harmonic mean from 80 to 35 %."""


@dataclass(frozen=True)
class AttributeModel:
    """A model and its penalties.

    Args:
        method: "eszsl" or "dap".
        penalty: Of the features, > 0.
        table_penalty: Of the attributes, > 0; without effect on "dap".
    """

    method: str
    penalty: float
    table_penalty: float


@dataclass(frozen=True)
class AttributeSelection:
    """The model that was chosen with seen classes turned unseen, and its accuracy there.

    Args:
        model: With the highest harmonic mean.
        seen_penalty: Taken off the scores of seen classes; 0 if it does not help.
        temperature: That the scores, penalty taken off, are divided by to be logits.
        calibrated, plain: Accuracy with and without the penalty; the images that a figure is from had no say in the
            model and the penalty that it is for.
        low, high: 95 % interval of the calibrated harmonic mean, over other draws of classes.
        among_unseen: Accuracy on the classes turned unseen if only unseen classes can be chosen.
        folds: How many times classes were turned unseen; each class once.
        images: That were held back.
    """

    model: AttributeModel
    seen_penalty: float
    temperature: float
    calibrated: SeenUnseen
    plain: SeenUnseen
    low: float
    high: float
    among_unseen: float
    folds: int
    images: int


def standardise_table(table: npt.NDArray[np.floating]) -> Floats:
    """(K, A) attributes with mean 0 and deviation 1 over the classes, then each row of length 1.

    Args:
        table: (K, A) float; a constant column becomes 0.

    Raises:
        DataError: No column differs between the classes.

    Example:
        >>> standardise_table(np.array([[0.0, 5.0], [1.0, 5.0]])).tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
    """
    table = np.asarray(table, dtype=np.float64)
    spread = table.std(axis=0)
    varies = spread > 1e-9 * np.maximum(np.abs(table).max(axis=0), np.finfo(np.float64).tiny)
    if not varies.any():
        raise DataError("All classes have the same attributes. Add attributes that tell them apart.")
    scaled = np.where(varies, (table - table.mean(axis=0)) / np.where(varies, spread, 1), 0)
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / np.where(lengths > 0, lengths, 1)


def fit_attributes(
    values: npt.NDArray[np.floating],
    labels: Ints,
    table: npt.NDArray[np.floating],
    model: AttributeModel,
    *,
    weights: Floats | None = None,
) -> tuple[Floats, Floats]:
    """A linear classifier over all classes of a table, from images of some of them.

    Args:
        values: (N, R) float features.
        labels: (N,) int in [0, K), rows of the table.
        table: (K, A) float attributes of all classes.
        model: Which one.
        weights: (N,) > 0, one per image; None weighs classes alike.

    Returns:
        Weight (K, R) and bias (K,); scores are in no unit.

    Example:
        >>> table = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=float)  # the last class has no image
        >>> labels = np.repeat([0, 1, 2], 10)
        >>> weight, bias = fit_attributes(table[labels], labels, table, AttributeModel("eszsl", 0.1, 0.1))
        >>> (table @ weight.T + bias).argmax(axis=1).tolist()
        [0, 1, 2, 3]
    """
    solver = _Ridge(values, _balanced(labels) if weights is None else weights)
    return _assemble(solver, labels, table, model)


class _Ridge:
    """Ridge regressions of the same features onto any targets, one factorisation for each penalty.

    Args:
        values: (N, R) float.
        weights: (N,) > 0, one per image.
    """

    def __init__(self, values: npt.NDArray[np.floating], weights: Floats) -> None:
        self._weights = weights / weights.sum()
        self._roots = np.sqrt(weights / weights.mean())[:, None]
        self._mean = self._weights @ values
        self._centred = (values - self._mean) * self._roots
        # With fewer images than features, from the N x N Gram matrix.
        self._is_dual = len(values) < values.shape[1]
        self._gram = self._centred @ self._centred.T if self._is_dual else self._centred.T @ self._centred
        self._factors: dict[float, tuple[Floats, bool]] = {}

    def solve(self, targets: Floats, penalty: float) -> tuple[Floats, Floats]:
        """(R, A) slope and (A,) intercept."""
        if penalty not in self._factors:
            self._factors[penalty] = cho_factor(self._gram + penalty * np.eye(len(self._gram)), check_finite=False)
        centre = self._weights @ targets
        wanted = (targets - centre) * self._roots
        inner = wanted if self._is_dual else self._centred.T @ wanted
        solved = cho_solve(self._factors[penalty], inner, check_finite=False)
        slope = self._centred.T @ solved if self._is_dual else solved
        return slope, centre - self._mean @ slope


def _assemble(
    solver: _Ridge, labels: Ints, table: npt.NDArray[np.floating], model: AttributeModel
) -> tuple[Floats, Floats]:
    signs = np.where(table > table.mean(axis=0), 1.0, -1.0)
    if model.method == "dap":
        targets, rows = signs, signs / table.shape[1]
    else:
        rows = standardise_table(table)
        targets = _whitened(rows, np.unique(labels), model.table_penalty)
    slope, intercept = solver.solve(targets[labels], model.penalty)
    return rows @ slope.T, rows @ intercept


def _whitened(rows: Floats, seen: Ints, penalty: float) -> Floats:
    """(K, A) rows times the inverse of their second moment over the seen classes, with a penalty in its own unit."""
    moment = rows[seen].T @ rows[seen] / len(seen)
    unit = np.trace(moment) / len(moment)
    return np.linalg.solve(moment + penalty * unit * np.eye(len(moment)), rows.T).T


def _balanced(labels: Ints) -> Floats:
    counts = np.bincount(labels)
    return len(labels) / (np.count_nonzero(counts) * counts[labels])


@dataclass(frozen=True)
class _ClassFold:
    """Some seen classes turned unseen.

    Args:
        train: Rows to fit to: images of the other classes.
        test: Rows to score: all images of the classes turned unseen, and held-back ones of the others.
        unseen: (K,) the classes turned unseen, and those without images.
    """

    train: Ints
    test: Ints
    unseen: npt.NDArray[np.bool_]


def _class_folds(folds: Folds, seen: int, classes: int, seed: int) -> Iterator[_ClassFold]:
    """Each class with images is turned unseen once, a tenth of them at a time.

    Few at a time, as a model of half the classes prefers these far more than one of all: the penalty would be too high.
    """
    number = min(seen, CLASS_FOLDS)
    turn = np.full(classes, -1)
    turn[:seen] = np.random.default_rng(seed).permutation(seen) % number
    splits = folds.assign_splits(N_SPLITS, seed=seed)
    for fold in range(number):
        turned = turn == fold
        held_back = turned[folds.labels] | (splits == fold % N_SPLITS)
        train = np.flatnonzero(~held_back & ~np.isin(folds.groups, folds.groups[held_back]))
        left = np.unique(folds.labels[train])
        # A class whose images are all held back would be neither seen nor unseen.
        test = np.flatnonzero(held_back & (turned[folds.labels] | np.isin(folds.labels, left)))
        if len(left) > 1:
            yield _ClassFold(train, test, turned | (turn < 0))


def _candidates(method: str) -> list[AttributeModel]:
    found = []
    if method in ("auto", "eszsl"):
        found += [AttributeModel("eszsl", *pair) for pair in itertools.product(PENALTIES, TABLE_PENALTIES)]
    if method in ("auto", "dap"):
        found += [AttributeModel("dap", penalty, 1.0) for penalty in PENALTIES]
    return found


def _solver(fold: _ClassFold, values: npt.NDArray[np.floating], folds: Folds) -> _Ridge:
    return _Ridge(values[fold.train], _balanced(folds.labels[fold.train]))


def _answer(
    fold: _ClassFold,
    values: npt.NDArray[np.floating],
    folds: Folds,
    table: Floats,
    candidates: Sequence[AttributeModel],
) -> list[DomainAnswers]:
    """What each candidate answers in a fold."""
    solver, labels = _solver(fold, values, folds), folds.labels[fold.test]
    counting = folds.shares[fold.test]
    scores = (_score_fold(fold, values, folds, table, model, solver) for model in candidates)
    return [score_domains(own, labels, ~fold.unseen, counting=counting) for own in scores]


def _score_fold(
    fold: _ClassFold,
    values: npt.NDArray[np.floating],
    folds: Folds,
    table: Floats,
    model: AttributeModel,
    solver: _Ridge,
) -> Floats:
    """(M, K) scores of the fold's test images; classes without training images in it that are not turned get -inf."""
    labels = folds.labels[fold.train]
    weight, bias = _assemble(solver, labels, table, model)
    scores = values[fold.test] @ weight.T + bias
    scores[:, ~fold.unseen & ~np.isin(np.arange(len(table)), labels)] = -np.inf
    return scores


def select_attribute_model(
    values: npt.NDArray[np.floating],
    folds: Folds,
    table: npt.NDArray[np.floating],
    *,
    seen: int,
    method: str = "auto",
    seed: int = 0,
) -> AttributeSelection:
    """Model, penalties and penalty on seen classes, by the harmonic mean with seen classes turned unseen.

    Args:
        values: (N, R) float features.
        folds: Labels of the images, (N,) int in [0, seen), and which of them are held back together.
        table: (K, A) float attributes, classes with images first. The others are not looked at but for their rows:
            they are among the classes that may be chosen, so that there are as many as for the final classifier.
        seen: Number of classes with images.
        method: "auto", "eszsl" or "dap".
        seed: Of the classes that are turned unseen together, and of the images that are held back.

    Raises:
        OptionError: The method is unknown.
        DataError: There are too few classes or images to turn some unseen.
    """
    if method not in ATTRIBUTE_METHODS:
        raise OptionError(unknown_name("method", method, ATTRIBUTE_METHODS))
    described = np.asarray(table, dtype=np.float64)
    if seen < FEWEST_SEEN:
        raise DataError(
            f"Zero-shot learning needs images of at least {FEWEST_SEEN} classes, so that one can be turned unseen to "
            f"see what the attributes are worth; got {seen}."
        )
    made = list(_class_folds(folds, seen, len(table), seed))
    if len(made) < 2:
        raise DataError("Too few images to hold some back in each class. Add images: 2 per class are the least.")
    candidates = _candidates(method)
    by_fold = [_answer(fold, values, folds, described, candidates) for fold in made]
    answers = [[own[number] for own in by_fold] for number in range(len(candidates))]
    nested, penalties = _nested(answers)
    chosen, penalty = _best([DomainAnswers.joined(one) for one in answers])
    plain = nested.accuracy(0.0)
    shifted = DomainAnswers(nested.labels, nested.is_seen, nested.inside, nested.margin - penalties, nested.counting)
    calibrated = shifted.accuracy(0.0)
    if calibrated.harmonic <= plain.harmonic:
        penalty, shifted, calibrated = 0.0, nested, plain
    low, high = shifted.harmonic_interval(0.0, seed=seed)
    return AttributeSelection(
        model=candidates[chosen],
        seen_penalty=penalty,
        temperature=_temperature(made, values, folds, described, candidates[chosen], penalty),
        calibrated=calibrated,
        plain=plain,
        low=low,
        high=high,
        among_unseen=nested.among_unseen,
        folds=len(made),
        images=len(np.unique(np.concatenate([fold.test for fold in made]))),
    )


def _best(answers: Sequence[DomainAnswers]) -> tuple[int, float]:
    """Index of the candidate with the highest harmonic mean, and its penalty."""
    penalties = [one.best_penalty() for one in answers]
    reached = [one.accuracy(penalty).harmonic for one, penalty in zip(answers, penalties, strict=True)]
    best = int(np.argmax(reached))
    return best, penalties[best]


def _nested(answers: Sequence[Sequence[DomainAnswers]]) -> tuple[DomainAnswers, Floats]:
    """Answers in each fold of the candidate that is best in the others, and its penalty there, image by image."""
    kept, penalties = [], []
    for fold in range(len(answers[0])):
        others = [DomainAnswers.joined([one for at, one in enumerate(own) if at != fold]) for own in answers]
        best, penalty = _best(others)
        kept.append(answers[best][fold])
        penalties.append(np.full(len(kept[-1].labels), penalty))
    return DomainAnswers.joined(kept), np.concatenate(penalties)


def _temperature(
    made: Sequence[_ClassFold],
    values: npt.NDArray[np.floating],
    folds: Folds,
    table: Floats,
    model: AttributeModel,
    penalty: float,
) -> float:
    """What held-back scores are divided by to be logits, seen and unseen classes weighing alike."""
    logits, labels, weights = [], [], []
    for fold in made:
        scores = _score_fold(fold, values, folds, table, model, _solver(fold, values, folds))
        floor = scores[np.isfinite(scores)].min() - 1.0
        logits.append(np.where(np.isfinite(scores), scores, floor) - penalty * ~fold.unseen)
        own = folds.labels[fold.test]
        domain = fold.unseen[own]
        labels.append(own)
        weights.append(np.where(domain, 1 / max(domain.sum(), 1), 1 / max((~domain).sum(), 1)))
    return float(fit_temperature(np.concatenate(logits), np.concatenate(labels), np.concatenate(weights)))
