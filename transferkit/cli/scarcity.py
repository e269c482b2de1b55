"""`transferkit fewshot` and `transferkit fewshot add`: what they print and write."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.cli.light import light_verb, listed_images
from transferkit.cli.tables import print_table
from transferkit.cli.words import split_list
from transferkit.core.errors import OptionError, RunFolderError, unknown_name
from transferkit.core.paths import check_file, expand, make_folder

if TYPE_CHECKING:
    from transferkit.records import DryRun

__all__ = ["fewshot"]

MODEL = "packaged/tf_efficientnet_lite0"

RECORD_BYTES = 20_000
"""Of a record or its page, about."""

PASSED = (
    "ways", "shots", "queries", "episodes", "method", "imbalance", "transductive", "image_size", "batch_size", "seed",
    "views", "pooling", "test", "checkpoint", "pretrained", "cache", "device", "engine", "progress",
)  # fmt: skip
"""Settings that are arguments of `fewshot` as they are."""


def _arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `transferkit.fewshot`."""
    data = settings["data.path"] or settings["data.root"]
    given = {name: settings[name] for name in PASSED if settings[name] is not None}
    if settings["data.path"] and settings["data.root"]:
        given["root"] = settings["data.root"]
    if settings["prior"] is not None:
        given["prior"] = _listed(settings["prior"])
    if isinstance(given.get("method"), (list, tuple)):
        given["method"] = list(given["method"])
    return {"model": settings["model"], "data": data or "builtin/digits", **given}


def _listed(text: str) -> Any:
    """A path, or the paths of a list in brackets."""
    if text.startswith("[") and text.endswith("]") and not expand(text).exists():
        return split_list(text[1:-1])
    return text


def _out(settings: dict[str, Any]) -> Path | None:
    if settings["out"] is None:
        return None
    out = expand(settings["out"])
    check_file(out, suffixes=(".json", ".html"), example="fewshot")
    return out


def _plan(settings: dict[str, Any]) -> DryRun:
    from transferkit.api import dry_run
    from transferkit.records import PlannedFile

    out = _out(settings)
    planned = dry_run("fewshot", _arguments(settings))
    if out is None:
        return planned
    file = PlannedFile(path=str(out), action="replace" if out.exists() else "write", bytes=RECORD_BYTES)
    return replace(planned, files=(file,))


def _fewshot(settings: dict[str, Any]) -> None:
    from transferkit.api import fewshot as measure
    from transferkit.core.serialization import to_json
    from transferkit.report import render_few_shot

    out = _out(settings)
    words = [f"{key}={value}" for key, value in settings.items() if value != SETTINGS[key] and key != "debug"]
    found = measure(**_arguments(settings), command=shlex.join(["transferkit", "fewshot", *words]))
    rows = [
        (
            one.method,
            f"{100 * one.accuracy:.1f} %",
            f"{100 * one.low:.1f} to {100 * one.high:.1f}",
            f"{100 * one.gain:+.1f} ({100 * one.gain_low:+.1f} to {100 * one.gain_high:+.1f})",
            f"{1000 * one.seconds:.1f} ms",
            one.sentence + (", sees the queries together" if one.transductive else ""),
        )
        for one in found.scores
    ]
    print_table(("method", "accuracy", "95 % interval", "over last_layer", "an episode", ""), rows)
    print("\n".join(["", *found.sentences]))
    if out is not None:
        text = (
            render_few_shot(found)
            if out.suffix.lower() == ".html"
            else json.dumps({"schema": 1, "fewshot": to_json(found)}, indent=1, ensure_ascii=False)
        )
        try:
            make_folder(out.parent)
            out.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise RunFolderError(
                f"{out} cannot be written: {error.strerror}. Choose another file with out=."
            ) from error
        print(f"\nwritten: {out}")


def _add(settings: dict[str, Any]) -> None:
    from transferkit.result import check_replaceable, load
    from transferkit.scarce.adding import add_class, extended_settings

    run = load(settings["run"])
    larger = extended_settings(run.record, str(settings["class"]))
    check_replaceable(expand(settings["out"]), larger, overwrite=settings["overwrite"])
    words = [f"{key}={value}" for key, value in settings.items() if value != ADD_SETTINGS[key] and key != "debug"]
    command = shlex.join(["transferkit", "fewshot", "add", *words])
    result = add_class(
        run,
        str(settings["class"]),
        listed_images(settings["images"]),
        old_images=settings["old"],
        cache=settings["cache"],
        device=settings["device"],
        seed=settings["seed"],
        progress=settings["progress"],
        command=command,
    )
    print(result.record.added[-1].sentence)
    print(f"report: {result.save(settings['out'], overwrite=settings['overwrite']) / 'report.html'}")


def _plan_add(settings: dict[str, Any]) -> DryRun:
    from transferkit.scarce.dry_run import plan_add

    images = listed_images(settings["images"])
    more = {"out": settings["out"], "old_images": settings["old"], "overwrite": settings["overwrite"]}
    return plan_add(settings["run"], str(settings["class"]), images, **more)


SETTINGS: dict[str, Any] = {
    "model": MODEL, "data.root": None, "data.path": None, "ways": 5, "shots": 1, "queries": 15, "episodes": 600,
    "method": "auto", "prior": None, "imbalance": None, "transductive": False, "image_size": None, "batch_size": None,
    "seed": 0, "views": "auto", "pooling": "avg+max", "test": None, "checkpoint": None, "pretrained": True,
    "cache": None, "device": "auto", "engine": "auto", "progress": True, "out": None, "debug": False,
}  # fmt: skip

ADD_SETTINGS: dict[str, Any] = {
    "run": ..., "class": ..., "images": ..., "out": ..., "old": None, "overwrite": False, "cache": None,
    "device": "auto", "seed": 0, "progress": True, "debug": False,
}  # fmt: skip

_FEWSHOT = light_verb(
    "fewshot",
    _fewshot,
    _plan,
    text=("data.root", "data.path", "prior", "checkpoint", "cache", "out", "model"),
    settings=SETTINGS,
)

ACTIONS: dict[str, Callable[[list[str]], None]] = {
    "add": light_verb(
        "fewshot add",
        _add,
        _plan_add,
        text=("run", "class", "images", "out", "old", "cache"),
        settings=ADD_SETTINGS,
    )
}


def fewshot(words: list[str]) -> None:
    """`transferkit fewshot`, or what the word after it says."""
    action = next((word for word in words[:1] if "=" not in word and not word.startswith("-")), None)
    if action is None:
        _FEWSHOT(words)
        return
    if action not in ACTIONS:
        raise OptionError(unknown_name("action of fewshot", action, ACTIONS, remedy="See transferkit fewshot --help."))
    ACTIONS[action](words[1:])
