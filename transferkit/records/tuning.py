"""A hyperparameter search: what was searched, each trial, and the best point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transferkit.records._checks import require
from transferkit.records.data import DataSummary

__all__ = ["STATES", "TuningRecord", "TuningTrial"]

STATES = ("complete", "pruned", "failed")


@dataclass(frozen=True, kw_only=True)
class TuningTrial:
    """One point that was tried.

    Args:
        number: From 0, in the order of the search.
        stage: Name of the search's stage.
        is_full: Whether it was trained for all epochs, so that it may be the best.
        values: Setting, as on the command line -> value.
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
        values = {} if self.best is None else self.best.values
        inside = {name.removeprefix("train."): value for name, value in values.items() if name.startswith("train.")}
        own = {name: value for name, value in values.items() if not name.startswith("train.")}
        return {"strategy": self.strategy, **own, "train": {**(self.base or {}), **inside}}

    @property
    def sentences(self) -> tuple[str, ...]:
        """The outcome in a few sentences."""
        states = {state: sum(one.state == state for one in self.trials) for state in STATES}
        others = [f"{states[state]} {state}" for state in STATES[1:] if states[state]]
        counted = f"{states['complete']} of {len(self.trials)} trials complete" + "".join(f", {one}" for one in others)
        best = self.best
        if best is None:
            errors = [one.error for one in self.trials if one.error]
            return (f"{counted}: there is no best point.", *errors[:1])
        values = ", ".join(f"{name}={value}" for name, value in best.values.items())
        said = [
            f"{counted} in {self.seconds:.0f} s. Best: {values}.",
            f"Held-back accuracy {_percent(best.accuracy)} ({self.images:,} images), {self._compared(best)}. It is the "
            f"highest of {len(self.ranked)}, so expect slightly less on new images.",
        ]
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


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"
