"""Verbs with a handful of settings: predict, evaluate, export, shard, zoo, cache."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from transferkit.cli.tables import print_table
from transferkit.cli.words import check_given, split_list
from transferkit.core.errors import OptionError, RunFolderError, unknown_name
from transferkit.core.paths import check_file, expand, make_folder

__all__ = ["CACHE", "EVALUATE", "EXPORT", "PREDICT", "SHARD", "ZOO"]

SHOWN = 5
"""Unreadable images that are named on the terminal."""


def _light(
    verb: str, do: Callable[[dict[str, Any]], None], *, text: Collection[str], settings: Mapping[str, Any]
) -> Callable[[list[str]], None]:
    """A verb with a handful of settings.

    Args:
        verb: Its name.
        do: Does it, with all settings.
        text: Settings that are plain text after the first `=`, paths above all; the others are in Hydra's grammar.
        settings: Name -> what it is unless given; `...` where it must be.
    """

    def parsed(words: list[str]) -> None:
        check_given(words, text)
        given = dict(settings)
        for word in words:
            key, equals, value = word.partition("=")
            if equals and key not in given:
                raise OptionError(unknown_name(f"setting of {verb}", key, given, remedy=_see(verb)))
            if not equals:
                raise OptionError(f"{word!r} is not a setting. Write key=value; {_see(verb, 'see')}")
            given[key] = value if key in text else _value(word, verb)
        if needed := [key for key, value in given.items() if value is ...]:
            raise OptionError(f"transferkit {verb} needs {', '.join(f'{key}=...' for key in needed)}.")
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


def _predict(settings: dict[str, Any]) -> None:
    from transferkit.result import load

    out = None if settings["out"] is None else expand(settings["out"])
    if out is not None:
        check_file(out, suffixes=(".csv", ".json"), example="answers")
    form = settings["format"] if out is None else out.suffix.lower().lstrip(".")
    if form not in ("csv", "json"):
        raise OptionError(unknown_name("format", form, ["csv", "json"]))
    images = _images(settings["images"])
    more = {} if settings["max_pixels"] is None else {"max_pixels": settings["max_pixels"]}
    answers = load(settings["run"]).predict(images, on_error="skip", device=settings["device"], **more)
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
    _print_failures([failure.reason for failure in answers.failures])


def _images(text: str) -> Any:
    """Path, pattern or list; brackets make a list, unless something of that very name is there."""
    if not (text.startswith("[") and text.endswith("]")) or expand(text).exists():
        return text
    images = split_list(text[1:-1])
    if not images or not all(images):
        raise OptionError(f"images={text} is a list with an empty entry. Write images=[a.jpg,b.jpg].")
    return images


def _print_failures(reasons: list[str]) -> None:
    if not reasons:
        return
    shown = "".join(f"\n- {reason}" for reason in reasons[:SHOWN])
    more = f"\n- and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    verb = "was" if len(reasons) == 1 else "were"
    what = "1 image" if len(reasons) == 1 else f"{len(reasons)} images"
    print(f"{what} could not be read and {verb} not classified:{shown}{more}", file=sys.stderr)


def _evaluate(settings: dict[str, Any]) -> None:
    from transferkit.result import load

    result, split = load(settings["run"]), settings["split"]
    before = result.metrics.get(split)
    data = settings["data.path"] or settings["data.root"]
    root = settings["data.root"] if settings["data.path"] else None
    found = result.evaluate(data, split=split, root=root, device=settings["device"], cache=settings["cache"])
    print(
        f"{split} accuracy {100 * found.accuracy:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f}) on "
        f"{found.images:,} images"
    )
    if before is None:
        print(f"report: {result.save(settings['run']) / 'report.html'}")
    elif data is None:
        print("It had been scored already; nothing was computed.")
    else:
        print(f"The run's own {split} accuracy is {100 * before.accuracy:.1f} %; its report keeps that.")


def _export(settings: dict[str, Any]) -> None:
    from transferkit.result import check_export, load

    out = expand(settings["out"] or Path(settings["run"]) / f"model.{settings['format']}")
    check_export(out, settings["format"])
    print(load(settings["run"]).export(out, format=settings["format"]))


COLUMNS = {name: f"data.columns.{name}" for name in ("path", "label", "split", "group")}
"""Column of a manifest -> the setting that names it."""


def _shard(settings: dict[str, Any]) -> None:
    from transferkit.data import list_source, pack_shards
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
    listing = list_source(data, root=root if settings["data.path"] else None, columns=columns or None)
    index = pack_shards(listing, out, megabytes=size, progress=settings["progress"])
    for finding in listing.findings:
        print(finding.message)
    total = sum(shard.size for shard in index.shards)
    shards = "1 shard" if len(index.shards) == 1 else f"{len(index.shards):,} shards"
    print(f"{len(index):,} images of {len(index.classes):,} classes in {shards}, {total / 1e6:,.1f} MB: {out}")
    print(f"Next:\n  {shlex.join(['transferkit', 'adapt', f'data.root={out}'])}")


def _zoo(settings: dict[str, Any]) -> None:
    from transferkit.zoo import catalog

    entries = catalog(settings["pattern"], source=settings["source"], offline=settings["offline"])
    if not entries:
        raise OptionError("No backbone matches. Widen the pattern: transferkit zoo pattern='*resnet*'.")
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


PREDICT = _light(
    "predict",
    _predict,
    text=("run", "images", "out"),
    settings={
        "run": ...,
        "images": ...,
        "out": None,
        "format": "csv",
        "max_pixels": None,
        "device": "auto",
        "debug": False,
    },
)
EVALUATE = _light(
    "evaluate",
    _evaluate,
    text=("run", "data.root", "data.path", "cache"),
    settings={
        "run": ..., "data.root": None, "data.path": None, "cache": None, "split": "test", "device": "auto",
        "debug": False,
    },
)  # fmt: skip
EXPORT = _light(
    "export", _export, text=("run", "out"), settings={"run": ..., "out": None, "format": "onnx", "debug": False}
)
SHARD = _light(
    "shard",
    _shard,
    text=("data.root", "data.path", "out", *COLUMNS.values()),
    settings={
        "data.root": None, "data.path": None, "out": ..., **dict.fromkeys(COLUMNS.values()), "size": 256,
        "progress": True, "debug": False,
    },
)  # fmt: skip
ZOO = _light(
    "zoo", _zoo, text=("pattern",), settings={"pattern": None, "source": None, "offline": None, "debug": False}
)
CACHE = _light("cache", _cache, text=("cache",), settings={"cache": None, "clear": False, "debug": False})
