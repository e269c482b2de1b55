"""One fit: a Lightning trainer around a module, resumed where it was killed, in micro-batches if memory runs out."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from transferkit.core.distributed import broadcast, connect, rank_and_world_size
from transferkit.core.errors import OptionError, TransferkitError
from transferkit.core.frameworks import lightning
from transferkit.core.progress import announce
from transferkit.finetune.checkpoint import CHECKPOINT, RunCheckpoint, put_back, state_of
from transferkit.finetune.module import TransferModule
from transferkit.finetune.trainer_options import check_options, device_options, launch_options, quietly, with_sharding
from transferkit.nn import is_out_of_memory

if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = lightning()

__all__ = ["Runner"]

UNREADABLE = (OSError, EOFError, KeyError, RuntimeError, pickle.UnpicklingError)
"""What reading half a checkpoint, or one that is something else, can raise."""


@dataclass(frozen=True)
class Runner:
    """How fits are run.

    Args:
        device: Where.
        folder: Where checkpoints and logs go; None keeps none.
        options: For the trainer, over what is set here.
        progress: Show a bar on a terminal.
        notes: Sentences for people are added here: what was halved, which checkpoint could not be read.
        parts: That batches are added up from, the last one telling: what did not fit in one fit does not in the next.
    """

    device: torch.device
    folder: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    progress: bool = True
    notes: list[str] = field(default_factory=list)
    parts: list[int] = field(default_factory=lambda: [1])

    def fit(
        self,
        module: TransferModule,
        train: Callable[[int], Iterable[Any]],
        held_back: Iterable[Any] | None,
        *,
        name: str,
        stop_after: int,
    ) -> RunCheckpoint:
        """Train, and return what was measured; a fit that was finished before is only read.

        Args:
            module: Trained in place; at the end it has its last weights.
            train: Number of images per process -> batches of so many.
            held_back: Images that are judged after every epoch; None judges none and stops for nothing.
            name: Of the fit, a folder below `folder`.
            stop_after: Epochs to run; the schedule is that of the recipe's epochs all the same.

        Raises:
            OptionError: If an option does not fit, or memory runs out with a single image.
            RunFolderError: If a checkpoint cannot be written.
        """
        connect(self.device)
        start = state_of(module)
        folder = None if self.folder is None else self.folder / name
        checkpoint = RunCheckpoint(folder, stop_after=stop_after, parts=self.parts[-1])
        saved = self._saved(checkpoint.folder, name)
        taken_up = saved is not None
        if saved is not None:
            checkpoint.load_state_dict(saved["callbacks"][checkpoint.state_key])
            self._say_halved(module, up_to=checkpoint.parts, since=2 * self.parts[-1])
            self.parts.append(checkpoint.parts)
            if checkpoint.finished:
                put_back(module, saved)
                return checkpoint
            del saved
        while True:
            try:
                self._run(module, train, held_back, checkpoint, name, taken_up=taken_up)
                return checkpoint
            except RuntimeError as error:
                if isinstance(error, TransferkitError) or not is_out_of_memory(error):
                    raise
                self._check_divisible(module, checkpoint.parts, error)
            # Outside `except`: while the error lives, its traceback holds on to the activations that did not fit.
            put_back(module, start)
            torch.cuda.empty_cache()
            # From the start: which epochs ran in larger parts must not depend on when the last checkpoint was written.
            taken_up, checkpoint = (
                False,
                RunCheckpoint(checkpoint.folder, stop_after=stop_after, parts=2 * checkpoint.parts),
            )
            self._say_halved(module, up_to=checkpoint.parts, since=checkpoint.parts)
            self.parts.append(checkpoint.parts)

    def _run(
        self,
        module: TransferModule,
        train: Callable[[int], Iterable[Any]],
        held_back: Iterable[Any] | None,
        checkpoint: RunCheckpoint,
        name: str,
        *,
        taken_up: bool,
    ) -> None:
        trainer = self._trainer(module, checkpoint, held_back is not None, name)
        share = (module.recipe.batch_size or 1) // (checkpoint.parts * trainer.world_size)
        if share < 1:
            raise OptionError(
                f"A batch of {module.recipe.batch_size} cannot be shared out among {trainer.world_size} processes: "
                "train.batch_size is for all of them together. Raise it, or use fewer devices."
            )
        resume_from = None
        if taken_up and checkpoint.folder is not None:
            resume_from = checkpoint.folder / CHECKPOINT
            announce(f"taking {name} up after epoch {len(checkpoint.epochs)}", enabled=self.progress)
        with quietly(), _leaving(trainer):
            trainer.fit(module, train(share), held_back, ckpt_path=resume_from)

    def _saved(self, folder: Path | None, name: str) -> dict[str, Any] | None:
        """The fit's checkpoint; None if there is none that can be read."""
        if folder is None:
            return None
        checkpoint, saved = folder / CHECKPOINT, None
        if checkpoint.is_file():
            try:
                saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
                saved["callbacks"], saved["state_dict"]
            except UNREADABLE as error:
                saved, reason = None, str(error).strip().split("\n")[0] or type(error).__name__
                self._say(f"The checkpoint of {name} cannot be read ({reason}): this fit starts over.")
        return saved if broadcast(saved is not None) else None

    def _check_divisible(self, module: TransferModule, parts: int, error: RuntimeError) -> None:
        """Whether smaller parts are left to be tried."""
        at_once, (_, world) = (module.recipe.batch_size or 1) // parts, rank_and_world_size()
        if world > 1:
            raise OptionError(
                f"Memory runs out at {at_once // world} images at once in one of {world} processes, and the others "
                "wait for it. Choose a smaller train.batch_size."
            ) from error
        if at_once < 2:
            raise OptionError(
                f"Memory runs out on {self.device} with a single image. Choose a smaller image_size or backbone, or a "
                "strategy that trains less of it (few_layers, linear_probe)."
            ) from error

    def _say_halved(self, module: TransferModule, *, up_to: int, since: int = 2) -> None:
        size, parts = module.recipe.batch_size or 1, since
        while parts <= up_to:
            self._say(
                f"Memory ran out at {2 * size // parts} images at once: switching to gradient accumulation over "
                f"{parts} micro-batches for a batch of {size}."
            )
            parts *= 2

    def _say(self, note: str) -> None:
        self.notes.append(note)
        announce(note, enabled=self.progress)

    def _trainer(self, module: TransferModule, checkpoint: RunCheckpoint, judged: bool, name: str) -> pl.Trainer:
        recipe = module.recipe
        callbacks: list[pl.Callback] = [checkpoint]
        if judged:
            stopping = pl.callbacks.EarlyStopping("val_loss", patience=recipe.allowed_patience, check_finite=True)
            callbacks.insert(0, stopping)
        settings: dict[str, Any] = {
            **device_options(self.device),
            "max_epochs": recipe.epochs,
            "gradient_clip_val": recipe.clip or None,
            "accumulate_grad_batches": checkpoint.parts,
            "logger": self._loggers(name, checkpoint),
            "log_every_n_steps": 10,
            "enable_model_summary": False,
            "enable_progress_bar": self.progress and _on_terminal(),
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "default_root_dir": checkpoint.folder,
        }
        check_options(self.options)
        with quietly():
            trainer = pl.Trainer(callbacks=callbacks, **with_sharding({**settings, **self.options}))
        _check_launch(trainer)
        return trainer

    def _loggers(self, name: str, checkpoint: RunCheckpoint) -> Any:
        """Curves as CSV, in another folder where a fit is resumed; TensorBoard's if it is installed."""
        if self.folder is None:
            return False
        version = f"{name}-after-{len(checkpoint.epochs)}" if checkpoint.epochs else name
        found: list[Any] = [pl.loggers.CSVLogger(self.folder, name="curves", version=version)]
        with suppress(ModuleNotFoundError):
            found.append(pl.loggers.TensorBoardLogger(self.folder, name="tensorboard", version=name))
        return found


