"""A hyperparameter search: what was searched, each trial, and the best point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transferkit.records._checks import require
from transferkit.records.data import DataSummary
from transferkit.records.intervention import Intervention
from transferkit.records.retest import Retest

__all__ = ["STATES", "TuningRecord", "TuningTrial"]

STATES = ("complete", "pruned", "failed")


@dataclass(frozen=True, kw_only=True)
class TuningTrial:
    """One point that was tried.

    Args:
        number: From 0, in the order of the search.
        stage: Name of the search's stage.
        is_full: Whether it is comparable with the best: trained for all epochs, on as many folds.
        values: Setting, as on the command line -> value; what is missing is as advised.
        state: One of `STATES`.
        accuracy: On the held-back images, of the network alone, in [0, 1]; None unless complete.
        log_loss: On the held-back images, nats; None unless complete.
        kept: Accuracy of what `adapt` would return: probe, network or their average; None unless complete.
        epochs: Number of epochs trained for; 0 if unknown.
        seconds: Wall-clock.
        error: Why it failed; "" if it did not.
    """

    number: int
    stage: str
    is_full: bool
    values: Mapping[str, Any]
    state: str
    accuracy: float | None = None
    log_loss: float | None = None
    kept: float | None = None
    epochs: int = 0
    seconds: float = 0.0
    error: str = ""

    def __post_init__(self) -> None:
        require(self.state in STATES, f"TuningTrial.state must be one of {', '.join(STATES)}, got {self.state!r}.")

    @property
    def rank(self) -> tuple[float, float, int]:
        """Sorts the better first: higher accuracy, then lower loss."""
        accuracy = -1.0 if self.accuracy is None else self.accuracy
        return -accuracy, 0.0 if self.log_loss is None else self.log_loss, self.number


@dataclass(frozen=True, kw_only=True)
class TuningRecord:
    """A hyperparameter search and its outcome.

    Args:
        data: The images; the test images were not looked at.
        backbone: Name of the network.
        strategy: That was tuned; a linear probe has no epochs.
        space: Setting -> its range in words.
        log_scaled: Those of them that were searched on a log scale.
        importance: Setting -> share of the differences in accuracy that it explains, in [0, 1], highest first; empty
            if there are too few trials.
        sampler: How points were chosen.
        pruner: How poor trials were ended early.
        trials: All, in the order of the search.
        probe: Held-back accuracy of the linear probe that is advised; None if no trial was completed.
        images: Held-back images that trials in full were judged on.
        base: Settings that all trials share and that differ from the defaults, within `train`.
        storage, study: Where the search is kept, to go on with it; "" for memory.
        style: "caviar": many points; "panda": one training, changed where its curves ask for it.
        why_style: A sentence: why that style, with numbers; "" if it was asked for.
        interventions: What was changed in a babysat training, in its order.
        shape: Height and width of the network's input, in pixels; None if not recorded.
        retest: Whether the best point still was the best when it was measured again; None if it was not.
        command: What makes the search again; "" if not recorded.
        environment: Versions, machine and seed.
        seconds: Wall-clock of this process, in all.
    """

    data: DataSummary
    backbone: str
    strategy: str
    space: Mapping[str, str]
    log_scaled: tuple[str, ...] = ()
    importance: Mapping[str, float] = field(default_factory=dict)
    sampler: str
    pruner: str
    trials: tuple[TuningTrial, ...]
    probe: float | None = None
    images: int = 0
    base: Mapping[str, Any] | None = None
    storage: str = ""
    study: str = ""
    style: str = "caviar"
    why_style: str = ""
    interventions: tuple[Intervention, ...] = ()
    shape: tuple[int, int] | None = None
    retest: Retest | None = None
    command: str = ""
    environment: Mapping[str, Any] | None = None
    seconds: float = 0.0

    @property
    def ranked(self) -> tuple[TuningTrial, ...]:
        """Complete trials that were trained in full, best first; if there is none, all complete ones."""
        complete = [one for one in self.trials if one.state == "complete"]
        return tuple(sorted([one for one in complete if one.is_full] or complete, key=lambda one: one.rank))

    @property
    def best(self) -> TuningTrial | None:
        """The best point; None if no trial was completed."""
        return next(iter(self.ranked), None)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `adapt` that train with the best point: `strategy`, `train`, ...

        Example:
            >>> summary = DataSummary(origin="x", classes=("cat", "dog"), counts={"train": (3, 3)}, split_rule="")
            >>> trial = TuningTrial(number=0, stage="all", is_full=True, values={"train.lr": 0.01, "unfreeze": 2},
            ...                     state="complete", accuracy=0.9, log_loss=0.3)
            >>> TuningRecord(data=summary, backbone="b", strategy="lp_ft", space={}, sampler="random", pruner="none",
            ...              trials=(trial,)).settings
            {'strategy': 'lp_ft', 'unfreeze': 2, 'train': {'lr': 0.01}}
        """
        if self.retest is not None and self.retest.is_stale:
            chosen = self.retest.chosen
            return as_arguments(chosen.strategy, chosen.values, self.retest.base)
        return as_arguments(self.strategy, {} if self.best is None else self.best.values, self.base or {})

    @property
    def sentences(self) -> tuple[str, ...]:
        """The outcome in a few sentences."""
        return (*self._outcome, *(() if self.retest is None else self.retest.sentences))

    @property
    def _babysat(self) -> list[str]:
        """What was changed, and what the whole training with the changes is worth against the one without."""
        if not self.interventions:
            return ["The curves asked for no change, or there was no time."]
        kept = sum(one.is_kept for one in self.interventions)
        said = [one.sentence for one in self.interventions]
        whole = [one for one in self.trials if one.is_full and one.accuracy is not None]
        if not kept or len(whole) < 2:
            return [*said, "No change was better on held-back images: the settings stay as advised."]
        others = ", ".join(f"with {one.stage} {_percent(one.accuracy)}" for one in whole[1:])
        said.append(
            f"{kept} of {len(said)} changes were kept. Trained from the beginning, held-back accuracy is {others}, as "
            f"advised {_percent(whole[0].accuracy)}{': the settings stay as advised' if self.best is whole[0] else ''}."
        )
        return said

    @property
    def _outcome(self) -> tuple[str, ...]:
        """Of the search, before any retest."""
        states = {state: sum(one.state == state for one in self.trials) for state in STATES}
        others = [f"{states[state]} {state}" for state in STATES[1:] if states[state]]
        counted = f"{states['complete']} of {len(self.trials)} trials complete" + "".join(f", {one}" for one in others)
        best = self.best
        if best is None:
            errors = [one.error for one in self.trials if one.error]
            return (f"{counted}: there is no best point.", *errors[:1])
        values = ", ".join(f"{name}={value}" for name, value in best.values.items()) or "the settings as advised"
        said = [
            *((f"{self.why_style[0].upper()}{self.why_style[1:]}.",) if self.why_style else ()),
            f"{counted} in {self.seconds:.0f} s. Best: {values}.",
            f"Held-back accuracy {_percent(best.accuracy)} ({self.images:,} images), {self._compared(best)}. It is the "
            f"highest of {len(self.ranked)}, so expect slightly less on new images.",
        ]
        if self.style == "panda":
            said += self._babysat
        if self._trains and self.probe is not None and (best.accuracy or 0.0) < self.probe:
            said.append("The probe is more accurate than the best network: more epochs may help, or another strategy.")
        if errors := [one.error for one in self.trials if one.error]:
            said.append(f"{len(errors)} {'trial' if len(errors) == 1 else 'trials'} failed, the first one: {errors[0]}")
        return tuple(said)

    @property
    def _trains(self) -> bool:
        return self.strategy != "linear_probe"

    def _compared(self, best: TuningTrial) -> str:
        if not self._trains:
            return f"that of the probe that is advised {_percent(self.probe)}"
        return f"the linear probe {_percent(self.probe)}; adapt would return {_percent(best.kept)}"


def as_arguments(strategy: str, values: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `adapt` that train with a point: `strategy`, `train`, ...

    Args:
        strategy: Its name.
        values: Setting, as on the command line -> value.
        base: Further settings within `train`.
    """
    inside = {name.removeprefix("train."): value for name, value in values.items() if name.startswith("train.")}
    own = {name: value for name, value in values.items() if not name.startswith("train.")}
    kept = {name: value for name, value in base.items() if name != "lr_scale" or "lr" not in inside}
    return {"strategy": strategy, **own, "train": {**kept, **inside}}


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"
