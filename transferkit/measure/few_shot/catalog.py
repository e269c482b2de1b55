"""The registry of few-shot methods: what each fits to the shots, where, and whether it sees the queries together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt

from transferkit.core.registry import Registry
from transferkit.measure.few_shot.discriminant import shrunk_discriminant
from transferkit.measure.few_shot.nearest_mean import nearest_mean
from transferkit.measure.few_shot.ridge import few_shot_ridge
from transferkit.measure.few_shot.shots import Rows, Shots
from transferkit.measure.few_shot.soft_means import soft_means
from transferkit.measure.few_shot.trained_head import few_shot_logistic, fine_tuned_head

__all__ = ["FEW_SHOT", "FewShotMethod"]


@dataclass(frozen=True, kw_only=True)
class FewShotMethod:
    """One way to tell queries apart by a few shots.

    Args:
        function: Shots and (Q, D) queries -> (Q, K) scores, higher is likelier.
        sentence: What it is.
        features: "joined", all stages in a `FeatureSpace`; or "last", the last one alone.
        transductive: Whether an answer depends on the other queries.
    """

    function: Callable[[Shots, npt.NDArray[Any]], Rows]
    sentence: str
    features: Literal["joined", "last"] = "joined"
    transductive: bool = False


FEW_SHOT: Registry[FewShotMethod] = Registry("few-shot method")

FEW_SHOT.register("last_layer")(
    FewShotMethod(function=nearest_mean, sentence="nearest class mean on the last layer (CL2N)", features="last")
)
FEW_SHOT.register("nearest_mean")(
    FewShotMethod(function=nearest_mean, sentence="nearest class mean on all stages joined")
)
FEW_SHOT.register("discriminant")(
    FewShotMethod(function=shrunk_discriminant, sentence="Gaussians with a shrunk shared covariance")
)
FEW_SHOT.register("ridge")(FewShotMethod(function=few_shot_ridge, sentence="ridge regression"))
FEW_SHOT.register("logistic")(FewShotMethod(function=few_shot_logistic, sentence="logistic regression"))
FEW_SHOT.register("fine_tuned_head")(
    FewShotMethod(function=fine_tuned_head, sentence="a few gradient steps from the nearest class mean")
)
FEW_SHOT.register("soft_means")(
    FewShotMethod(function=soft_means, sentence="class means that the queries take part in", transductive=True)
)
