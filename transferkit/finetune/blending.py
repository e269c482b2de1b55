"""Group normalisation that takes over from the source's statistics while a network learns."""

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
    """Raises the share of each image's own statistics evenly from 0 to 1, optimizer step by optimizer step.

    For networks with fitted group normalisation, best by `swap_norm(network, partial(standardising, blend=0),
    calibrate=images)` (`transferkit.nn.norm`): they begin as what the source computes and end as plain group
    normalisation, and the weights have time to follow. The share is a function of the step, so a resumed run goes
    on where it was.

    Args:
        until: Share of all steps after which the blend is 1, in (0, 1]. Judge checkpoints from there on: those
            from before belong to a network that is blended otherwise.

    Raises:
        OptionError: If `until` is out of range; when training starts, if the network has no such layer, or the trainer
            cannot tell how many steps there will be.

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
        """Find the layers, and how long there is."""
        self._layers = [module for module in pl_module.modules() if isinstance(module, StandardisedGroupNorm)]
        if not self._layers:
            raise OptionError(
                "There is no fitted group normalisation to blend in. Before training, "
                "transferkit.swap_norm(network, 'group', calibrate=images) puts it in."
            )
        self._steps = self.until * trainer.estimated_stepping_batches
        if math.isinf(self._steps):
            raise OptionError("A blend is raised over the steps of a run: give the trainer max_epochs or max_steps.")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The share for the step to come."""
        for layer in self._layers:
            layer.blend = min(1.0, trainer.global_step / self._steps)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The share that the last step left behind."""
        for layer in self._layers:
            layer.blend = min(1.0, trainer.global_step / self._steps)
