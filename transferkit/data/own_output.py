"""Recognising transferkit's own output among the images, to exclude it from the data."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from transferkit.core.paths import MARKER
from transferkit.data.formats import is_system_name
from transferkit.data.remembered import FILE as AUDIT

__all__ = ["is_own_file", "is_own_folder"]

_RECORDS = {
    "result.json": ("schema", "evidence"),
    "evidence.json": ("schema", "evidence"),
    "ranking.json": ("schema", "ranking"),
}
"""File of a finished run -> keys that it contains."""

_WRITTEN = frozenset(
    {
        *_RECORDS,
        MARKER,
        "model.safetensors",
        "held_back.safetensors",
        "model.onnx",
        "report.html",
        "ranking.html",
        "labels.csv",
        "labels.html",
        "log.txt",
        "multirun.yaml",
    }
)
_CHECKPOINTS = "training"
_LIGHTNING = "lightning_logs"
"""Folder that Lightning's trainer creates in the working folder when a `TransferModule` is trained there."""

_SHELVES = re.compile("v[0-9]+")


def is_own_folder(folder: Path, has_images: Callable[[Path], bool]) -> bool:
    """Whether a folder is transferkit's own output: a run, several runs, their checkpoints, or a feature bank.

    A run's folder that contains images does not count: `out=` may have named the data folder.

    Args:
        folder: A folder that exists.
        has_images: Function that returns whether there are images anywhere below a folder.
    """
    if _is_shelves(folder):
        return True
    if folder.name == _LIGHTNING and any(folder.glob("version_*")):
        return not has_images(folder)
    if _is_marked(folder) or (folder / AUDIT).is_file() or _is_checkpoints(folder):
        return not has_images(folder)
    with os.scandir(folder) as entries:
        # Links are not followed: one may point to a parent folder.
        inside = [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
    inside = [path for path in inside if not is_system_name(path.name)]
    return bool(inside) and all(is_own_folder(path, has_images) for path in inside) and not has_images(folder)


def is_own_file(path: Path) -> bool:
    """Whether a file is transferkit's own: a run's file inside a run's folder, or the audit's cache."""
    return path.name.startswith(AUDIT) or (path.name in _WRITTEN and _is_marked(path.parent))


def _is_marked(folder: Path) -> bool:
    if (folder / MARKER).exists() or (folder / ".hydra").is_dir():
        return True
    return any(_has_keys(folder / name, keys) for name, keys in _RECORDS.items())


def _has_keys(file: Path, keys: tuple[str, ...]) -> bool:
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(plain, dict) and all(key in plain for key in keys)


def _is_shelves(folder: Path) -> bool:
    """Whether it is the folder of a feature bank's shelves, possibly cleared."""
    if not _SHELVES.fullmatch(folder.name):
        return False
    if any(folder.glob("*/meta.json")):
        return True
    beside = [path for path in folder.parent.iterdir() if path != folder]
    return not any(folder.iterdir()) and (not beside or (folder.parent / AUDIT).is_file())


def _is_checkpoints(folder: Path) -> bool:
    """Whether it is the `training/` folder of a run, interrupted or finished."""
    return folder.name == _CHECKPOINTS and (_is_marked(folder.parent) or any(folder.glob("*/identity.json")))
