"""`transferkit shift`: new, unlabelled images against a run's training images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.cli.light import light_verb, listed_images, print_failures
from transferkit.core.errors import OptionError, RunFolderError, unknown_name
from transferkit.core.paths import check_folder, expand, make_folder

if TYPE_CHECKING:
    from transferkit.records import DryRun, ShiftRecord

__all__ = ["SHIFT"]

FORMS = ("text", "json")

FILES = ("shift.json", "shift.html")


def _asked(settings: dict[str, Any]) -> tuple[Path | None, dict[str, Any]]:
    """Folder of the outcome, and the arguments of `measure_shift`.

    Raises:
        TransferkitError: Something is wrong with them.
    """
    if settings["format"] not in FORMS:
        raise OptionError(unknown_name("format", settings["format"], FORMS))
    out = None if settings["out"] is None else expand(settings["out"])
    if out is not None:
        check_folder(out)
        there = [name for name in FILES if (out / name).is_file()]
        if there and not settings["overwrite"]:
            raise RunFolderError(
                f"{out / there[0]} is there already. Choose another folder with out=DIR, or replace it with "
                "overwrite=true."
            )
    names = ("remedy", "alpha", "reject", "data", "cache", "device", "seed", "progress", "overwrite")
    more = {name: settings[name] for name in names}
    return out, more if settings["max_pixels"] is None else {**more, "max_pixels": settings["max_pixels"]}


def _plan(settings: dict[str, Any]) -> DryRun:
    from transferkit.result.dry_run import plan_shift

    out, more = _asked(settings)
    wider = {"max_pixels": more["max_pixels"]} if "max_pixels" in more else {}
    return plan_shift(settings["run"], listed_images(settings["images"]), out=out, device=settings["device"], **wider)


def _measure(settings: dict[str, Any]) -> None:
    from transferkit.api import measure_shift

    out, more = _asked(settings)
    found = measure_shift(settings["run"], listed_images(settings["images"]), out=out, **more)
    record = found.record
    if settings["format"] == "json" and out is None:
        print(record.to_json())
    else:
        for line in record.sentences:
            print(line)
    if out is not None:
        _write(out, record)
        print(f"{out / 'shift.html'}")
        print(f"run with remedy: {out}" if record.remedy else "No remedy was used: there is no new run.")
    print_failures(list(record.failures))


def _write(out: Path, record: ShiftRecord) -> None:
    from transferkit.report import render_shift

    try:
        make_folder(out)
        (out / "shift.json").write_text(record.to_json(), "utf-8", "backslashreplace")
        (out / "shift.html").write_text(render_shift(record), "utf-8")
    except OSError as error:
        raise RunFolderError(f"{out} cannot be written: {error.strerror}. Choose another with out=DIR.") from error


SHIFT = light_verb(
    "shift",
    _measure,
    _plan,
    text=("run", "images", "out", "data", "cache"),
    settings={
        "run": ...,
        "images": ...,
        "remedy": "none",
        "out": None,
        "overwrite": False,
        "format": "text",
        "alpha": 0.05,
        "reject": 0.01,
        "data": None,
        "max_pixels": None,
        "cache": None,
        "device": "auto",
        "seed": 0,
        "progress": True,
        "debug": False,
    },
)
