"""The options of `fewshot`, beside those of opening backbone and images: name, type, default and sentence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transferkit.core.errors import OptionError, list_problems, unknown_name
from transferkit.measure.few_shot import FEW_SHOT
from transferkit.options import PassOptions, option

__all__ = ["BASELINE", "FewShotOptions", "chosen_methods"]

BASELINE = "last_layer"
"""What every method's gain is over."""

ADVISED = (BASELINE, "nearest_mean", "discriminant")


@dataclass(frozen=True, kw_only=True)
class FewShotOptions(PassOptions):
    """The episodes, and the methods that answer them."""

    ways: int = option(5, "Classes in an episode, >= 2.")
    shots: int = option(1, "Labelled images of each class, >= 1.")
    queries: int = option(15, "Images of each class to be told apart, >= 1.")
    episodes: int = option(600, "Number of episodes, >= 2.")
    method: Any = option(
        "auto",
        "auto (last_layer, nearest_mean, discriminant, and with transductive soft_means), all, or names in a list: "
        "last_layer, nearest_mean, discriminant, ridge, logistic, fine_tuned_head, soft_means.",
    )
    prior: Any = option(
        None,
        "Other labelled images, one or a list: their spread within classes teaches which differences do not matter. "
        '"unlabelled": the spread of these images instead, labels unseen, queries among them.',
    )
    imbalance: float | None = option(
        None,
        "Dirichlet parameter of the queries' class shares, such as 2 or, less even, 1; None: as many of each class.",
    )
    transductive: bool = option(False, "Methods may see the queries of an episode together.")

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = [
            f"{name} must be a whole number >= {least}, got {getattr(self, name)!r}."
            for name, least in (("ways", 2), ("shots", 1), ("queries", 1), ("episodes", 2))
            if getattr(self, name) < least
        ]
        if self.imbalance is not None and not 0 < self.imbalance < float("inf"):
            problems.append(f"imbalance must be > 0 and finite, got {self.imbalance!r}. Leave it out for equal shares.")
        if len(problems) == 1:
            raise OptionError(problems[0])
        if problems:
            raise OptionError(list_problems("These episodes cannot be drawn:", problems))
        chosen_methods(self.method, transductive=self.transductive)


def chosen_methods(method: object, *, transductive: bool) -> tuple[str, ...]:
    """Names of the methods, the baseline first.

    Args:
        method: As in `FewShotOptions`.
        transductive: Whether queries may be seen together.

    Raises:
        OptionError: A name is unknown, or a method would see the queries together and may not.

    Example:
        >>> chosen_methods("ridge", transductive=False)
        ('last_layer', 'ridge')
    """
    if method in ("auto", "all"):
        named = ADVISED if method == "auto" else tuple(FEW_SHOT)
        seeing = [name for name in FEW_SHOT if FEW_SHOT[name].transductive]
        return tuple(dict.fromkeys((*(one for one in named if one not in seeing), *(seeing if transductive else ()))))
    names = [method] if isinstance(method, str) else list(method) if isinstance(method, Iterable) else [method]
    for name in names:
        if name not in FEW_SHOT:
            raise OptionError(unknown_name("few-shot method", name, [*FEW_SHOT, "auto", "all"]))
        if FEW_SHOT[str(name)].transductive and not transductive:
            raise OptionError(f"method={name} sees the queries of an episode together. Allow it: transductive=true.")
    return tuple(dict.fromkeys((BASELINE, *map(str, names))))
