"""What a fit measured, its best weights, and the checkpoint that it is resumed from.

Checkpoints are written at ends of epochs. All that training draws is a function of seed, epoch and place, so the
epoch that a kill cut short is simply run again, and nothing needs the state of a generator.
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
from transferkit.finetune.module import TransferModule
from transferkit.finetune.sharding import whole
from transferkit.records import Epoch

if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = lightning()

__all__ = ["CHECKPOINT", "RunCheckpoint", "put_back", "snapshot", "state_of"]

CHECKPOINT = "last.ckpt"
"""Name of the file that a fit is resumed from."""

SAVE_EVERY = 20.0
"""Seconds after which the end of an epoch is worth a checkpoint: a kill costs that much and the epoch in hand. Where
writing one takes longer than a second, it is as many times that: no more than a twentieth of the time goes into it."""


class RunCheckpoint(pl.callbacks.Checkpoint):
    """Notes every epoch of a `TransferModule`'s fit, keeps the best weights, and saves now and then.

    It counts as a checkpoint callback because Lightning calls those last: what the module does at the end of an epoch
    must be in the checkpoint.

    Args:
        folder: Where the checkpoint goes; None keeps none.
        stop_after: Epochs to run, fewer maybe than the trainer's; None runs those.
        parts: That each batch is added up from, because memory ran out.

    Attributes:
        parts: As given, or as in the checkpoint.
        finished: Whether the last epoch has been run.
        epochs: What each measured.
        outputs: Of the held-back images, (M, K) per epoch.
        best_epoch: Number of the one with the lowest held-back loss, or of the last one without held-back images.
        best_state: The module's weights and statistics at its end.
    """

    def __init__(self, folder: Path | None = None, *, stop_after: int | None = None, parts: int = 1) -> None:
        self.folder = folder
        self.stop_after = stop_after
        self.parts = parts
        self.finished = False
        self.epochs: list[Epoch] = []
        self.outputs: list[torch.Tensor] = []
        self.best_epoch = -1
        self.best_state: dict[str, torch.Tensor] = {}
        self._begun = 0.0
        self._saved, self._saving = time.monotonic(), 0.0

    @property
    def state_key(self) -> str:
        """The name in Lightning's checkpoints; that of the class's first version, so that its runs can be resumed."""
        return "Memory"

    @property
    def best_loss(self) -> float:
        """Held-back loss of the best epoch; infinite before the first one."""
        if self.best_epoch < 0:
            return math.inf
        loss = self.epochs[self.best_epoch].val_loss
        return math.inf if loss is None else loss

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the epoch; keep its weights if they are the best; save if it is time."""
        assert isinstance(pl_module, TransferModule)
        self.epochs.append(self._look(trainer, pl_module))
        if pl_module.outputs is not None:
            self.outputs.append(pl_module.outputs)
        loss = self.epochs[-1].val_loss
        if loss is None or loss < self.best_loss:
            self.best_epoch = trainer.current_epoch
            with pl_module.averaged():
                self.best_state = snapshot(pl_module)
        if len(self.epochs) == self.stop_after:
            trainer.should_stop = True
        self.finished = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        # Clocks differ from process to process, and all of them have to take part.
        if self.folder is not None and broadcast(self.finished or self._is_due()):
            self._save(trainer, self.folder / CHECKPOINT)

    def _is_due(self) -> bool:
        return time.monotonic() - self._saved >= SAVE_EVERY * max(1.0, self._saving)

    def _save(self, trainer: pl.Trainer, checkpoint: Path) -> None:
        """Under another name first: Lightning moves the file from the folder for temporary files, maybe bit by bit."""
        partial, began = checkpoint.with_suffix(".ckpt-partial"), time.monotonic()
        try:
            trainer.save_checkpoint(partial)
            if is_first():
                partial.replace(checkpoint)
        except OSError as error:
            raise RunFolderError(
                f"The checkpoint {checkpoint} cannot be written: {error.strerror or error}. Free some space; the same "
                "command then takes the run up where it was saved last."
            ) from error
        self._saved = time.monotonic()
        self._saving = self._saved - began

    def _look(self, trainer: pl.Trainer, module: TransferModule) -> Epoch:
        seen = {name: float(value) for name, value in trainer.callback_metrics.items()}
        phase = module.freeze_plan.phase
        return Epoch(
            number=trainer.current_epoch,
            phase="" if phase is None else module.freeze_plan.phases[phase].name,
            train_loss=seen["train_loss"],
            lr=max(group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups),
            seconds=time.perf_counter() - self._begun,
            val_loss=seen.get("val_loss"),
            val_accuracy=seen.get("val_accuracy"),
        )

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {
            "epochs": [to_json(epoch) for epoch in self.epochs],
            "outputs": self.outputs,
            "best_epoch": self.best_epoch,
            "best_state": self.best_state,
            "parts": self.parts,
            "finished": self.finished,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As it was when the checkpoint was written."""
        self.epochs = [from_json(Epoch, epoch) for epoch in state_dict["epochs"]]
        self.outputs = list(state_dict["outputs"])
        self.best_epoch = state_dict["best_epoch"]
        self.best_state = dict(state_dict["best_state"])
        self.parts = state_dict["parts"]
        self.finished = state_dict["finished"]


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights and statistics, on the CPU."""
    return {name: whole(tensor.detach()).cpu().clone() for name, tensor in module.state_dict().items()}


def state_of(module: TransferModule) -> dict[str, Any]:
    """What a checkpoint holds of a module: its tensors, and what it keeps besides."""
    state: dict[str, Any] = {"state_dict": snapshot(module)}
    module.on_save_checkpoint(state)
    return state


def put_back(module: TransferModule, state: Mapping[str, Any]) -> None:
    """Make a module what it was when this state or checkpoint was taken, whatever it was in the middle of."""
    module.break_off()
    module.load_state_dict(state["state_dict"])
    module.on_load_checkpoint(dict(state))
