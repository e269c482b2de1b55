"""Weights of finished runs averaged into one network, as far as labelled images that none was trained on say."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from transferkit.core.errors import OptionError, list_problems
from transferkit.nn import Classifier
from transferkit.records import Metrics
from transferkit.result import Result

__all__ = ["WEIGHT_METHODS", "average_weights"]

WEIGHT_METHODS = ("soup", "wise")

STEPS = 10
"""Mixtures between the two runs of WiSE-FT, beside the first."""

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class _Scored:
    """Weights, what they are called, and their metrics on the images that decide."""

    name: str
    state: State
    metrics: Metrics

    @property
    def rank(self) -> tuple[float, float]:
        return self.metrics.accuracy, -self.metrics.log_loss


def average_weights(
    members: Sequence[Result], names: Sequence[str], *, method: str, val: Any
) -> tuple[Result, tuple[str, ...]]:
    """One network from several of the same shape, and sentences about it; never less than the best run on `val`.

    Means and variances of batch normalisation are averaged as weights are.

    Args:
        members: Runs of the same backbone, whose heads read the same stages.
        names: What they are called in messages.
        method: "soup": runs are added to an average, the best first, while accuracy does not fall. "wise": the mixture
            (1 - a) * first + a * second, a in tenths.
        val: Labelled images that no run was trained on; None: the runs' own validation split.

    Raises:
        OptionError: The networks do not have the same weights, or "wise" was given another number than two.
        DataError: The images cannot be used, or a run was trained on some of them.

    References:
        Wortsman et al., Model soups, ICML 2022 (greedy soup); Wortsman et al., Robust fine-tuning, CVPR 2022 (WiSE-FT).
        Deviation: the mixture is chosen on `val`, where the paper recommends a = 0.5 without a choice.
    """
    _check(members, names, method)
    own = [
        _Scored(name, one.model.state_dict(), _score(one.model, members[0], val))
        for one, name in zip(members, names, strict=True)
    ]
    tried = _mixtures(own, members[0], val) if method == "wise" else [_greedy_soup(own, members[0], val)]
    best = max(own, key=lambda one: one.rank)
    chosen = max([best, *tried], key=lambda one: one.rank)  # a run itself where a mixture is no better
    number = own.index(best)
    said = (
        f"{chosen.name}: {_figures(chosen)} on {chosen.metrics.images:,} images that no run was trained on, and that "
        f"this was chosen on; the best single run, {best.name}: {_figures(best)}.",
        "Weights were averaged, normalisation statistics with them: predicting costs what one run costs."
        if chosen is not best
        else f"No average of weights is better: {best.name} is returned.",
    )
    if chosen is best:
        return members[number], said
    return _as_result(members[number], chosen, said), said


def _check(members: Sequence[Result], names: Sequence[str], method: str) -> None:
    problems = []
    if method == "wise" and len(members) != 2:
        problems.append(f"method=wise mixes two runs, the frozen one and the fine-tuned one, got {len(members)}")
    first = members[0].model.state_dict()
    for one, name in zip(members[1:], names[1:], strict=True):
        state = one.model.state_dict()
        differing = sorted(
            key for key in first.keys() | state.keys() if key not in first or key not in state
            or first[key].shape != state[key].shape
        )  # fmt: skip
        if one.classes != members[0].classes:
            problems.append(f"{name} has other classes than {names[0]}")
        elif one.task != "single_label":
            problems.append(f"{name} has task={one.task}; only runs with one class per image are averaged")
        elif differing:
            problems.append(
                f"{name} has other weights than {names[0]} ({len(differing)}, such as {differing[0]}): weights are "
                "averaged where backbone and stages that the head reads are the same; method=average takes any runs"
            )
        elif one.preprocessing != members[0].preprocessing:
            problems.append(f"{name} reads images with another preprocessing than {names[0]}")
    if problems:
        raise OptionError(list_problems("The weights of these runs cannot be averaged:", problems))


def _greedy_soup(own: Sequence[_Scored], like: Result, val: Any) -> _Scored:
    ranked = sorted(own, key=lambda one: one.rank, reverse=True)
    soup, inside = ranked[0], [ranked[0]]
    for one in ranked[1:]:
        mean = _mean([*inside, one], [1 / (len(inside) + 1)] * (len(inside) + 1))
        name = "soup of " + ", ".join(each.name for each in [*inside, one])
        tried = _Scored(name, mean, _score(_filled(like, mean), like, val))
        if tried.metrics.accuracy >= soup.metrics.accuracy:
            soup, inside = tried, [*inside, one]
    return soup


def _mixtures(own: Sequence[_Scored], like: Result, val: Any) -> list[_Scored]:
    found = []
    for step in range(1, STEPS):
        share = step / STEPS
        mean = _mean(own, [1 - share, share])
        name = f"{1 - share:.1f} of {own[0].name} and {share:.1f} of {own[1].name}"
        found.append(_Scored(name, mean, _score(_filled(like, mean), like, val)))
    return found


def _mean(parts: Sequence[_Scored], shares: Sequence[float]) -> State:
    """The weighted mean of each tensor in double precision; counters are those of the first."""
    mean = dict(parts[0].state)
    for key, tensor in mean.items():
        if tensor.is_floating_point():
            scaled = [share * one.state[key].double() for one, share in zip(parts, shares, strict=True)]
            mean[key] = torch.stack(scaled).sum(dim=0).to(tensor.dtype)
    return mean


def _filled(like: Result, state: State) -> Classifier:
    model = copy.deepcopy(like.model)
    model.load_state_dict(dict(state))
    return model.eval()


def _score(model: Classifier, like: Result, val: Any) -> Metrics:
    unscored = Result(model, replace(like.record, metrics={}))
    found = unscored.evaluate(val, split="val", progress=False)
    assert isinstance(found, Metrics)
    return found


def _figures(one: _Scored) -> str:
    return f"{100 * one.metrics.accuracy:.1f} % (log loss {one.metrics.log_loss:.3f})"


def _as_result(best: Result, chosen: _Scored, said: tuple[str, ...]) -> Result:
    """The averaged network with the best run's record, less what was true of that run only."""
    record = best.record
    decision = replace(record.decision, reasons=(*record.decision.reasons, *said))
    averaged = replace(
        record,
        decision=decision,
        metrics={"val": chosen.metrics},
        held_out=None,
        mistakes=(),
        held_back_accuracy=None,
        prediction_sets=(),
        settings={**record.settings, "averaged": chosen.name},
    )
    return Result(_filled(best, chosen.state), averaged)
