"""Verbs with a handful of settings: predict, evaluate, export, shard, zoo, cache."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.cli.dry_run import print_plan, take_dry_run
from transferkit.cli.tables import print_table
from transferkit.cli.words import check_given, split_list
from transferkit.core.errors import OptionError, RunFolderError, unknown_name
from transferkit.core.paths import check_file, expand, make_folder
from transferkit.core.score_text import format_end, format_score

if TYPE_CHECKING:
    from transferkit.data.inventory import FileListing
    from transferkit.records import DryRun
    from transferkit.zoo import ZooEntry

__all__ = [
    "CACHE",
    "EVALUATE",
    "EXPORT",
    "PREDICT",
    "SHARD",
    "ZOO",
    "light_verb",
    "listed_images",
    "print_failures",
]

SHOWN = 5
"""Unreadable images that are named on the terminal."""


def light_verb(
    verb: str,
    do: Callable[[dict[str, Any]], None],
    plan: Callable[[dict[str, Any]], DryRun],
    *,
    text: Collection[str],
    settings: Mapping[str, Any],
) -> Callable[[list[str]], None]:
    """A verb with a handful of settings.

    Args:
        verb: Its name.
        do: Does it, with all settings.
        plan: What that would be and cost (`dry_run=true`).
        text: Settings that are plain text after the first `=`, paths above all; the others are in Hydra's grammar.
        settings: Name -> what it is unless given; `...` where it must be.
    """

    def parsed(words: list[str]) -> None:
        form, others = take_dry_run(words)
        check_given(others, text)
        given = dict(settings)
        for word in others:
            key, equals, value = word.partition("=")
            if equals and key not in given:
                raise OptionError(unknown_name(f"setting of {verb}", key, [*given, "dry_run"], remedy=_see(verb)))
            if not equals:
                raise OptionError(f"{word!r} is not a setting. Write key=value; {_see(verb, 'see')}")
            given[key] = value if key in text else _value(word, verb)
        if needed := [key for key, value in given.items() if value is ...]:
            raise OptionError(f"transferkit {verb} needs {', '.join(f'{key}=...' for key in needed)}.")
        if form:
            with redirect_stdout(sys.stderr):  # what is on stdout is the plan
                planned = plan(given)
            print_plan(replace(planned, command=shlex.join(["transferkit", *verb.split(), *others])), form)
            return
        do(given)

    return parsed


def _see(verb: str, see: str = "See") -> str:
    return f"{see} transferkit {verb} --help."


def _value(word: str, verb: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word).value()
    except HydraException as error:
        raise OptionError(f"{word!r} is not a setting. Write key=value; {_see(verb, 'see')}") from error


def _asked_answers(settings: dict[str, Any]) -> tuple[Path | None, str, Any, dict[str, Any]]:
    """File of the answers, their format, the images, further arguments.

    Raises:
        TransferkitError: Something is wrong with them.
    """
    out = None if settings["out"] is None else expand(settings["out"])
    if out is not None:
        check_file(out, suffixes=(".csv", ".json"), example="answers")
    form = settings["format"] if out is None else out.suffix.lower().lstrip(".")
    if form not in ("csv", "json"):
        raise OptionError(unknown_name("format", form, ["csv", "json"]))
    images = listed_images(settings["images"])
    more = {name: settings[name] for name in ("max_pixels", "coverage") if settings[name] is not None}
    if "coverage" in more:
        from transferkit.result import check_coverage

        check_coverage(more["coverage"])
    return out, form, images, more


def _plan_predict(settings: dict[str, Any]) -> DryRun:
    from transferkit.result.dry_run import plan_predict

    out, form, images, more = _asked_answers(settings)
    return plan_predict(settings["run"], images, out=out, form=form, device=settings["device"], **more)


def _predict(settings: dict[str, Any]) -> None:
    from transferkit.result import load_predictor

    out, form, images, more = _asked_answers(settings)
    answers = load_predictor(settings["run"]).predict(images, on_error="skip", device=settings["device"], **more)
    text = answers.to_csv() if form == "csv" else answers.to_json() + "\n"
    if out is None:
        print(text, end="")
    else:
        try:
            make_folder(out.parent)
            out.write_text(text, "utf-8", "surrogateescape")
        except OSError as error:
            raise RunFolderError(
                f"{out} cannot be written: {error.strerror}. Choose another file with out=."
            ) from error
        print(f"{len(answers)} images: {out}")
    print_failures([failure.reason for failure in answers.failures])


def listed_images(text: str) -> Any:
    """Path, pattern or list; brackets make a list, unless something of that very name is there."""
    if not (text.startswith("[") and text.endswith("]")) or expand(text).exists():
        return text
    images = split_list(text[1:-1])
    if not images or not all(images):
        raise OptionError(f"images={text} is a list with an empty entry. Write images=[a.jpg,b.jpg].")
    return images


def print_failures(reasons: list[str]) -> None:
    if not reasons:
        return
    shown = "".join(f"\n- {reason}" for reason in reasons[:SHOWN])
    more = f"\n- and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    verb = "was" if len(reasons) == 1 else "were"
    what = "1 image" if len(reasons) == 1 else f"{len(reasons)} images"
    print(f"{what} could not be read and {verb} not classified:{shown}{more}", file=sys.stderr)


def _scoredlisted_images(settings: dict[str, Any]) -> tuple[str | None, str | None]:
    """The images that are scored, None for the run's own; and where a manifest's paths start."""
    data = settings["data.path"] or settings["data.root"]
    return data, settings["data.root"] if settings["data.path"] else None


def _plan_evaluate(settings: dict[str, Any]) -> DryRun:
    from transferkit.result.dry_run import plan_evaluate

    data, root = _scoredlisted_images(settings)
    more = {name: settings[name] for name in ("split", "device", "cache")}
    return plan_evaluate(settings["run"], data, root=root, **more)


def _evaluate(settings: dict[str, Any]) -> None:
    from transferkit.result import load

    result, split = load(settings["run"]), settings["split"]
    before = result.metrics.get(split)
    data, root = _scoredlisted_images(settings)
    found = result.evaluate(data, split=split, root=root, device=settings["device"], cache=settings["cache"])
    print(
        f"{split} {found.measure} {format_score(found.score, found.measure)} "
        f"({format_end(found.low, found.measure)} to {format_end(found.high, found.measure)}) on "
        f"{found.images:,} images"
    )
    if before is None:
        print(f"report: {result.save(settings['run']) / 'report.html'}")
    elif data is None:
        print("It had been scored already; nothing was computed.")
    else:
        own = f"{before.measure} is {format_score(before.score, before.measure)}"
        print(f"The run's own {split} {own}; its report keeps that.")


def _exported_file(settings: dict[str, Any]) -> Path:
    from transferkit.result import check_export

    out = expand(settings["out"] or Path(settings["run"]) / f"model.{settings['format']}")
    check_export(out, settings["format"])
    return out


def _plan_export(settings: dict[str, Any]) -> DryRun:
    from transferkit.result.dry_run import plan_export

    return plan_export(settings["run"], _exported_file(settings))


def _export(settings: dict[str, Any]) -> None:
    from transferkit.result import load

    out = _exported_file(settings)
    print(load(settings["run"]).export(out, format=settings["format"]))


COLUMNS = {name: f"data.columns.{name}" for name in ("path", "label", "split", "group")}
"""Column of a manifest -> the setting that names it."""

PACKED_BYTES = 2048
"""Of a tar file beside an image's own: two headers, padding, and its class."""

