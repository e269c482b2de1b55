"""`transferkit adapt`: its arguments, and what it prints."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.cli.jobs import Job, current_command, in_sweep, output_folder
from transferkit.cli.schema import arguments_of
from transferkit.core.distributed import is_first
from transferkit.core.errors import list_problems
from transferkit.core.score_text import count_targets, format_end, format_score

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from transferkit.records import DataSummary, DryRun, Finding, TrainingRecord
    from transferkit.result import Result

__all__ = ["ADAPT", "audit_lines"]

log = logging.getLogger("transferkit")


def _check(settings: DictConfig, out: Path, words: Sequence[str]) -> str:
    from transferkit.api import adapt, check_adapt

    return check_adapt({**arguments_of(settings, adapt), "out": out})


def _check_backbone(settings: DictConfig) -> None:
    from transferkit.api import adapt
    from transferkit.options import AdaptOptions, options_from
    from transferkit.workflow.checks import check_backbone

    check_backbone(settings.model, options_from(AdaptOptions, arguments_of(settings, adapt)))


def _adapt(settings: DictConfig) -> float | None:
    from transferkit.api import adapt

    out, more = output_folder(), []
    if settings.evaluate == "auto" and in_sweep():  # runs that are compared are not compared on the test images
        settings.evaluate, more = False, ["evaluate=false"]
    arguments = {**arguments_of(settings, adapt), "out": out}
    result = adapt(**arguments, command=current_command("adapt", settings, *more))
    if is_first():
        for line in _summary(result, out):
            print(line)
            log.info(line)
    return result.record.held_back_accuracy


def _summary(result: Result, out: Path) -> list[str]:
    lines = [*audit_lines(result.evidence.data), *result.decision.reasons, *_training_lines(result.record.training), ""]
    for split, metrics in result.metrics.items():
        lines.append(
            f"{split} {metrics.measure} {format_score(metrics.score, metrics.measure)} "
            f"({format_end(metrics.low, metrics.measure)} to {format_end(metrics.high, metrics.measure)}) "
            f"on {metrics.images:,} images"
        )
        if result.record.is_disappointing(split):
            lines.append(f"That is less than was expected: the {split} images differ from the training images.")
    lines += _untested_lines(result, out)
    evidence = result.evidence
    measured = evidence.data.size("train") + evidence.data.size("val")
    lines.append(
        f"{result.record.seconds['total']:.1f} s in all, {evidence.seconds['frozen pass']:.1f} s of it the frozen pass "
        f"({evidence.images_computed:,} of {measured:,} images computed, the rest from the bank)"
    )
    return [*lines, f"report: {out / 'report.html'}"]


def _training_lines(training: TrainingRecord | None) -> list[str]:
    """What was trained, at which rate, and what is worth knowing of how it went."""
    if training is None:
        return []
    from transferkit.finetune import claims_table

    table = [f"  {line}" for line in claims_table(training.claims)]
    return [training.how, *training.notes, "What was trained:", *table]


def _untested_lines(result: Result, out: Path) -> list[str]:
    """What stands in for test accuracy where the test images were not scored."""
    record = result.record
    if not record.untested_images:
        return []
    known = record.held_back_accuracy
    measure = result.evidence.data.measure
    held_back = [] if known is None else [f"held-back {measure} {format_score(known, measure)}"]
    again = shlex.join(["transferkit", "evaluate", f"run={out}"])
    return [*held_back, f"The {record.untested_images:,} test images were not scored: {again}"]


def audit_lines(data: DataSummary) -> list[str]:
    """What the data is, how it came to be split, and what the audit found: warnings in full, notes in a few words."""
    counts = ", ".join(f"{data.size(split):,} {split}" for split in data.counts)
    lines = [f"{data.origin}: {count_targets(data.num_classes, data.task)}, {counts}. {data.split_rule}"]
    # Why nothing will be measured on test images is said in full even to those who asked for it.
    shown = [one for one in data.findings if one.severity in ("set_aside", "warning") or one.kind == "no_test_split"]
    if shown:
        lines.append(list_problems("The audit found:", [finding.message for finding in shown]))
    if notes := [finding for finding in data.findings if finding not in shown]:
        lines.append(f"The audit also noted: {', '.join(_count_note(finding) for finding in notes)}.")
    return [*lines, ""]


def _count_note(finding: Finding) -> str:
    """A note in a few words: the start of its message, which begins with the count."""
    return finding.message.split(". ")[0].rstrip(".")


def _plan(settings: DictConfig, out: Path) -> DryRun:
    from omegaconf import OmegaConf

    from transferkit.api import adapt, dry_run

    arguments = {**arguments_of(settings, adapt), "out": out}
    if settings.evaluate == "auto" and OmegaConf.select(settings, "hydra.job.num") is not None:
        arguments["evaluate"] = False  # as in the sweep itself
    return dry_run("adapt", arguments)


ADAPT = Job("adapt", _adapt, _check, _plan, _check_backbone)
