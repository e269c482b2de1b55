"""`transferkit tune`: what it prints and leaves in the run's folder."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.cli.adapting import audit_lines
from transferkit.cli.jobs import Job, as_typed, command_line, current_command, output_folder
from transferkit.cli.schema import arguments_of
from transferkit.cli.tables import print_table
from transferkit.core.errors import OptionError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from transferkit.records import DryRun, RetestedSettings, TuningRecord, TuningTrial

__all__ = ["TUNE"]

log = logging.getLogger("transferkit")

RECORD, PAGE, BEST = "tuning.json", "tuning.html", Path("experiment", "best.yaml")

SHOWN = 10
"""Trials on the terminal; the record has all of them."""


def _check(settings: DictConfig, out: Path, words: Sequence[str]) -> str:
    from transferkit.api import check_tune, tune

    if settings.mode == "search":
        raise OptionError("mode=search compares strategies; tune searches the hyperparameters of one. Leave mode out.")
    check_tune({**arguments_of(settings, tune), "out": out})
    record = out / RECORD
    if settings.tune.retest:
        return ""
    return f"{record} is there already and is replaced." if record.is_file() else ""


def _tune(settings: DictConfig) -> float | None:
    from transferkit.api import tune
    from transferkit.report import render_tuning

    out = output_folder()
    found = tune(**{**arguments_of(settings, tune), "out": out}, command=current_command("tune", settings))
    (out / PAGE).write_text(render_tuning(found), encoding="utf-8")
    for line in audit_lines(found.data):
        print(line)
    if found.retest is not None:
        print_table(("settings", "then", "now", "gain", "values"), [_retest_row(one) for one in found.retest.tested])
        print()
    elif found.ranked:
        header = ("trial", "stage", "accuracy", "loss", "epochs", "seconds", "values")
        print_table(header, [_row(trial) for trial in found.ranked[:SHOWN]])
        print()
    lines = [*found.sentences, f"page: {out / PAGE}"]
    if found.retest is not None:
        lines += _retest_lines(found, settings, out)
    elif found.best is not None:
        (out / BEST).parent.mkdir(exist_ok=True)
        (out / BEST).write_text(_best_file(found, settings), encoding="utf-8")
        lines += [f"best settings: {out / BEST}", "Next:", f"  {_next_command(settings, out)}"]
    for line in lines:
        print(line)
        log.info(line)
    if found.retest is not None:
        return found.retest.chosen.accuracy
    return None if found.best is None else found.best.accuracy


def _retest_lines(found: TuningRecord, settings: DictConfig, out: Path) -> list[str]:
    """What became of the file with the best settings: it is written again only if others are better now."""
    if found.retest is None or not found.retest.is_stale or found.retest.chosen.accuracy is None:
        return [f"best settings: {out / BEST}, unchanged"]
    (out / BEST).parent.mkdir(exist_ok=True)
    (out / BEST).write_text(_best_file(found, settings), encoding="utf-8")
    return [f"best settings: {out / BEST}, replaced", "Next:", f"  {_next_command(settings, out)}"]


def _retest_row(one: RetestedSettings) -> tuple[str, ...]:
    then, now = ("" if share is None else f"{100 * share:.1f} %" for share in (one.accuracy_then, one.accuracy))
    gain = "" if one.gain is None or one.low is None or one.high is None else (
        f"{100 * one.gain:+.1f} ({100 * one.low:+.1f} to {100 * one.high:+.1f})"
    )  # fmt: skip
    values = " ".join(f"{name.removeprefix('train.')}={value}" for name, value in one.values.items())
    return one.name, then, now or "failed", gain, f"{one.strategy} {values}".strip()


def _row(trial: TuningTrial) -> tuple[str, ...]:
    accuracy = "" if trial.accuracy is None else f"{100 * trial.accuracy:.1f} %"
    loss = "" if trial.log_loss is None else f"{trial.log_loss:.3f}"
    values = " ".join(f"{name.removeprefix('train.')}={value}" for name, value in trial.values.items()) or "as advised"
    return str(trial.number), trial.stage, accuracy, loss, str(trial.epochs or ""), f"{trial.seconds:.0f}", values


def _best_file(found: TuningRecord, settings: DictConfig) -> str:
    """A Hydra file: chosen by experiment=best with the folder that it lies in, it trains with the best point."""
    from omegaconf import OmegaConf

    best = found.best if found.retest is None else found.retest.chosen
    assert best is not None
    command = found.command if found.retest is None else found.retest.command
    head = (
        "# @package _global_\n"
        f"# {_next_command(settings, output_folder())}\n"
        f"# The best of: {command}\n"
        f"# Held-back accuracy {100 * (best.accuracy or 0):.1f} %.\n"
    )
    values = found.settings
    strategy = values.pop("strategy")
    chosen = f"defaults:\n  - override /strategy: {strategy}\n"
    return head + chosen + str(OmegaConf.to_yaml(OmegaConf.create(values)))


def _next_command(settings: DictConfig, out: Path) -> str:
    """What trains with the best point."""
    from hydra.core.hydra_config import HydraConfig

    ours = ("out=", "overwrite=", "strategy=", "tune.", "tune=", "train.", "unfreeze=", "experiment=", "finetune=")
    words = [word for word in HydraConfig.get().overrides.task if not word.startswith(ours)]
    # Flags come before settings, or Hydra does not know these.
    verb = f"adapt {shlex.quote(f'--config-dir={as_typed(out)}')}"
    return command_line(verb, words, settings, f"experiment={BEST.stem}")


def _plan(settings: DictConfig, out: Path) -> DryRun:
    from transferkit.api import dry_run, tune

    return dry_run("tune", {**arguments_of(settings, tune), "out": out})


TUNE = Job("tune", _tune, _check, _plan)