PACKING_PACE, PACKED_PER_SECOND = (5e7, 1e9), 2000
"""Bytes per second, slow to fast disks; images per second."""


def _listed_for_shards(settings: dict[str, Any]) -> tuple[FileListing, Path]:
    """The images to pack, and the folder to pack them into."""
    from transferkit.data import list_source
    from transferkit.data.packing import check_shard_folder

    size = settings["size"]
    if isinstance(size, bool) or not isinstance(size, (int, float)):
        raise OptionError(f"size is a number of megabytes, got {size!r}.")
    data, root = settings["data.path"] or settings["data.root"], settings["data.root"]
    if data is None:
        raise OptionError("transferkit shard needs data.root=DIR or data.path=FILE: the images to pack.")
    columns = {name: settings[key] for name, key in COLUMNS.items() if settings[key] is not None}
    out = expand(settings["out"])
    check_shard_folder(out)
    return list_source(data, root=root if settings["data.path"] else None, columns=columns or None), out


def _plan_shard(settings: dict[str, Any]) -> DryRun:
    from transferkit.core.memory import peak_memory
    from transferkit.data.members import Member
    from transferkit.records import DryRun, PlannedFile, PlannedStep

    listing, out = _listed_for_shards(settings)
    sizes = [one.size if isinstance(one, Member) else one.stat().st_size for one in listing.files]
    total = sum(size + PACKED_BYTES for size in sizes)
    step = PlannedStep(
        name="pack",
        what=f"Copy the images' bytes into shards of {settings['size']} MB.",
        images=len(sizes),
        passes=0,
        seconds_low=total / PACKING_PACE[1],
        seconds_high=1 + total / PACKING_PACE[0] + len(sizes) / PACKED_PER_SECOND,
        memory_bytes=peak_memory(),
        disk_bytes_low=sum(sizes),
        disk_bytes_high=total + 2**20,
    )
    return DryRun.of_steps(
        [step], verb="shard", about={"files": (PlannedFile(path=str(out), action="write", bytes=total),)}
    )


