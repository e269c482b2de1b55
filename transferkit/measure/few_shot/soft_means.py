"""Class means that the queries take part in: transductive, without a claim about how many queries a class has."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.measure.few_shot.shots import Rows, Shots

__all__ = ["soft_means"]

TEMPERATURE = 40.0
"""Logits per unit of squared distance, for rows of length 1."""

ANCHOR = 3.0
"""How many queries a shot weighs as much as, per shot of its class: a mean of several shots is less in need of help."""

TRUST = 0.5
"""Exponent of the estimated class shares: 1 is EM, in which large classes swallow small ones; 0 expects equal ones."""

KEPT = 0.5
"""Weight of the shots' own means in the answer: where queries cluster by something else than the classes, the refined
means lead astray."""

PSEUDO = 2.0
"""Queries added to each class where its share is estimated."""

ROUNDS = 8


def soft_means(
    shots: Shots, queries: npt.NDArray[Any], *, anchor: float = ANCHOR, trust: float = TRUST, rounds: int = ROUNDS
) -> Rows:
    """Log posteriors after soft k-means over the queries, anchored at the shots; higher is likelier.

    Each round assigns queries softly to the means, then moves every mean to the weighted average of its n shots, each
    of weight `anchor` n, and its queries. Class shares are estimated, and trusted by half: nothing forces them to be
    equal, so that queries of few classes do not fill the others. The answer is given by means half way between the
    refined ones and the shots' own.

    Args:
        shots: Rows of length about 1.
        queries: (Q, D) of the task, all together, prepared like the shots.
        anchor: > 0.
        trust: In [0, 1].
        rounds: >= 0; 0 is the nearest mean.

    Returns:
        (Q, K), rows up to a constant.

    Raises:
        DataError: The queries do not fit the shots.

    References:
        Ren et al., "Meta-learning for semi-supervised few-shot classification", ICLR 2018 (soft k-means); Veilleux et
        al., "Realistic evaluation of transductive few-shot learning", NeurIPS 2021 (alpha-TIM: methods with a uniform
        marginal collapse where query classes are drawn from a Dirichlet). Deviations: shots weigh more than queries,
        half the way back is taken at the end, and the marginal enters with the
        exponent `trust` instead of an alpha-divergence.

    Example:
        >>> shots = Shots(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0, 1]))
        >>> soft_means(shots, np.array([[0.8, 0.6], [0.9, 0.4]])).argmax(axis=1).tolist()
        [1, 1]
    """
    wide, own = shots.check_queries(queries), shots.means
    held = anchor * shots.counts[:, None].astype(np.float64) ** 2
    means, prior = own, np.zeros(len(own))
    for _ in range(rounds):
        logits = _logits(wide, means) + prior
        soft = np.exp(logits - logits.max(axis=1, keepdims=True))
        soft /= soft.sum(axis=1, keepdims=True)
        sizes = soft.sum(axis=0)
        means = (held * own + soft.T @ wide) / (held + sizes[:, None])
        prior = trust * np.log((sizes + PSEUDO) / (sizes.sum() + PSEUDO * len(sizes)))
    return _logits(wide, KEPT * own + (1 - KEPT) * means) + prior


def _logits(queries: Rows, means: Rows) -> Rows:
    return np.asarray(TEMPERATURE * (2 * queries @ means.T - (means**2).sum(axis=1)))
