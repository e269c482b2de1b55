"""Decision from `Evidence`: arithmetic only, no network, no images; under a millisecond.

`mode="rule"` is the textbook matrix, a pure function of the amount of data and its similarity to the source.
`mode="evidence"` (the default) estimates the accuracy of every strategy from the measurements on these images and from
earlier tasks, and compares its choice with the rule's.
"""

from __future__ import annotations

from collections.abc import Mapping

from transferkit.core.errors import OptionError, unknown_name
from transferkit.decision.belief import Belief, update
from transferkit.decision.calibration import Calibration
from transferkit.decision.completion import Conditions, HeldBack, Normalisation, complete, conclude, settle_norm
from transferkit.decision.effort import (
    MIN_COMPARED_IMAGES,
    MIN_VAL_IMAGES,
    RACE_SHARE,
    VAL_SHARE,
    default_batch_size,
    default_epochs,
    default_folds,
    default_passes,
    refits,
    training_seconds,
    trains_all_stages,
)
from transferkit.decision.gains import GainModel, Situation, load_gain_model, read_gain_model
from transferkit.decision.normalisation import SMALL_BATCH, choose_norm
from transferkit.decision.rates import StartingRate, starting_rate
from transferkit.decision.target_choice import best_target_probe, choose_for_targets
from transferkit.decision.textbook import rule
from transferkit.decision.weighing import START_SECONDS, STEP_COST, TUNED_SHARES, weigh
from transferkit.decision.weighing import best_probe as best_class_probe
from transferkit.records import JOINED, Choice, Evidence

__all__ = [
    "MIN_COMPARED_IMAGES",
    "MIN_VAL_IMAGES",
    "MODES",
    "RACE_SHARE",
    "SMALL_BATCH",
    "START_SECONDS",
    "STEP_COST",
    "TUNED_SHARES",
    "VAL_SHARE",
    "Belief",
    "Calibration",
    "Conditions",
    "GainModel",
    "HeldBack",
    "Normalisation",
    "Situation",
    "StartingRate",
    "best_probe",
    "choose",
    "choose_for_targets",
    "choose_norm",
    "complete",
    "conclude",
    "default_batch_size",
    "default_epochs",
    "default_folds",
    "default_passes",
    "load_gain_model",
    "read_gain_model",
    "refits",
    "rule",
    "settle_norm",
    "starting_rate",
    "training_seconds",
    "trains_all_stages",
    "update",
    "weigh",
]

MODES = ("evidence", "rule")

NEEDS_SIMILARITY = (
    "mode='rule' needs the similarity of the data to the backbone's training images, which could not be measured{why} "
    "Pass similarity=S in [0, 1]: 0.8 for everyday photographs, 0.2 for scans or medical images."
)


def choose(
    evidence: Evidence,
    *,
    mode: str = "evidence",
    budget: float | str | None = None,
    trials: Mapping[str, Belief] | None = None,
) -> Choice:
    """The strategy to use, and why; `complete` adds learning rate and normalisation.

    Args:
        evidence: Measurements of the frozen pass.
        mode: "evidence" or "rule". The rule needs `evidence.similarity`.
        budget: Seconds that fitting may take on this machine, > 0; "auto" weighs accuracy against time; None for no
            limit. The rule ignores it.
        trials: Fine-tuning strategy -> measured gain in held-back accuracy over the best probe.

    Raises:
        OptionError: If the mode is unknown, the budget is not > 0, or the rule lacks a similarity.
    """
    if mode not in MODES:
        raise OptionError(unknown_name("mode", mode, MODES))
    if budget is not None and not (budget == "auto" or (isinstance(budget, (int, float)) and budget > 0)):
        raise OptionError(f"budget must be > 0 seconds, or auto, got {budget!r}; leave it out for no limit.")
    advice = _advice_of_rule(evidence)
    if mode == "evidence" and evidence.data.task != "single_label":
        return choose_for_targets(evidence, advice=advice, budget=budget, trials=trials)
    if mode == "evidence":
        return weigh(evidence, advice=advice, budget=budget, trials=trials)
    if advice is None:
        detail = evidence.similarity_detail
        raise OptionError(NEEDS_SIMILARITY.format(why="." if detail is None else f": {detail.note}"))
    return advice


def best_probe(evidence: Evidence, *, knowledge: GainModel | None = None) -> str:
    """The stage, "joined" or "selected" with the highest expected score of a linear probe."""
    if evidence.data.task != "single_label":
        found = best_target_probe(evidence)
        return JOINED if found is None else found.stage
    return best_class_probe(evidence, knowledge=knowledge)


def _advice_of_rule(evidence: Evidence) -> Choice | None:
    if evidence.similarity is None:
        return None
    return rule(
        images=evidence.data.train_images,
        per_class=evidence.data.train_per_class,
        similarity=evidence.similarity,
        stages=tuple(stage.name for stage in evidence.backbone.stages),
    )
