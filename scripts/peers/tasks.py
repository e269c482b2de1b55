"""Tasks at a number of images per class: the same draws as the regret benchmark's cells, as folders of their own."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from regret.running import draw

from transferkit.core.errors import OptionError
from transferkit.data import open_data

ALL = 0
"""The level of a task with all its training images."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A folder that contestants get.

    Args:
        name: The task's name.
        family: That of its original, if it is a corrupted copy.
        level: Training images per class at most; `ALL`: all of them.
        content: Digest of all the task's images, from `task.json`.
        folder: With train/<class>/* and test/<class>/*.
        train: Number of training images.
        test: Number of test images.
        classes: Number of classes.
    """

    name: str
    family: str
    level: int
    content: str
    folder: Path
    train: int
    test: int
    classes: int

    @property
    def label(self) -> str:
        """Its name in the tables."""
        return self.name if self.level == ALL else f"{self.name}, {self.level} per class"


def split_name(word: str) -> tuple[str, int]:
    """A task and its level.

    Raises:
        OptionError: The level is not a number.

    Example:
        >>> split_name("stamps:20"), split_name("stamps")
        (('stamps', 20), ('stamps', 0))
    """
    name, _, level = word.partition(":")
    if level and not level.isdecimal():
        raise OptionError(f"A task is NAME or NAME:IMAGES_PER_CLASS, got {word!r}.")
    return name, int(level or ALL)


def prepare(root: Path, word: str, work: Path) -> Stage:
    """The folder of a task at a level; made under `work` unless it is the whole task.

    Raises:
        OptionError: There is no such task in `root`.
    """
    name, level = split_name(word)
    path = root / name / "task.json"
    if not path.exists():
        raise OptionError(f"{path} does not exist. Run: python scripts/make_tasks.py --out {root} --only {name}")
    described = json.loads(path.read_text(encoding="utf-8"))
    folder = root / name if level == ALL else work / f"{name}-{level}-{described['content'][:12]}"
    if not folder.exists():
        copy_draw(root / name, folder, level)
    return Stage(
        name=name,
        family=described["copy_of"] or name,
        level=level,
        content=described["content"],
        folder=folder,
        train=len(list(folder.glob("train/*/*"))),
        test=len(list(folder.glob("test/*/*"))),
        classes=len(described["classes"]),
    )


def copy_draw(task: Path, folder: Path, level: int) -> None:
    """Copy the first draw of a level, and all test images, into a new folder."""
    data = open_data(task, progress=False)
    train = data.indices("train")
    chosen = [*train[draw(data.labels[train], level, 0)], *data.indices("test")]
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for index in chosen:
        item = data.items[index]
        (partial / item).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(task / item, partial / item)
    partial.rename(folder)
