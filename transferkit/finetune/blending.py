"""Callback that blends from the source's statistics to group normalisation during training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from transferkit.core.errors import OptionError
from transferkit.core.frameworks import lightning
from transferkit.nn.norm import StandardisedGroupNorm

if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = lightning()

__all__ = ["BlendRamp"]


class BlendRamp(pl.Callback):
    """Increases the share of each image's own statistics linearly from 0 to 1 over optimizer steps.

    For networks with fitted group normalisation, best by `swap_norm(network, partial(standardising, blend=0),
    calibrate=images)` (`transferkit.nn.norm`): they start equal to the source network and end as plain group
    normalisation, while the weights adapt. The share is a function of the step, so a resumed run continues correctly.

    Args:
        until: Share of all steps after which the blend is 1, in (0, 1]. Compare only checkpoints after that: earlier
            ones have another blend.

    Raises:
        OptionError: If `until` is out of range; when training starts, if the network has no such layer, or the trainer
            does not know the number of steps.

    Example:
        >>> trainer = pl.Trainer(max_epochs=10, callbacks=[BlendRamp(until=0.5)])  # doctest: +SKIP
    """

    def __init__(self, *, until: float = 0.5) -> None:
        if not 0 < until <= 1:
            raise OptionError(f"until must be a share of the steps in (0, 1], got {until!r}.")
        self.until = until
        self._steps = math.inf
        self._layers: list[StandardisedGroupNorm] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the layers and the number of steps."""
        self._layers = [module for module in pl_module.modules() if isinstance(module, StandardisedGroupNorm)]
        if not self._layers:
            raise OptionError(
                "The network has no fitted group normalisation to blend. Before training, add it with "
                "transferkit.swap_norm(network, 'group', calibrate=images)."
            )
        self._steps = self.until * trainer.estimated_stepping_batches
        if math.isinf(self._steps):
            raise OptionError("The blend needs the number of steps: pass max_epochs or max_steps to the trainer.")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the share for the next step."""
        for layer in self._layers:
            layer.blend = min(1.0, trainer.global_step / self._steps)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the final share."""
        for layer in self._layers:
            layer.blend = min(1.0, trainer.global_step / self._steps)
