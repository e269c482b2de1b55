"""`transferkit extract`: one process's part of a frozen pass; what it prints and leaves in the run's folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.cli.jobs import Job, current_command, output_folder
from transferkit.cli.schema import arguments_of
from transferkit.core.distributed import launched_rank_and_world_size

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from transferkit.records import DryRun

__all__ = ["EXTRACT"]

log = logging.getLogger("transferkit")


def _check(settings: DictConfig, out: Path, words: Sequence[str]) -> str:
    from transferkit.api import analyze
    from transferkit.workflow.checks import check_arguments

    launched_rank_and_world_size()
    check_arguments({**arguments_of(settings, analyze), "out": out}, fits=False)
    return ""


def _extract(settings: DictConfig) -> float | None:
    from transferkit.api import analyze
    from transferkit.core.serialization import to_json
    from transferkit.options import PassOptions, options_from
    from transferkit.workflow.extract import extract_features

    arguments = arguments_of(settings, analyze)
    done = extract_features(arguments["model"], arguments["data"], options_from(PassOptions, arguments))
    plain = {"schema": 1, "command": current_command("extract", settings), "extraction": to_json(done)}
    file = output_folder() / f"extraction-{done.rank}-of-{done.world}.json"
    file.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(done)
    log.info(done)
    return None


def _plan(settings: DictConfig, out: Path) -> DryRun:
    from transferkit.api import analyze
    from transferkit.options import PassOptions, options_from
    from transferkit.workflow.dry_run import plan_extract

    arguments = arguments_of(settings, analyze)
    return plan_extract(arguments["model"], arguments["data"], options_from(PassOptions, arguments), out=out)


EXTRACT = Job("extract", _extract, _check, _plan)
