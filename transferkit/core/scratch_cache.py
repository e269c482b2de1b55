"""A stand-in for the cache folder: it shows what the cache holds, and takes what would be written there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transferkit.core.cache_folder import default_folder
from transferkit.core.paths import expand

__all__ = ["scratch_cache"]

KEPT = (".ids", ".rows")
"""Endings of the bank's large files, which are only read."""


@contextmanager
def scratch_cache(cache: str | Path | None) -> Iterator[Path]:
    """A temporary folder that shows what a cache folder holds; what is written there does not reach the cache.

    Rows are links to the bank's, small files are copies. What cannot be linked or copied counts as not in the cache.

    Args:
        cache: The cache folder; None is the default one. It need not exist.
    """
    source = default_folder() if cache is None else expand(cache)
    with tempfile.TemporaryDirectory(prefix="transferkit-") as made:
        folder = Path(made)
        for path in source.glob("*"):
            with suppress(OSError):
                if path.is_file():
                    shutil.copy2(path, folder / path.name)
        for shelf in source.glob("*/*"):
            with suppress(OSError):
                if shelf.is_dir():
                    _mirror(shelf, folder / shelf.relative_to(source))
        yield folder


def _mirror(shelf: Path, copy: Path) -> None:
    copy.mkdir(parents=True)
    for path in shelf.iterdir():
        with suppress(OSError):
            if path.suffix in KEPT:
                (copy / path.name).symlink_to(path.absolute())
            elif path.name == "meta.json":
                shutil.copy2(path, copy / path.name)
