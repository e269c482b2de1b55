"""One fit: a Lightning trainer around a module, taken up where it was killed, in smaller batches if memory runs out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from transferkit.errors import OptionError, TransferkitError
from transferkit.frameworks import lightning
from transferkit.progress import announce
from transferkit.train.memory import Memory, snapshot
from transferkit.train.module import TransferModule

if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = lightning()

__all__ = ["Runner"]

QUIET = (
    ".*does not have many workers.*",  # batches come from memory: workers would only copy them
    ".*Consider setting `persistent_workers=True`.*",
    ".*is smaller than the logging interval.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # inside Lightning
    ".*The `srun` command is available.*",
    ".*validation_step` but have no `val_dataloader`.*",  # the last fit is on all images
)
"""Warnings of Lightning's that are about what is meant to be so here."""


@dataclass(frozen=True)
class Runner:
    """How fits are run.

    Args:
        device: Where.
        folder: Where checkpoints and logs go; None keeps none.
        options: For the trainer, over what is set here.
        progress: Show a bar on a terminal.
        notes: Sentences for people are added here: what was halved, where a run was taken up.
    """

    device: torch.device
    folder: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    progress: bool = True
    notes: list[str] = field(default_factory=list)

    def fit(
        self,
        module: TransferModule,
        train: Callable[[int], Iterable[Any]],
        held_back: Iterable[Any] | None,
        *,
        name: str,
        stop_after: int,
    ) -> Memory:
        """Train, and return what was measured.

        Args:
            module: Trained in place; at the end it has its last weights.
            train: Number of images -> batches of so many.
            held_back: Images that are judged after every epoch; None judges none and stops for nothing.
            name: Of the fit, a folder below `folder`.
            stop_after: Epochs to run; the schedule is that of the recipe's epochs all the same.
        """
        folder = None if self.folder is None else self.folder / name
        batch_size, before = module.recipe.batch_size or 1, snapshot(module)
        parts = 1
        while True:
            memory = Memory(folder, stop_after=stop_after)
            checkpoint = None if folder is None else folder / "last.ckpt"
            try:
                trainer = self._trainer(module, memory, held_back is not None, name, parts)
                resumed = checkpoint if checkpoint is not None and checkpoint.is_file() else None
                if resumed is not None:
                    announce(f"taking {name} up from {resumed}", enabled=self.progress)
                with _quiet():
                    trainer.fit(module, train(batch_size // parts), held_back, ckpt_path=resumed, weights_only=False)
                return memory
            except RuntimeError as error:
                if isinstance(error, TransferkitError) or not _is_out_of_memory(error):
                    raise
                if batch_size // (2 * parts) < 1:
                    raise OptionError(
                        f"Memory runs out on {self.device} with a single image. "
                        "Choose a smaller image_size or backbone."
                    ) from error
            # Outside `except`: while the error lives, its traceback holds on to the activations that did not fit.
            parts *= 2
            self._say_halved(batch_size, parts)
            module.freeze_plan.release()
            module.zero_grad(set_to_none=True)
            module.load_state_dict(before)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _say_halved(self, batch_size: int, parts: int) -> None:
        note = (
            f"Memory ran out at {2 * batch_size // parts} images at once: batches of {batch_size} are now added up "
            f"from {parts} parts."
        )
        self.notes.append(note)
        announce(note, enabled=self.progress)

    def _trainer(self, module: TransferModule, memory: Memory, judged: bool, name: str, parts: int) -> pl.Trainer:
        recipe = module.recipe
        callbacks: list[pl.Callback] = [memory]
        if judged:
            stopping = pl.callbacks.EarlyStopping("val_loss", patience=recipe.stops_after, check_finite=True)
            callbacks.insert(0, stopping)
        settings: dict[str, Any] = {
            "accelerator": {"cuda": "gpu"}.get(self.device.type, self.device.type),
            "devices": 1 if self.device.index is None or self.device.type == "cpu" else [self.device.index],
            "max_epochs": recipe.epochs,
            "gradient_clip_val": recipe.clip,
            "accumulate_grad_batches": parts,
            "logger": self._loggers(name),
            "log_every_n_steps": 10,
            "enable_model_summary": False,
            "enable_progress_bar": self.progress and _on_terminal(),
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "default_root_dir": self.folder,
        }
        mine = sorted({"max_epochs", "accumulate_grad_batches", "callbacks", "gradient_clip_val"} & set(self.options))
        if mine:
            raise OptionError(
                f"trainer.{', trainer.'.join(mine)}: these are set by the recipe (train.epochs, batch_size, "
                "train.clip). For callbacks of your own use transferkit.TransferModule with your own trainer."
            )
        with _quiet():
            return pl.Trainer(callbacks=callbacks, **{**settings, **self.options})

    def _loggers(self, name: str) -> Any:
        """Curves as CSV; TensorBoard's if it is installed."""
        if self.folder is None:
            return False
        found: list[Any] = [pl.loggers.CSVLogger(self.folder, name="curves", version=name)]
        with suppress(ModuleNotFoundError):
            found.append(pl.loggers.TensorBoardLogger(self.folder, name="tensorboard", version=name))
        return found


def _on_terminal() -> bool:
    import sys

    return sys.stderr.isatty()


def _is_out_of_memory(error: RuntimeError) -> bool:
    said = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in said or "can't allocate memory" in said


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's words about devices and workers."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for message in QUIET:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
