"""`transferkit zeroshot`: its arguments, and what it prints."""

from __future__ import annotations

import inspect
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.cli.adapting import audit_lines
from transferkit.cli.jobs import Job, current_command, in_sweep, output_folder
from transferkit.cli.schema import arguments_of
from transferkit.core.distributed import is_first
from transferkit.core.errors import OptionError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from transferkit.records import DryRun
    from transferkit.result import Result

__all__ = ["ZERO_SHOT"]

log = logging.getLogger("transferkit")

OTHER_KEYS = ("backbone", "data", "debug", "experiment", "hydra", "launcher", "model")
"""First parts of settings that are no argument of `zeroshot`, and go with it."""


def _check(settings: DictConfig, out: Path, words: Sequence[str]) -> str:
    from transferkit.api import check_zeroshot, zeroshot

    taken = {*inspect.signature(zeroshot).parameters, *OTHER_KEYS}
    given = [word.partition("=")[0].lstrip("+") for word in words]
    if alien := [key for key in given if key.split(".")[0] not in taken]:
        raise OptionError(
            f"zeroshot takes no {', '.join(alien)}: a linear layer is solved for on frozen features. "
            "See transferkit zeroshot --help."
        )
    return check_zeroshot({**arguments_of(settings, zeroshot), "out": out})


def _zero_shot(settings: DictConfig) -> float | None:
    from transferkit.api import zeroshot

    out = output_folder()
    if settings.evaluate == "auto" and in_sweep():  # runs that are compared are not compared on the test images
        settings.evaluate = False
    arguments = {**arguments_of(settings, zeroshot), "out": out}
    result = zeroshot(**arguments, command=current_command("zeroshot", settings))
    if is_first():
        for line in _summary(result, out):
            print(line)
            log.info(line)
    found = result.record.zero_shot
    return None if found is None else found.calibrated.harmonic


def _summary(result: Result, out: Path) -> list[str]:
    from transferkit.records import Metrics

    lines = [*audit_lines(result.evidence.data), *result.decision.reasons, ""]
    for split, metrics in result.metrics.items():
        assert isinstance(metrics, Metrics)
        lines.append(
            f"{split} accuracy {100 * metrics.accuracy:.1f} % ({100 * metrics.low:.1f} to {100 * metrics.high:.1f}) "
            f"on {metrics.images:,} images of seen classes, among all {len(result.classes)} classes"
        )
    scored = shlex.join(["transferkit", "evaluate", f"run={out}", "data.root=NEW_CLASSES"])
    return [*lines, f"report: {out / 'report.html'}", "Images of the classes without training images:", f"  {scored}"]


def _plan(settings: DictConfig, out: Path) -> DryRun:
    from transferkit.api import dry_run, zeroshot

    return dry_run("zeroshot", {**arguments_of(settings, zeroshot), "out": out})


ZERO_SHOT = Job("zeroshot", _zero_shot, _check, _plan)
