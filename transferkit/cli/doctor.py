"""`transferkit doctor`: what is wrong with the set-up that `adapt` would train, or with the labels.

A word after it may name something else to examine (`EXAMINED`); settings are those of adapt.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.cli.adapting import audit_lines
from transferkit.cli.composition import compose_settings, group_choices
from transferkit.cli.dry_run import print_plan, take_dry_run
from transferkit.cli.jobs import Job, as_typed, command_line, current_command, output_folder
from transferkit.cli.schema import arguments_of, check_taken
from transferkit.cli.tables import print_table
from transferkit.cli.words import hydra_words
from transferkit.core.errors import OptionError, RunFolderError, unknown_name
from transferkit.core.paths import expand

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from transferkit.records import DryRun, LabelReview

__all__ = ["doctor"]

log = logging.getLogger("transferkit")

EXIT_ALARM = 1
"""Of an examination that raised an alarm; 0 is healthy, 2 a mistake in the command."""

COPY_SECONDS = 0.01
"""Of an image in the search for copies, beside its features."""

REVIEW_BYTES = 6_000
"""Of a listed image with its picture, about."""

REPLAY_MEMORY = 700 * 2**20

SHOWN = 10
"""Doubtful labels on the terminal; the table and the page have the others."""


def _check_labels(settings: DictConfig, out: Path, words: Sequence[str]) -> str:
    return _check_table(settings, out, "labels.csv")


def _check_images(settings: DictConfig, out: Path, words: Sequence[str]) -> str:
    return _check_table(settings, out, "images.csv")


def _check_table(settings: DictConfig, out: Path, name: str) -> str:
    from transferkit.api import analyze
    from transferkit.workflow.checks import check_arguments

    check_arguments({**arguments_of(settings, analyze), "out": out}, fits=False)
    table = out / name
    if not table.is_file():
        return ""
    if settings.overwrite:
        return f"{table} is there already and is replaced."
    raise RunFolderError(
        f"{table} is there already, and may hold your corrections. Choose another folder with out=DIR, or replace it "
        "with overwrite=true."
    )


def _review_labels(settings: DictConfig) -> float | None:
    from transferkit.doctor import review_labels
    from transferkit.records import removal_word
    from transferkit.report import render_labels

    command = current_command("doctor labels", settings)
    review = review_labels(**arguments_of(settings, review_labels), command=command)
    for line in audit_lines(review.data):
        print(line)
    _print_doubtful(review)
    files = _write(output_folder(), "labels", review.to_csv(), render_labels(review))
    word = f"the right class, or {removal_word(review.data.classes)}," if review.rows else ""
    _print_outcome([*review.sentences, "", *files], settings, word, "labels.csv")
    return None


def _write(out: Path, name: str, table: str, page: str) -> list[str]:
    """Write a table and its page; returns the lines that say where they are."""
    # A mark at the start tells spreadsheets that this is UTF-8; names that are not become their bytes again.
    (out / f"{name}.csv").write_text(table, "utf-8-sig", "surrogateescape", newline="")
    (out / f"{name}.html").write_text(page, encoding="utf-8")
    return [f"pictures: {out / name}.html", f"table: {out / name}.csv"]


def _print_doubtful(review: LabelReview) -> None:
    if review.rows:
        rows = [
            (
                str(rank),
                row.item,
                row.label,
                row.suggested,
                f"{100 * row.probability:.1f} %",
                f"{100 * row.suggested_probability:.1f} %",
                "yes" if row.is_likely_error else "no",
            )
            for rank, row in enumerate(review.rows[:SHOWN], start=1)
        ]
        print_table(("rank", "image", "label", "looks like", "label's", "other's", "likely error"), rows)
        print()


def _print_outcome(lines: list[str], settings: DictConfig, word: str, table: str) -> None:
    """Print and log lines and, where there is something to write into a table, what to do next."""
    from transferkit.records import CORRECTED

    if word:
        lines += [
            f"Next: write {word} into the column {CORRECTED} of {table}, then",
            f"  {_next_command(settings, table)}",
        ]
    for line in lines:
        print(line)
        log.info(line)


def _next_command(settings: DictConfig, table: str) -> str:
    """What trains with the corrected table."""
    from hydra.core.hydra_config import HydraConfig

    ours = ("out=", "overwrite=", "labels=", "limit=")
    words = [word for word in HydraConfig.get().overrides.task if not word.startswith(ours)]
    return command_line("adapt", words, settings, f"labels={as_typed(output_folder()) / table}")


def _review_images(settings: DictConfig) -> float | None:
    from transferkit.api import analyze
    from transferkit.doctor import review_copies
    from transferkit.options import PassOptions, options_from
    from transferkit.records import removal_word
    from transferkit.report import render_images

    arguments, command = arguments_of(settings, analyze), current_command("doctor images", settings)
    options = options_from(PassOptions, arguments)
    review = review_copies(arguments["model"], arguments["data"], options, limit=settings.limit, command=command)
    if review.data is not None:
        for line in audit_lines(review.data):
            print(line)
    lines = []
    for symptom, line in zip_longest(review.symptoms, review.sentences):
        items = () if symptom is None else symptom.items
        more = [f"  and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
        lines += [line, *(f"  {item}" for item in items[:SHOWN]), *more]
    files = _write(output_folder(), "images", review.to_csv(), render_images(review))
    classes = () if review.data is None else review.data.classes
    word = f"{removal_word(classes)} (to leave an image out), or the right class," if review.findings else ""
    _print_outcome([*lines, "", *files], settings, word, "images.csv")
    return None


def _plan_labels(settings: DictConfig, out: Path) -> DryRun:
    return _plan_review(settings, out, "labels", extra=0)


def _plan_images(settings: DictConfig, out: Path) -> DryRun:
    return _plan_review(settings, out, "images", extra=COPY_SECONDS)


def _plan_review(settings: DictConfig, out: Path, name: str, *, extra: float) -> DryRun:
    """What `analyze` would do, and the review."""
    from transferkit.api import analyze, dry_run
    from transferkit.records import DryRun, PlannedFile, PlannedStep

    plan = dry_run("analyze", {**arguments_of(settings, analyze), "out": None})
    assert plan.data is not None
    images, most = sum(plan.data.images.values()), REVIEW_BYTES * settings.limit
    review = PlannedStep(
        name="review",
        what=f"List what is doubtful, at most {settings.limit:,}; write {name}.csv and {name}.html.",
        images=images,
        passes=1.0 if extra else 0.0,
        seconds_low=0.2,
        seconds_high=5.0 + 3 * extra * images,
        memory_bytes=plan.memory_bytes,
        disk_bytes_high=most,
    )
    files = tuple(
        PlannedFile(path=str(out / file), action="replace" if (out / file).exists() else "write", bytes=most // 2)
        for file in (f"{name}.csv", f"{name}.html")
    )
    about = {"model": plan.model, "data": plan.data, "device": plan.device, "warnings": plan.warnings, "files": files}
    steps = [step for step in plan.steps if step.name != "report"]
    return DryRun.of_steps([*steps, review], verb=f"doctor {name}", about=about)


def _plan_examination(settings: DictConfig, words: Sequence[str]) -> DryRun:
    """What `adapt` would do before it trains, and the checks."""
    from transferkit.api import adapt, dry_run
    from transferkit.records import DryRun, PlannedStep

    plan = dry_run("adapt", {**arguments_of(settings, adapt), "out": None})
    steps = [step for step in plan.steps if step.name not in ("fit head", "fine-tune", "verify", "report")]
    checks = PlannedStep(
        name="checks",
        what="Build what would be trained and check it on some images.",
        seconds_low=1.0,
        seconds_high=60.0,
        memory_bytes=plan.memory_bytes,
    )
    names = ("model", "strategy", "data", "device", "warnings")
    about = {**{name: getattr(plan, name) for name in names}, "command": command_line("doctor", words, settings)}
    return DryRun.of_steps([*steps, checks], verb="doctor", about=about)


def _plan_replay(file: Path) -> DryRun:
    from transferkit.doctor.capsule import read_capsule
    from transferkit.records import DryRun, PlannedStep

    read_capsule(file)
    step = PlannedStep(
        name="replay",
        what="Run the step of the capsule again; nothing is written.",
        seconds_low=1.0,
        seconds_high=60.0,
        memory_bytes=4 * file.stat().st_size + REPLAY_MEMORY,
    )
    command = shlex.join(["transferkit", "doctor", "replay", str(file)])
    return DryRun.of_steps([step], verb="doctor replay", about={"command": command})


def _examine(words: list[str]) -> None:
    """Print what is wrong with the set-up that `adapt` would train; exits with 1 after an alarm."""
    from transferkit.api import adapt, check_adapt
    from transferkit.doctor import examine_adapt
    from transferkit.options import AdaptOptions, options_from

    if flags := [word for word in words if word.startswith("-")]:
        raise OptionError(f"doctor examines one set-up and takes no {flags[0]}. See transferkit doctor --help.")
    form, words = take_dry_run(words)
    check_taken("doctor", words)
    composed = hydra_words(words, sources=group_choices("data"))
    settings = compose_settings(composed)
    arguments = {**arguments_of(settings, adapt), "out": None}  # nothing is written
    check_adapt(arguments)
    if form:
        print_plan(_plan_examination(settings, composed), form)
        return
    found = examine_adapt(arguments["model"], arguments["data"], options_from(AdaptOptions, arguments))
    for line in [*audit_lines(found.data), *found.sentences]:
        print(line)
    if not found.diagnosis.healthy:
        sys.exit(EXIT_ALARM)


def _replay(words: list[str]) -> None:
    """Run a kept step again and print which layer is not finite first; exits with 1 after an alarm."""
    from transferkit.doctor import replay

    form, words = take_dry_run(words)
    if len(words) != 1 or words[0].startswith("-"):
        raise OptionError("doctor replay takes one file: transferkit doctor replay FOLDER/nan_capsule.pt")
    file = expand(words[0].removeprefix("capsule="))
    if form:
        print_plan(_plan_replay(file), form)
        return
    found = replay(file)
    for line in found.sentences:
        print(line)
    if not found.healthy:
        sys.exit(EXIT_ALARM)


EXAMINED: Mapping[str, Callable[[list[str]], None]] = {
    "labels": Job("doctor labels", _review_labels, _check_labels, _plan_labels),
    "images": Job("doctor images", _review_images, _check_images, _plan_images),
    "replay": _replay,
}
"""Word after `doctor` -> what it examines; without one, the set-up that `adapt` would train."""


def doctor(words: list[str]) -> None:
    """Examine what the first word that is no setting names, or the set-up that `adapt` would train."""
    place = next((at for at, word in enumerate(words) if "=" not in word and not word.startswith("-")), None)
    name = None if place is None else words[place]
    if name is None:
        _examine(words)
    elif name in EXAMINED:
        EXAMINED[name]([word for at, word in enumerate(words) if at != place])
    else:
        raise OptionError(unknown_name("thing to examine", name, EXAMINED, remedy="See transferkit doctor --help."))
