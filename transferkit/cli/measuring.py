"""`transferkit analyze` and `transferkit rank`: what they print and leave in the run's folder."""

from __future__ import annotations

import inspect
import json
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.cli.adapting import audit_lines
from transferkit.cli.jobs import Job, command_line, current_command, output_folder
from transferkit.cli.schema import arguments_of
from transferkit.cli.tables import print_table
from transferkit.core.errors import OptionError, RunFolderError, list_problems
from transferkit.core.score_text import format_end, format_score

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from transferkit.records import DryRun, Evidence, ProbeScore, Ranking

__all__ = ["ANALYZE", "RANK"]

log = logging.getLogger("transferkit")

NOT_RANKED = ("backbone", "strategy", "finetune", "trainer")
"""Groups of settings that say nothing about a ranking."""

NOT_COMPARED = ("out=", "cache=", "cache_limit=", "progress=", "overwrite=", "debug=")
"""Words that make no other run."""


def _check_analyze(settings: DictConfig, out: Path, words: Sequence[str]) -> str:
    from transferkit.api import analyze
    from transferkit.workflow.checks import check_arguments

    if settings.mode == "search":
        raise OptionError("analyze only measures; mode=search trains. Use transferkit adapt mode=search.")
    check_arguments({**arguments_of(settings, analyze), "out": out}, fits=False)
    command = command_line("analyze", words, settings)
    return _check_kept(out / "evidence.json", command, overwrite=settings.overwrite)


def _check_rank(settings: DictConfig, out: Path, words: Sequence[str]) -> str:
    from transferkit.api import rank
    from transferkit.workflow.checks import check_arguments

    if alien := _not_ranked([word.partition("=")[0].lstrip("+") for word in words]):
        raise OptionError(f"rank takes no {', '.join(alien)}; what to rank is models=[NAME,...].")
    check_arguments({**arguments_of(settings, rank), "out": out}, fits=False)
    command = command_line("rank", words, settings)
    return _check_kept(out / "ranking.json", command, overwrite=settings.overwrite)


def _not_ranked(given: Sequence[str]) -> list[str]:
    """Settings that were given and that say nothing about a ranking: they mean another verb."""
    from transferkit.api import rank

    taken = {*inspect.signature(rank).parameters, "data", "out", "overwrite", "debug", "experiment", "hydra"}
    return [key for key in given if key in NOT_RANKED or key.split(".")[0] not in taken]