def _shard(settings: dict[str, Any]) -> None:
    from transferkit.data import pack_shards

    listing, out = _listed_for_shards(settings)
    index = pack_shards(listing, out, megabytes=settings["size"], progress=settings["progress"])
    for finding in listing.findings:
        print(finding.message)
    total = sum(shard.size for shard in index.shards)
    shards = "1 shard" if len(index.shards) == 1 else f"{len(index.shards):,} shards"
    print(f"{len(index):,} images of {len(index.classes):,} classes in {shards}, {total / 1e6:,.1f} MB: {out}")
    print(f"Next:\n  {shlex.join(['transferkit', 'adapt', f'data.root={out}'])}")


def _listed_models(settings: dict[str, Any]) -> list[ZooEntry]:
    from transferkit.zoo import catalog

    entries = catalog(settings["pattern"], source=settings["source"], offline=settings["offline"])
    if not entries:
        raise OptionError("No backbone matches. Widen the pattern: transferkit zoo pattern='*resnet*'.")
    return entries


def _plan_zoo(settings: dict[str, Any]) -> DryRun:
    began = time.perf_counter()
    number = len(_listed_models(settings))
    return _read_only("zoo", "list", f"List {number:,} models; nothing is fetched or written.", began)


def _read_only(verb: str, name: str, what: str, began: float, **about: Any) -> DryRun:
    """A plan of what takes as long as making the plan."""
    from transferkit.core.memory import peak_memory
    from transferkit.records import DryRun, PlannedStep

    spent = time.perf_counter() - began
    step = PlannedStep(
        name=name,
        what=what,
        seconds_low=0.3 * spent,
        seconds_high=1.0 + 3 * spent,
        basis="measured now",
        memory_bytes=peak_memory(),
    )
    return DryRun.of_steps([step], verb=verb, about=about)


def _zoo(settings: dict[str, Any]) -> None:
    entries = _listed_models(settings)
    rows = [
        (
            entry.name,
            "on this machine" if entry.offline else "from the hub" if entry.pretrained else "none",
            "" if entry.size is None else f"{entry.size}",
            entry.license or "",
        )
        for entry in entries
    ]
    print_table(("name", "weights", "pixels", "license"), rows)


AUDIT = "audit"
"""What `cache clear=` calls that which the audit remembers of files; shelves have longer names."""