def _on_terminal() -> bool:
    import sys

    return sys.stderr.isatty()


def _check_launch(trainer: pl.Trainer) -> None:
    """Processes are to run all of the program: what a fit measured would stay behind in those that run only the fit."""
    if isinstance(trainer.strategy.launcher, pl.strategies.launchers._MultiProcessingLauncher):
        raise OptionError(
            "Processes that are forked or spawned for training alone cannot hand back what they measured. Use "
            "trainer.strategy=ddp in a script, or one device in a notebook."
        )
    started = int(launch_options().get("devices", 1)) * int(launch_options().get("num_nodes", 1))
    if started > 1 and trainer.world_size != started:
        raise OptionError(
            f"{started} processes were started, but trainer.devices and trainer.num_nodes ask for "
            f"{trainer.world_size}. Leave them out: what torchrun started is used."
        )


@contextmanager
def _leaving(trainer: pl.Trainer) -> Iterator[None]:
    """Ctrl-C is a KeyboardInterrupt again, and SIGTERM an exit that does not look like success."""
    ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as left:
        if trainer.received_sigterm:
            raise SystemExit(128 + signal.SIGTERM) from left
        if trainer.interrupted:
            signal.signal(signal.SIGINT, ctrl_c)  # Lightning ignores it from then on
            raise KeyboardInterrupt from left
        raise
    if trainer.interrupted:  # older Lightnings return as if all were well
        raise KeyboardInterrupt
