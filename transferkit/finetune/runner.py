"""One fit with a Lightning trainer: resumes after interruption, and uses micro-batches if memory runs out."""

from __future__ import annotations

import pickle
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from transferkit.core.distributed import broadcast, connect, is_first, rank_and_world_size
from transferkit.core.errors import OptionError, TransferkitError
from transferkit.core.frameworks import lightning
from transferkit.core.progress import announce
from transferkit.finetune.checkpoint import CHECKPOINT, RunCheckpoint, restore_state, state_of
from transferkit.finetune.deadline import NEVER, Deadline
from transferkit.finetune.module import TransferModule
from transferkit.finetune.trainer_options import check_options, device_options, launch_options, quietly, with_sharding
from transferkit.finetune.watching import FitWatch, MakeWatch
from transferkit.nn import is_out_of_memory

if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = lightning()

__all__ = ["Runner"]

WATCHED = "watched"
"""Folder inside that of the fits, with a folder of what was seen of each."""

UNREADABLE = (OSError, EOFError, KeyError, RuntimeError, pickle.UnpicklingError)
"""Exceptions from reading an incomplete or foreign checkpoint."""


@dataclass(frozen=True)
class Runner:
    """Runs fits with a Lightning trainer.

    Args:
        device: Device to train on.
        folder: Folder of checkpoints and logs; None for none.
        logs: Write curves into the folder.
        options: For the trainer; they override the defaults set here.
        progress: Show a progress bar on a terminal.
        notes: Sentences are added here: gradient accumulation, unreadable checkpoints.
        micro_batches: Micro-batches per step, the last entry being current: later fits start with it.
        deadline: Until when it may train.
        watch: Makes a callback that watches each fit, of what is recorded of it; None watches none.
    """

    device: torch.device
    folder: Path | None = None
    logs: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    progress: bool = True
    notes: list[str] = field(default_factory=list)
    micro_batches: list[int] = field(default_factory=lambda: [1])
    deadline: Deadline = NEVER
    watch: MakeWatch | None = None

    @contextmanager
    def resumable(self) -> Iterator[Runner]:
        """A runner whose fits can be resumed: this one, or one with a temporary folder."""
        if self.folder is not None:
            yield self
            return
        connect(self.device)
        made = tempfile.mkdtemp(prefix="transferkit-") if is_first() else ""
        folder = Path(broadcast(made))
        try:
            yield replace(self, folder=folder, logs=False)
        finally:
            if is_first():
                shutil.rmtree(folder, ignore_errors=True)

    def fit(
        self,
        module: TransferModule,
        train: Callable[[int], Iterable[Any]],
        held_back: Iterable[Any] | None,
        *,
        name: str,
        stop_after: int,
    ) -> RunCheckpoint:
        """Train, and return the measurements; a fit that was begun is resumed, one that was finished is loaded.

        At least one epoch is run, further ones only if the deadline allows.

        Args:
            module: Trained in place; ends with its last weights.
            train: Batch size per process -> batches.
            held_back: Images scored after every epoch; None for no validation and no early stopping.
            name: Of the fit: a folder inside `folder`.
            stop_after: Epochs to run, in all; the schedule still covers the recipe's epochs.

        Raises:
            OptionError: If an option does not fit, or memory runs out with a single image.
            RunFolderError: If a checkpoint cannot be written.
        """
        connect(self.device)
        start = state_of(module)
        folder = None if self.folder is None else self.folder / name
        make = partial(RunCheckpoint, folder, stop_after=stop_after, deadline=self.deadline)
        checkpoint = make(micro_batches=self.micro_batches[-1])
        checkpoint.watch = self._make_watch(name)
        saved = self._saved(checkpoint.folder, name)
        resumed = saved is not None
        if saved is not None:
            checkpoint.load_state_dict(saved["callbacks"][checkpoint.state_key])
            if checkpoint.watch is not None and checkpoint.watch.state_key in saved["callbacks"]:
                checkpoint.watch.load_state_dict(saved["callbacks"][checkpoint.watch.state_key])
            self._note_micro_batches(module, up_to=checkpoint.micro_batches, since=2 * self.micro_batches[-1])
            self.micro_batches.append(checkpoint.micro_batches)
            if checkpoint.finished or len(checkpoint.epochs) >= stop_after or not checkpoint.has_time:
                restore_state(module, saved)
                return checkpoint
            del saved
        while True:
            try:
                self._run(module, train, held_back, checkpoint, name, resumed=resumed)
                return checkpoint
            except RuntimeError as error:
                if isinstance(error, TransferkitError) or not is_out_of_memory(error):
                    raise
                self._check_divisible(module, checkpoint.micro_batches, error)
            # Outside `except`: the error's traceback keeps the activations that did not fit alive.
            restore_state(module, start)
            torch.cuda.empty_cache()
            # From the start: the result must not depend on when the last checkpoint was written.
            resumed, checkpoint = False, make(micro_batches=2 * checkpoint.micro_batches)
            checkpoint.watch = self._make_watch(name)
            self._note_micro_batches(module, up_to=checkpoint.micro_batches, since=checkpoint.micro_batches)
            self.micro_batches.append(checkpoint.micro_batches)

    def _make_watch(self, name: str) -> FitWatch | None:
        """What watches the fit; its files are beside the curves."""
        if self.watch is None:
            return None
        return self.watch(None if self.folder is None or not self.logs else self.folder / WATCHED / name)

    def _run(
        self,
        module: TransferModule,
        train: Callable[[int], Iterable[Any]],
        held_back: Iterable[Any] | None,
        checkpoint: RunCheckpoint,
        name: str,
        *,
        resumed: bool,
    ) -> None:
        trainer = self._trainer(module, checkpoint, held_back is not None, name)
        share = (module.recipe.batch_size or 1) // (checkpoint.micro_batches * trainer.world_size)
        if share < 1:
            raise OptionError(
                f"A batch of {module.recipe.batch_size} cannot be divided among {trainer.world_size} processes: "
                "train.batch_size is for all of them together. Raise it, or use fewer devices."
            )
        resume_from = None
        if resumed and checkpoint.folder is not None:
            resume_from = checkpoint.folder / CHECKPOINT
            announce(f"resuming {name} after epoch {len(checkpoint.epochs)}", enabled=self.progress)
        with quietly(), _leaving(trainer):
            trainer.fit(module, train(share), held_back, ckpt_path=resume_from)

    def _saved(self, folder: Path | None, name: str) -> dict[str, Any] | None:
        """The fit's checkpoint; None if there is no readable one."""
        if folder is None:
            return None
        checkpoint, saved = folder / CHECKPOINT, None
        if checkpoint.is_file():
            try:
                saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
                saved["callbacks"], saved["state_dict"]
            except UNREADABLE as error:
                saved, reason = None, str(error).strip().split("\n")[0] or type(error).__name__
                self._note(f"The checkpoint of {name} cannot be read ({reason}): this fit starts over.")
        return saved if broadcast(saved is not None) else None

    def _check_divisible(self, module: TransferModule, micro_batches: int, error: RuntimeError) -> None:
        """Raise if the micro-batches cannot be made smaller."""
        at_once, (_, world) = (module.recipe.batch_size or 1) // micro_batches, rank_and_world_size()
        if world > 1:
            raise OptionError(
                f"Memory runs out at {at_once // world} images per batch in one of {world} processes, while the others "
                "wait for it. Choose a smaller train.batch_size."
            ) from error
        if at_once < 2:
            raise OptionError(
                f"Memory runs out on {self.device} with a single image. Choose a smaller image_size or backbone, or a "
                "strategy that trains fewer layers (few_layers, linear_probe)."
            ) from error

    def _note_micro_batches(self, module: TransferModule, *, up_to: int, since: int) -> None:
        size, micro_batches = module.recipe.batch_size or 1, since
        while micro_batches <= up_to:
            self._note(
                f"Memory ran out at {2 * size // micro_batches} images per batch: switching to gradient accumulation "
                f"over {micro_batches} micro-batches for a batch of {size}."
            )
            micro_batches *= 2

    def _note(self, note: str) -> None:
        self.notes.append(note)
        announce(note, enabled=self.progress)

    def _trainer(self, module: TransferModule, checkpoint: RunCheckpoint, judged: bool, name: str) -> pl.Trainer:
        recipe = module.recipe
        callbacks: list[pl.Callback] = [checkpoint]
        if judged and recipe.snapshots == 1:  # a cycle begins with losses that rise
            stopping = pl.callbacks.EarlyStopping("val_loss", patience=recipe.allowed_patience, check_finite=True)
            callbacks.insert(0, stopping)
        if checkpoint.watch is not None:
            callbacks.append(checkpoint.watch)
        settings: dict[str, Any] = {
            **device_options(self.device),
            "max_epochs": recipe.epochs,
            "gradient_clip_val": recipe.clip or None,
            "accumulate_grad_batches": checkpoint.micro_batches,
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
        """Loggers for CSV curves, in a new folder if a fit is resumed, and for TensorBoard if installed."""
        if self.folder is None or not self.logs:
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
    """Raise unless all processes run the complete program: those that run only the fit cannot return its results."""
    if isinstance(trainer.strategy.launcher, pl.strategies.launchers._MultiProcessingLauncher):
        raise OptionError(
            "Processes that are forked or spawned only for training cannot return their results. Use "
            "trainer.strategy=ddp in a script, or one device in a notebook."
        )
    started = int(launch_options().get("devices", 1)) * int(launch_options().get("num_nodes", 1))
    if started > 1 and trainer.world_size != started:
        raise OptionError(
            f"{started} processes were started, but trainer.devices and trainer.num_nodes request "
            f"{trainer.world_size}. Leave them out to use the processes that torchrun started."
        )


@contextmanager
def _leaving(trainer: pl.Trainer) -> Iterator[None]:
    """Turn Ctrl-C back into a KeyboardInterrupt, and SIGTERM into a non-zero exit."""
    ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as left:
        if trainer.received_sigterm:
            raise SystemExit(128 + signal.SIGTERM) from left
        if trainer.interrupted:
            signal.signal(signal.SIGINT, ctrl_c)  # Lightning sets it to ignore
            raise KeyboardInterrupt from left
        raise
    if trainer.interrupted:  # older Lightning versions return normally
        raise KeyboardInterrupt