def _plan_cache(settings: dict[str, Any]) -> DryRun:
    from transferkit.data.remembered import FILE, InspectionCache
    from transferkit.features import FeatureBank
    from transferkit.records import PlannedFile

    began, bank = time.perf_counter(), FeatureBank(settings["cache"])
    if not settings["clear"]:
        return _read_only("cache", "list", f"List what is kept at {bank.folder}; nothing is written.", began)
    name = None if settings["clear"] is True else str(settings["clear"])
    files = [
        PlannedFile(path=str(bank.shelf_folder(shelf.name)), action="delete", bytes=shelf.size)
        for shelf in bank.list_shelves()
        if name in (None, shelf.name)
    ]
    audit = InspectionCache(bank.folder)
    if name in (None, AUDIT) and audit.file.exists():
        files.append(PlannedFile(path=str(bank.folder / FILE), action="delete", bytes=audit.size))
    freed = sum(one.bytes for one in files) / 2**20
    what = f"Delete {'what is' if files else 'nothing: nothing is'} kept of earlier runs, {freed:,.1f} MB are freed."
    return _read_only("cache", "clear", what, began, files=tuple(files))


def _cache(settings: dict[str, Any]) -> None:
    from transferkit.data.remembered import InspectionCache
    from transferkit.features import FeatureBank

    bank = FeatureBank(settings["cache"])
    audit = InspectionCache(bank.folder)
    if settings["clear"]:
        name = None if settings["clear"] is True else str(settings["clear"])
        freed = 0 if name == AUDIT else bank.clear(name)
        freed += audit.clear() if name in (None, AUDIT) else 0
        print(f"{freed / 2**20:,.1f} MB freed")
        return
    shelves = bank.list_shelves()
    rows = [
        (shelf.name, shelf.backbone, f"{shelf.image_size} px", shelf.pooling, f"{shelf.images:,}",
         f"{shelf.size / 2**20:,.1f} MB", time.strftime("%Y-%m-%d %H:%M", time.localtime(shelf.last_used)))
        for shelf in shelves
    ]  # fmt: skip
    print_table(("shelf", "backbone", "size", "pooling", "images", "disk", "last used"), rows)
    print(f"{AUDIT}: {audit.count():,} image files remembered, {audit.size / 2**20:,.1f} MB")
    print(f"{(audit.size + sum(shelf.size for shelf in shelves)) / 2**20:,.1f} MB at {bank.folder}")


PREDICT = light_verb(
    "predict",
    _predict,
    _plan_predict,
    text=("run", "images", "out"),
    settings={
        "run": ...,
        "images": ...,
        "out": None,
        "format": "csv",
        "coverage": None,
        "max_pixels": None,
        "device": "auto",
        "debug": False,
    },
)
EVALUATE = light_verb(
    "evaluate",
    _evaluate,
    _plan_evaluate,
    text=("run", "data.root", "data.path", "cache"),
    settings={
        "run": ..., "data.root": None, "data.path": None, "cache": None, "split": "test", "device": "auto",
        "debug": False,
    },
)  # fmt: skip
EXPORT = light_verb(
    "export",
    _export,
    _plan_export,
    text=("run", "out"),
    settings={"run": ..., "out": None, "format": "onnx", "debug": False},
)
SHARD = light_verb(
    "shard",
    _shard,
    _plan_shard,
    text=("data.root", "data.path", "out", *COLUMNS.values()),
    settings={
        "data.root": None, "data.path": None, "out": ..., **dict.fromkeys(COLUMNS.values()), "size": 256,
        "progress": True, "debug": False,
    },
)  # fmt: skip
ZOO = light_verb(
    "zoo",
    _zoo,
    _plan_zoo,
    text=("pattern",),
    settings={"pattern": None, "source": None, "offline": None, "debug": False},
)
CACHE = light_verb(
    "cache", _cache, _plan_cache, text=("cache",), settings={"cache": None, "clear": False, "debug": False}
)