def _check_kept(file: Path, command: str, *, overwrite: bool) -> str:
    """Whether a result may be written over one that is there; the sentence to say if it is."""
    if not file.is_file():
        return ""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        before = kept.get("command") or kept["ranking"]["command"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        before = ""
    if overwrite or _settings_of(before) == _settings_of(command):
        return f"{file} is there already and is replaced."
    raise RunFolderError(
        f"{file} was made with other settings. Choose another place with out=DIR, or replace it with overwrite=true."
    )


def _settings_of(command: str) -> set[str]:
    return {word for word in shlex.split(command) if not word.startswith(NOT_COMPARED)}


def _nearness(evidence: Evidence) -> list[str]:
    """How near the data is to what the backbone has seen, in a sentence."""
    detail = evidence.similarity_detail
    if detail is None:
        return []
    if detail.value is None:
        return [detail.note]
    between = "" if detail.low is None else f" ({detail.low:.2f} to {detail.high:.2f})"
    return [f"Similarity to what the backbone was trained on: {detail.value:.2f}{between} of 1. {detail.note}"]


def _analyze(settings: DictConfig) -> float | None:
    from transferkit.api import analyze, decide
    from transferkit.core.serialization import to_json

    evidence = analyze(**arguments_of(settings, analyze))
    decision = decide(evidence, **arguments_of(settings, decide))
    command = current_command("analyze", settings)
    plain = {"schema": 1, "command": command, "evidence": to_json(evidence), "decision": to_json(decision)}
    out = output_folder() / "evidence.json"
    out.write_text(json.dumps(plain, indent=1, ensure_ascii=False), encoding="utf-8")
    rows = [(score.stage, score.method, str(score.dim), *_accuracy_cells(score)) for score in evidence.probes]
    for line in audit_lines(evidence.data):
        print(line)
    print_table(("stage", "method", "features", evidence.data.measure, "95 % interval"), rows)
    need = () if evidence.data_need is None else ("", "More images:", *evidence.data_need.sentences)
    print("\n".join(["", *_nearness(evidence), *decision.reasons, *need, "", f"evidence: {out}"]))
    expected = decision.expected
    return None if expected is None else expected.expected_accuracy


def _accuracy_cells(score: ProbeScore) -> tuple[str, str]:
    if score.accuracy is None:
        return "unknown", ""
    accuracy, low, high = score.interval
    ends = " to ".join(format_end(end, score.measure) for end in (low, high))
    return format_score(accuracy, score.measure), ends


def _rank(settings: DictConfig) -> float | None:
    from transferkit.api import rank
    from transferkit.core.serialization import to_json
    from transferkit.report import render_ranking

    ranking = rank(_models(settings), **arguments_of(settings, rank), command=current_command("rank", settings))
    out = output_folder()
    plain = {"schema": 1, "ranking": to_json(ranking)}
    (out / "ranking.json").write_text(json.dumps(plain, indent=1, ensure_ascii=False), encoding="utf-8")
    (out / "ranking.html").write_text(render_ranking(ranking), encoding="utf-8")
    for line in audit_lines(ranking.data):
        print(line)
    _print_ranking(ranking)
    for line in ranking.reasons:
        log.info(line)
    print("\n".join(["", *ranking.reasons, "", f"ranking: {out / 'ranking.html'}"]))
    return ranking.best.joined.accuracy


def _models(settings: DictConfig) -> str | list[str]:
    return settings.models if isinstance(settings.models, str) else [str(name) for name in settings.models or []]


def _print_ranking(ranking: Ranking) -> None:
    """Ranks and costs, then what the measures say, then who is not there."""
    prior = "parameters" if ranking.prior == "parameters" else "published"
    rows = [
        (
            str(row.rank),
            f"{row.rank_low} to {row.rank_high}",
            f"{100 * row.best:.1f} %",
            row.name,
            *_accuracy_cells(row.joined),
            f"{row.best_stage.stage} {_accuracy_cells(row.best_stage)[0]}",
            f"{row.prior / 1e6:.1f} M" if ranking.prior == "parameters" else f"{100 * row.prior:.1f} %",
            str(row.prior_rank),
            "" if row.images_per_second is None else f"{row.images_per_second:.0f}",
            f"{row.parameters / 1e6:.1f}",
            "" if row.gigaflops is None else f"{row.gigaflops:.2f}",
            str(row.image_size),
        )
        for row in ranking.models
    ]
    header = ("rank", "95 %", "best in", "model", ranking.data.measure, "95 % interval", "best stage", prior,
              "its rank", "images/s", "Mparams", "GFLOPs", "pixels")  # fmt: skip
    print_table(header, rows)
    print()
    if any(score.value is not None for row in ranking.models for score in row.scores):
        names = [score.measure for score in ranking.best.scores]
        values = [
            (row.name, *("" if score.value is None else f"{score.value:.3g}" for score in row.scores))
            for row in ranking.models
        ]
        print_table(("measure, higher is better", *names), values)
    else:  # with several labels per image, and with numbers
        print("Measures of transferability are of one class per image: none here.")
    if ranking.left_out:
        print("\n" + list_problems("Not ranked:", [f"{one.name}: {one.reason}" for one in ranking.left_out]))


def _plan_analyze(settings: DictConfig, out: Path) -> DryRun:
    from transferkit.api import analyze, dry_run

    return dry_run("analyze", {**arguments_of(settings, analyze), "out": out})


def _plan_rank(settings: DictConfig, out: Path) -> DryRun:
    from transferkit.api import dry_run, rank

    return dry_run("rank", {**arguments_of(settings, rank), "models": _models(settings), "out": out})


ANALYZE = Job("analyze", _analyze, _check_analyze, _plan_analyze)
RANK = Job("rank", _rank, _check_rank, _plan_rank)
