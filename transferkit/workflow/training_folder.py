"""The folder that one strategy's checkpoints and curves are kept in, so that an interrupted run can be resumed."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from transferkit.core.distributed import is_first
from transferkit.core.errors import RunFolderError
from transferkit.core.paths import mark_folder
from transferkit.core.progress import announce

__all__ = ["WORK", "TrainingFolder", "clear_checkpoints"]

WORK = "training"
"""Folder inside a run's folder, with a folder for each strategy."""

FED = "fed.txt"
"""Name of the file that says what a run is fed, in its folder."""


@dataclass(frozen=True, kw_only=True)
class TrainingFolder:
    """Where the fits of one strategy keep their checkpoints.

    Args:
        path: The folder; None keeps nothing.
        identity: What the run is, as text: two runs with the same identity end with the same weights.
        resume: Whether a run of this identity is resumed from its checkpoints.
        progress: Whether to say so when training starts over.
    """

    path: Path | None
    identity: str
    resume: bool
    progress: bool

    def prepare(self) -> None:
        """Make the folder; empty it unless it holds checkpoints of this very run, and they are to be resumed.

        Raises:
            RunFolderError: It cannot be written, or holds files that are not ours.
        """
        if self.path is None or not is_first():
            return
        try:
            self._prepare(self.path)
        except OSError as error:
            if isinstance(error, RunFolderError):
                raise
            raise RunFolderError(
                f"The folder {self.path} cannot be written: {error.strerror or error}. Choose another with out=DIR."
            ) from error

    def _prepare(self, path: Path) -> None:
        identity = path / "identity.json"
        for ours in (path.parents[1], path.parent):  # the run's, then the one that all its fits are in
            mark_folder(ours)
        path.mkdir(parents=True, exist_ok=True)
        others = [inside for inside in path.iterdir() if inside != identity]
        if others and not identity.is_file():
            raise RunFolderError(
                f"{path} is needed for checkpoints, but holds files of somebody else's, such as {others[0].name}. "
                "Choose another place with out=DIR."
            )
        same = identity.is_file() and identity.read_text(encoding="utf-8") == self.identity
        if same and self.resume:
            return
        if others and not same:
            announce(
                "out= holds a different run; its checkpoints are deleted and training starts over",
                enabled=self.progress,
            )
        for inside in others:
            shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
        identity.write_text(self.identity, encoding="utf-8")

    def note_feed(self, kind: str) -> None:
        """Note what the run is fed; one that was fed otherwise before starts over, for the two differ by rounding.

        Args:
            kind: "pictures", or the dtype of cached activations.
        """
        if self.path is None or not is_first():
            return
        fed = self.path / FED
        if fed.is_file() and fed.read_text(encoding="utf-8") != kind:
            announce("activations are stored in another precision than before; training starts over",
                     enabled=self.progress)  # fmt: skip
            for checkpoint in self.path.glob("*/last.ckpt*"):
                checkpoint.unlink()
        fed.write_text(kind, encoding="utf-8")


def clear_checkpoints(run: Path) -> None:
    """Remove the checkpoints of a run that is finished; its curves stay.

    Args:
        run: The run's folder.
    """
    for checkpoint in (run / WORK).glob("*/*/last.ckpt*"):
        checkpoint.unlink()
        with suppress(OSError):  # somebody put something beside it
            checkpoint.parent.rmdir()
