"""A transfer model applied to batches by a Lightning trainer: outputs, loss and score of held-back images, predictions.

How the model is trained is in `module`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import DataError, OptionError
from transferkit.core.frameworks import lightning
from transferkit.finetune.averaging import WeightAverage
from transferkit.finetune.cut_batch import CutBatch, take_images
from transferkit.finetune.losses import TASKS, Task
from transferkit.finetune.network import scale_like
from transferkit.finetune.scores import HeldBackLoss
from transferkit.finetune.sharding import Shards
from transferkit.finetune.targets import TargetScale
from transferkit.nn import Tail, TransferModel, in_halves

if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = lightning()

__all__ = ["EvaluatedModule"]


class EvaluatedModule(pl.LightningModule):
    """A LightningModule that validates, tests and predicts with a transfer model; `TransferModule` trains it as well.

    Args:
        model: The network; not copied.
        task: "single_label", "multi_label" or "regression".
        targets: All training targets, as for `TransferModule`, or None.
        weights: As for `TransferModule`.
        tail: The part of the backbone behind the frozen stages, if batches are `CutBatch`.

    Raises:
        DataError: If the targets do not fit the task.
        OptionError: If the weights do not fit the outputs, or the task is unknown.
    """

    class_weights: torch.Tensor | None

    def __init__(
        self,
        model: TransferModel,
        *,
        task: str,
        targets: npt.ArrayLike | None,
        weights: Sequence[float] | str | None,
        tail: Tail | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.task_name, self.task = task, TASKS[task]
        self.tail = tail
        known = None if targets is None else np.asarray(targets)
        if known is not None:
            self.task.check(known, model.classes)
        self.scale = TargetScale.fit(known) if task == "regression" and known is not None else None
        self.register_buffer(
            "class_weights", _loss_weights(self.task, weights, known, len(model.classes)), persistent=False
        )
        calibrated = task == "single_label"
        self.held_back_loss = HeldBackLoss(self.task.loss, weights=self.class_weights, calibrated=calibrated)
        self.held_back_score = self.task.make_score(len(model.classes))
        self.average: WeightAverage | None = None
        self.outputs: torch.Tensor | None = None
        self._swapped = ExitStack()
        self._shards: Shards | None = None

    @property
    def metric_name(self) -> str:
        """The score in the names of what is logged."""
        return self.task.metric.lower().replace(" ", "_")

    def forward(self, images: torch.Tensor | CutBatch) -> torch.Tensor:
        """(n, K) outputs."""
        return self._run(images) if self._shards is None else self._shards(images)

    def _run(self, images: torch.Tensor | CutBatch) -> torch.Tensor:
        logits: torch.Tensor = self.model.classifier(self.features(images))
        return logits

    def features(self, images: torch.Tensor | CutBatch) -> torch.Tensor:
        """(n, D), what the head reads."""
        if not isinstance(images, CutBatch):
            return self.model.features(self._normalise(images).contiguous(memory_format=torch.channels_last))
        assert self.tail is not None
        behind = [name for name in self.model.stages if name not in images.pooled]
        pooled = {
            **images.pooled,
            **self.tail.pooled_stages(images.activation, pooling=self.model.pooling, names=behind),
        }
        return torch.cat([pooled[name] for name in self.model.stages], dim=1)

    def _normalise(self, images: torch.Tensor) -> torch.Tensor:
        normalised = self.model.normalise(images)
        if images.is_floating_point():
            return normalised
        # A trainer in half or double precision converts floats to it, but not bytes.
        return normalised.to(next(self.model.parameters()).dtype)

    def targets_of(self, batch: Any) -> torch.Tensor:
        """The targets of a batch, checked; those of a regression standardised, if all training targets were given.

        Raises:
            DataError: If the batch has none, or they do not fit the task.
        """
        if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not isinstance(batch[1], torch.Tensor):
            raise DataError(f"Expected batches (images, targets) with tensors as targets, got {type(batch).__name__}.")
        targets = batch[1]
        # Reading values on another device waits for it; one epoch shows all of them.
        values = targets.device.type == "cpu" or self.current_epoch == 0
        self.task.check_batch(targets, len(self.model.classes), values=values)
        if self.scale is None:
            return targets
        columns = targets.reshape(len(targets), -1).float()
        mean, std = scale_like(self.scale, columns)
        return (columns - mean) / std

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the model has the average of its weights, if one is kept."""
        return nullcontext() if self.average is None or not self.average.count else self.average.swapped(self)

    def on_validation_epoch_start(self) -> None:
        """Put the average of the weights into the model, where one is kept."""
        if self._shards is not None:
            self._shards.share_statistics()
        self._swapped.enter_context(self.averaged())

    def on_test_epoch_start(self) -> None:
        """Put the average of the weights into the model, where one is kept."""
        self._swapped.enter_context(self.averaged())

    def on_predict_epoch_start(self) -> None:
        """Put the average of the weights into the model, where one is kept."""
        self._swapped.enter_context(self.averaged())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Accumulate the batch's outputs for the loss and the score."""
        self._accumulate(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Accumulate the batch's outputs for the loss and the score."""
        self._accumulate(batch)

    def _accumulate(self, batch: Any) -> None:
        targets, images = self.targets_of(batch), batch[0]
        if self._shards is None:
            outputs = in_halves(lambda rows: self(take_images(images, rows)), len(targets))
        else:  # all processes must run the same passes
            outputs = self(images)
        self.held_back_loss.update(outputs.float(), targets)
        self.held_back_score.update(outputs.float(), targets)

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """(n, K) probabilities; for a regression the outputs, in the units of the targets."""
        images = batch[0] if isinstance(batch, (tuple, list)) and not isinstance(batch, CutBatch) else batch
        outputs: torch.Tensor = self(images)
        if self.task_name == "regression":
            if self.scale is None:
                return outputs
            mean, std = scale_like(self.scale, outputs)
            return outputs * std + mean
        return outputs.sigmoid() if self.task_name == "multi_label" else outputs.softmax(dim=1)

    def on_validation_epoch_end(self) -> None:
        """Swap the raw weights back in; log the loss and the score, and keep the outputs."""
        self._swapped.close()
        self.outputs = self._log_held_back("val")

    def on_test_epoch_end(self) -> None:
        """As for validation, without keeping the outputs."""
        self._swapped.close()
        self._log_held_back("test")

    def on_predict_epoch_end(self) -> None:
        """Swap the raw weights back in."""
        self._swapped.close()

    def _log_held_back(self, split: str) -> torch.Tensor:
        outputs = self.held_back_loss.all_outputs()
        loss, score = self.held_back_loss.compute(), float(self.held_back_score.compute())
        self._forget_held_back()
        name = self.metric_name
        self.log_mean(f"{split}_loss", loss, images=len(outputs), prog_bar=True)
        self.log_mean(f"{split}_{name}", score, images=len(outputs), prog_bar=True)
        return outputs.cpu()

    def log_mean(self, name: str, value: torch.Tensor | float, *, images: int, prog_bar: bool = False) -> None:
        """Log a value at the end of the epoch: the mean over batches and processes, weighted by numbers of images."""
        # As a float: Lightning takes the mean of the processes' counts, and rounds that of integers down.
        count: Any = float(images)
        self.log(name, value, on_step=False, on_epoch=True, sync_dist=True, prog_bar=prog_bar, batch_size=count)

    def _forget_held_back(self) -> None:
        self.held_back_loss.reset()
        self.held_back_score.reset()


def _loss_weights(
    task: Task, weights: Sequence[float] | str | None, targets: npt.NDArray[Any] | None, outputs: int
) -> torch.Tensor | None:
    """(K,) weights for the loss, computed from the training targets where a weighting is named; None for none."""
    if isinstance(weights, str):
        if targets is None:
            raise OptionError(f"weights={weights!r} are computed from the training targets: give targets as well.")
        computed = task.weigh(targets, outputs, weights)
        weights = None if computed is None else computed.tolist()
    if weights is None:
        return None
    found = torch.tensor(weights, dtype=torch.float32)
    if found.shape != (outputs,):
        raise OptionError(f"There are {outputs} outputs, so {outputs} weights are needed; got {tuple(found.shape)}.")
    return found
