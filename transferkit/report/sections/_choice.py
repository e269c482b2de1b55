"""The decision, its reasons and its alternatives."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.records import Alternative, Decision, RunRecord, TrainingRecord
from transferkit.report._fine_tuning import is_fine_tuning, name_kept
from transferkit.report._words import (
    capitalise,
    format_measure,
    format_measure_range,
    format_number,
    format_seconds,
    name_stage,
    name_strategy,
)
from transferkit.report.sections._learning import keeps_statistics, name_trained

__all__ = ["ChoiceSection", "write_choice"]


NORMS = {
    "keep": "batch-normalisation statistics are updated in the trained layers",
    "frozen": "batch-normalisation statistics are frozen",
}

KEPT = {
    "probe": "the probe",
    "fine-tuned": "the fine-tuned network",
    "average": "the average of the fine-tuned network and the probe",
}


@dataclass(frozen=True, kw_only=True)
class Option:
    """A row of the table of options."""

    strategy: str
    stage: str
    expected: str
    interval: str
    cost: str
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class ChoiceSection:
    """The decision, its reasons, and all options."""

    sentence: str
    reasons: tuple[str, ...]
    options: tuple[Option, ...]


def write_choice(record: RunRecord) -> ChoiceSection:
    """The decision in words."""
    decision, backbone = record.decision, record.evidence.backbone
    how = {
        "evidence": "Decided by measurement",
        "search": "Decided by trials of the options that the measurements left open",
        "rule": "Decided by the textbook rule on size and similarity",
        "given": "As requested",
    }.get(decision.mode, f"Decided by {decision.mode}")
    strategy = name_strategy(decision.strategy, record.evidence.data.measure)
    parts = [f"{how}: {strategy}, reading {name_stage(decision.stage, backbone)}."]
    if is_fine_tuning(record):
        parts += _describe_fine_tuning(decision, record.training)
    else:
        parts.append("Solved in closed form, so there is no learning rate to tune.")
    best_first = sorted(decision.options, key=lambda option: -option.expected_accuracy)
    return ChoiceSection(
        sentence=" ".join(parts),
        reasons=decision.reasons,
        options=tuple(_write_option(option, record) for option in best_first),
    )


def _describe_fine_tuning(decision: Decision, training: TrainingRecord | None) -> list[str]:
    claims = () if training is None else training.claims
    parts = [f"Trained: {trained}."] if (trained := name_trained(claims)) else []
    if decision.lr > 0:
        share = (
            f", {format_number(decision.lr_scale)} times the backbone's original rate" if decision.lr_scale > 0 else ""
        )
        norm = NORMS.get(decision.norm, f"normalisation layers: {decision.norm}")
        # Networks that normalise without running statistics have none to mention.
        said = f"; {norm}" if keeps_statistics(claims) or not claims else ""
        parts.append(f"Learning rate {format_number(decision.lr)}{share}{said}.")
    if training is not None:
        parts.append(f"The returned model is {KEPT[name_kept(training.kept)]}, chosen on held-back images.")
    return parts


def _write_option(option: Alternative, record: RunRecord) -> Option:
    decision, expected = record.decision, format_measure(option.expected_accuracy, option.measure)
    if option is decision.expected and decision.expected_before is not None:
        before = format_measure(decision.expected_before.expected_accuracy, option.measure)
        expected += f" (before fitting {before})"
    return Option(
        strategy=capitalise(name_strategy(option.strategy, option.measure)),
        stage=name_stage(option.stage, record.evidence.backbone),
        expected=expected,
        interval=format_measure_range(option.low, option.high, option.measure),
        cost=format_seconds(option.cost_seconds),
        chosen=(option.strategy, option.stage) == (decision.strategy, decision.stage),
    )
