"""Options of what is chosen, how it is trained, and where it goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, TypeVar

from transferkit.core.errors import OptionError, unknown_name
from transferkit.core.limits import check_limit
from transferkit.options.fields import check_values, option
from transferkit.options.passes import PassOptions
from transferkit.options.recipe import Recipe

__all__ = ["AdaptOptions", "FitOptions", "ReviewOptions", "options_from"]

AUTO = "auto"

ENSEMBLES = ("none", AUTO)

T = TypeVar("T")


def _check_trainer(value: object) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise OptionError(f"trainer must be options by name, such as {{'precision': 'bf16-mixed'}}, got {value!r}.")


def _check_budget(value: object) -> None:
    if value is None or value == AUTO:
        return
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise OptionError(
            f"budget must be > 0 seconds, or auto, got {value!r}. Leave it out for no limit; budget=60 is a minute."
        )


def _check_ensemble(value: object) -> None:
    if value not in ENSEMBLES:
        raise OptionError(unknown_name("ensemble", value, ENSEMBLES))


def _check_stages(value: object) -> None:
    if value == AUTO:
        raise OptionError("stage= and unfreeze= take no 'auto': leave them out, and the stages are chosen.")


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What is chosen, how it is trained, and where it goes."""

    strategy: str = option(
        "auto",
        "auto decides; a name is done as asked: linear_probe, few_layers (the last stages), many_layers, lp_ft (most, "
        "from a solved head), surgical, norm_only, bias_only, lora, and with unlabelled images fixmatch, dann.",
    )
    stage: Any = option(
        None,
        "With a named strategy: the stage that the head reads, a name or an index. joined reads all stages, selected "
        "their useful features; None: the best probe measured, or the last.",
        check=_check_stages,
    )
    unfreeze: Any = option(
        None,
        "With lp_ft, few_layers, many_layers, surgical, fixmatch or dann: the stages to train, by name, or a number K "
        "for the last K; None: the strategy's default.",
        check=_check_stages,
    )
    mode: str = option(
        "evidence",
        "How auto decides: evidence (measured), search (fine-tuning is tried on held-back images before it is chosen), "
        "rule (the textbook's matrix of data size and similarity).",
    )
    norm: str = option(
        "auto",
        "Batch normalisation during fine-tuning: frozen, keep (statistics go on being measured), or the kind to swap "
        "it for (group, renorm, ...), which is refused where features get worse; auto decides.",
    )
    budget: Any = option(
        None,
        "Seconds for everything after the first frozen pass: further views (half of it at most), then the fit, in "
        "mode=search all trials; training ends at an epoch if it must. auto: twice the time must gain a point; None: "
        "no limit.",
        check=_check_budget,
    )
    head: str = option("auto", "ridge, logistic, average, or auto: their average unless one is clearly better.")
    ensemble: str = option(
        "none",
        "auto averages heads on several stages where that is better held back.",
        check=_check_ensemble,
    )
    train: Recipe | None = option(
        None, "How networks are fine-tuned: a `Recipe`, or some of its values by name, {'epochs': 10}."
    )
    trainer: Any = option(None, "Options of Lightning's trainer: {'precision': 'bf16-mixed'}.", check=_check_trainer)
    unlabelled: Any = option(
        None,
        "A folder of images without labels: fixmatch and dann train on them, a probe uses them if held-back "
        "accuracy rises.",
    )
    teacher: Any = option(
        None,
        "Folder of a finished run or ensemble that answers for the unlabelled images, so that a probe learns what it "
        "knows (distillation).",
    )
    out: Any = option(None, "Folder for model, result and report; None writes nothing (`Result.save` does it later).")
    resume: Any = option("auto", "auto: an interrupted run in out is resumed, to the same weights; false starts over.")
    overwrite: bool = option(False, "Replace a finished run of other settings in out; one of the same always is.")
    evaluate: Any = option(
        "auto",
        "auto: the test images are scored once, at the end (not in a sweep); false leaves that to `Result.evaluate` or "
        "transferkit evaluate.",
    )

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def budget_seconds(self) -> float | None:
        """The budget as a limit; None if there is none."""
        return None if self.budget is None or self.budget == AUTO else float(self.budget)

    @property
    def recipe(self) -> Recipe:
        """How networks are fine-tuned, all defaults filled in."""
        return Recipe() if self.train is None else self.train


@dataclass(frozen=True, kw_only=True)
class AdaptOptions(FitOptions, PassOptions):
    """All options of `adapt`; those of `analyze`, `decide` and `rank` are among them."""

    def __post_init__(self) -> None:
        PassOptions.__post_init__(self)  # which looks at all fields


@dataclass(frozen=True, kw_only=True)
class ReviewOptions:
    """How much `doctor labels` and `doctor images` list; no other verb takes these."""

    limit: int = option(
        1000, "Doubtful labels, or pairs of copies and outliers, to list at most, the worst first.", check=check_limit
    )


def options_from(kind: type[T], arguments: Mapping[str, Any]) -> T:
    """The options among a function's arguments.

    Args:
        kind: Which options.
        arguments: Name -> value; what is missing has its default, what is no option of that kind is left out.

    Raises:
        OptionError: A value has the wrong type or is out of its range.
    """
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    given = {name: value for name, value in arguments.items() if name in known}
    train = given.get("train")
    if isinstance(train, Mapping):
        given["train"] = Recipe.named(train)
    elif train is not None and not isinstance(train, Recipe):
        raise OptionError(f"train must be a Recipe or its values by name, such as {{'epochs': 10}}, got {train!r}.")
    return kind(**given)
