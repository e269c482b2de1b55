"""Checkpoint of a fit: measured epochs, best weights, and the state to resume from.

Checkpoints are written at ends of epochs. All randomness is a function of seed, epoch and position, so an interrupted
epoch is simply repeated, and no generator state is needed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from transferkit.core.distributed import broadcast, is_first
from transferkit.core.errors import RunFolderError
from transferkit.core.frameworks import lightning
from transferkit.core.serialization import from_json, to_json
from transferkit.finetune.callbacks import cycle_ends
from transferkit.finetune.deadline import NEVER, Deadline
from transferkit.finetune.module import TransferModule
from transferkit.finetune.sharding import full_tensor
from transferkit.finetune.watching import FitWatch
from transferkit.records import Epoch

if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = lightning()

__all__ = ["CHECKPOINT", "RunCheckpoint", "restore_state", "snapshot", "state_of"]

CHECKPOINT = "last.ckpt"
"""Name of the file that a fit is resumed from."""

SAVE_EVERY = 20.0
"""Minimum seconds between checkpoints: an interruption costs at most that plus the current epoch. If writing takes
longer than a second, the interval is scaled by it, so that at most a twentieth of the time is spent on writing."""


class RunCheckpoint(pl.callbacks.Checkpoint):
    """Callback that records every epoch of a `TransferModule`'s fit, keeps the best weights, and saves checkpoints.

    A subclass of Lightning's Checkpoint because those are called last: the module's actions at the end of an epoch must
    be in the checkpoint.

    Args:
        folder: Folder of the checkpoint; None for none.
        stop_after: Epochs to run, at most the trainer's; None runs all.
        micro_batches: Micro-batches per optimizer step, > 1 after memory ran out.
        deadline: No epoch is begun that would probably end after it.

    Attributes:
        micro_batches: As passed, or as in the checkpoint.
        finished: Whether nothing is left to train: all epochs were run, or early stopping ended them.
        epochs: Measurements of each epoch.
        outputs: For the held-back images, (M, K) per epoch.
        best_epoch: The epoch with the lowest held-back loss, or the last one without held-back images.
        best_state: The module's weights and statistics after it.
        snapshots: Last epoch of each cycle -> the same after it; empty without cycles.
        watch: The callback that watches the fit, for its record; None if none does.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        stop_after: int | None = None,
        micro_batches: int = 1,
        deadline: Deadline = NEVER,
    ) -> None:
        self.folder = folder
        self.deadline = deadline
        self.stop_after = stop_after
        self.micro_batches = micro_batches
        self.finished = False
        self.epochs: list[Epoch] = []
        self.outputs: list[torch.Tensor] = []
        self.best_epoch = -1
        self.best_state: dict[str, torch.Tensor] = {}
        self.snapshots: dict[int, dict[str, torch.Tensor]] = {}
        self.watch: FitWatch | None = None
        self._begun = 0.0
        self._saved, self._saving = time.monotonic(), 0.0

    @property
    def state_key(self) -> str:
        """Key in Lightning's checkpoints; unchanged from older versions, so that their runs can be resumed."""
        return "Memory"

    @property
    def best_loss(self) -> float:
        """Held-back loss of the best epoch; infinite before the first one."""
        if self.best_epoch < 0:
            return math.inf
        loss = self.epochs[self.best_epoch].val_loss
        return math.inf if loss is None else loss

    @property
    def kept_states(self) -> list[dict[str, torch.Tensor]]:
        """Weights of the networks whose answers count: the snapshots, or the best."""
        return list(self.snapshots.values()) or [self.best_state]

    def kept_outputs(self, epoch: int | None = None) -> torch.Tensor:
        """(M, K) their mean for the held-back images; without snapshots after an epoch, None is the best one."""
        after = list(self.snapshots) or [self.best_epoch if epoch is None else epoch]
        return torch.stack([self.outputs[at] for at in after]).mean(dim=0)

    @property
    def has_time(self) -> bool:
        """Whether the deadline allows another epoch; always before the first one."""
        return not self.epochs or self.deadline.allows(self.epochs[-1].seconds)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the epoch; keep its weights if they are the best; save a checkpoint if due."""
        assert isinstance(pl_module, TransferModule)
        self.epochs.append(self._measured(trainer, pl_module))
        if pl_module.outputs is not None:
            self.outputs.append(pl_module.outputs)
        loss = self.epochs[-1].val_loss
        if loss is None or loss < self.best_loss:
            self.best_epoch = trainer.current_epoch
            with pl_module.averaged():
                self.best_state = snapshot(pl_module)
        if pl_module.recipe.snapshots > 1 and trainer.current_epoch in _cycle_ends(trainer, pl_module):
            with pl_module.averaged():
                self.snapshots[trainer.current_epoch] = snapshot(pl_module)
        self.finished = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if len(self.epochs) == self.stop_after or not self.has_time:
            trainer.should_stop = True
        # Clocks differ between processes, and all of them must take part.
        if self.folder is not None and broadcast(self.finished or trainer.should_stop or self._is_due()):
            self._save(trainer, self.folder / CHECKPOINT)

    def _is_due(self) -> bool:
        return time.monotonic() - self._saved >= SAVE_EVERY * max(1.0, self._saving)

    def _save(self, trainer: pl.Trainer, checkpoint: Path) -> None:
        """Write under another name first: Lightning's move from the temporary folder may not be atomic."""
        partial, began = checkpoint.with_suffix(".ckpt-partial"), time.monotonic()
        try:
            trainer.save_checkpoint(partial)
            if is_first():
                partial.replace(checkpoint)
        except OSError as error:
            raise RunFolderError(
                f"The checkpoint {checkpoint} cannot be written: {error.strerror or error}. Free some space; the same "
                "command then resumes from the last checkpoint."
            ) from error
        self._saved = time.monotonic()
        self._saving = self._saved - began

    def _measured(self, trainer: pl.Trainer, module: TransferModule) -> Epoch:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        phase = module.freeze_plan.phase
        return Epoch(
            number=trainer.current_epoch,
            phase="" if phase is None else module.freeze_plan.phases[phase].name,
            train_loss=metrics["train_loss"],
            lr=max(group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups),
            seconds=time.perf_counter() - self._begun,
            val_loss=metrics.get("val_loss"),
            val_accuracy=metrics.get(f"val_{module.metric_name}"),
        )

    def state_dict(self) -> dict[str, Any]:
        """The complete state."""
        return {
            "epochs": [to_json(epoch) for epoch in self.epochs],
            "outputs": self.outputs,
            "best_epoch": self.best_epoch,
            "best_state": self.best_state,
            "snapshots": self.snapshots,
            "parts": self.micro_batches,
            "finished": self.finished,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state."""
        self.epochs = [from_json(Epoch, epoch) for epoch in state_dict["epochs"]]
        self.outputs = list(state_dict["outputs"])
        self.best_epoch = state_dict["best_epoch"]
        self.best_state = dict(state_dict["best_state"])
        self.snapshots = dict(state_dict.get("snapshots", {}))
        self.micro_batches = state_dict["parts"]
        self.finished = state_dict["finished"]


def _cycle_ends(trainer: pl.Trainer, module: TransferModule) -> tuple[int, ...]:
    return cycle_ends(module.freeze_plan.phases, trainer.max_epochs or 1, module.recipe.snapshots)


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights and statistics, on the CPU."""
    return {name: full_tensor(tensor.detach()).cpu().clone() for name, tensor in module.state_dict().items()}


def state_of(module: TransferModule) -> dict[str, Any]:
    """A module's tensors, and its further state in a checkpoint."""
    state: dict[str, Any] = {"state_dict": snapshot(module)}
    module.on_save_checkpoint(state)
    return state


def restore_state(module: TransferModule, state: Mapping[str, Any]) -> None:
    """Restore a module from `state_of` or a checkpoint, aborting whatever it was doing."""
    module.break_off()
    module.load_state_dict(state["state_dict"])
    module.on_load_checkpoint(dict(state))
