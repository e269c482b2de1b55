"""The freeze plan, hung on a Lightning trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from transferkit.core.errors import OptionError
from transferkit.core.frameworks import lightning
from transferkit.core.renaming import renamed
from transferkit.finetune.adapters import is_adapter
from transferkit.finetune.freeze import FreezePlan, claims_table, find_backbone
from transferkit.finetune.plans import plan_for
from transferkit.records import TOP
from transferkit.strategies import Phase, Plan

if TYPE_CHECKING:
    import pytorch_lightning as pl
else:
    pl = lightning()

__all__ = ["FreezePlanCallback", "phase_starts"]


def phase_starts(phases: Sequence[Phase], epochs: int) -> list[int]:
    """First epoch of each phase; a phase has at least one.

    Raises:
        OptionError: If there are fewer epochs than phases.

    Example:
        >>> from transferkit.strategies import Rule
        >>> rules = (Rule(stage="*", lr=1e-3),)
        >>> phase_starts([Phase(name="head", rules=rules, share=0.2), Phase(name="all", rules=rules, share=0.8)], 12)
        [0, 2]
    """
    if epochs < len(phases):
        raise OptionError(
            f"{len(phases)} phases need at least {len(phases)} epochs, got {epochs}. Train for more, or choose a "
            "strategy that has one phase (lp_ft, norm_only)."
        )
    starts, share = [0], 0.0
    for number, phase in enumerate(phases[:-1], start=1):
        share += phase.share
        latest = epochs - (len(phases) - number)
        starts.append(min(max(round(share * epochs), starts[-1] + 1), latest))
    return starts


class FreezePlanCallback(pl.Callback):
    """Keeps a freeze plan in force while a trainer runs, phase by phase; for your own LightningModule and trainer.

    Your module must hold one transferkit backbone (`transferkit.load_backbone`); its optimizer takes `groups()`.

    Args:
        plan: Name of a strategy, its plan, or a freeze plan that was made already.
        stage: With a name: the stage that your head reads.
        unfreeze: With a name: stages to train, by their names, or k for the last k; None leaves them to the strategy.
        lr: With a name: learning rate of the backbone's last stage; None takes a tenth of the rate it was trained at.
        norm: With a name: "frozen" leaves running statistics as they are, "keep" goes on measuring those of stages that
            learn.
        weight_decay: Of the parameters that it acts on (see `FreezePlan`).

    Example:
        >>> import transferkit as tk  # doctest: +SKIP
        >>> freeze = tk.FreezePlanCallback("few_layers", lr=1e-3)  # doctest: +SKIP
        >>> # in your module: def configure_optimizers(self): return torch.optim.SGD(freeze.groups(), momentum=0.9)
        >>> trainer = pl.Trainer(max_epochs=10, callbacks=[freeze])  # doctest: +SKIP
    """

    @renamed
    def __init__(
        self,
        plan: str | Plan | FreezePlan,
        *,
        stage: str | int = TOP,
        unfreeze: int | str | Sequence[str] | None = None,
        lr: float | None = None,
        norm: str = "frozen",
        weight_decay: float = 0.0,
    ) -> None:
        self._plan = plan
        self._asked: dict[str, Any] = {"stage": stage, "unfreeze": unfreeze, "lr": lr, "norm": norm}
        self._freeze = plan if isinstance(plan, FreezePlan) else None
        self._weight_decay = weight_decay
        self._starts: list[int] = []

    @property
    def freeze(self) -> FreezePlan:
        """The plan on the network; there from the trainer's setup on."""
        if self._freeze is None:
            raise OptionError("The freeze plan is laid over the network when the trainer is set up: fit first.")
        return self._freeze

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for `configure_optimizers`: all that is ever trained."""
        return self.freeze.groups()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Lay the plan over the network, before its optimizers are made."""
        if stage != "fit":
            return
        # Anew for every fit: one callback may serve the networks of several folds.
        self._freeze = self._plan if isinstance(self._plan, FreezePlan) else self._lay(pl_module)
        phases = self._freeze.phases
        if getattr(trainer, "fast_dev_run", False):  # a few batches of one epoch, to see that all is wired up
            self._starts = [0]
        elif trainer.max_epochs is None or trainer.max_epochs < 1:
            if len(phases) > 1:
                raise OptionError("Phases are shares of the epochs: give the trainer max_epochs.")
            self._starts = [0]
        else:
            self._starts = phase_starts(phases, trainer.max_epochs)
        self._freeze.start(0, static=_is_static(trainer))
        pl.utilities.rank_zero_info("\n".join(["What learns:", *claims_table(self._freeze.claims())]))
        # Lightning warns of modules that it finds in evaluation mode, as a backbone is that was just loaded. What is
        # frozen goes back to it when it is called, or when the first epoch starts.
        find_backbone(pl_module).trunk.train()

    def _lay(self, network: pl.LightningModule) -> FreezePlan:
        plan = self._plan
        if isinstance(plan, str):
            plan = plan_for(plan, find_backbone(network), **self._asked)
        assert isinstance(plan, Plan)
        if plan.adapters is not None and not any(is_adapter(name) for name, _ in network.named_parameters()):
            raise OptionError(
                f"{plan.strategy} trains adapters, and this network has none. transferkit.TransferModule adds them; in "
                "a module of your own, transferkit.finetune.adapters.add_adapters puts them into the backbone's trunk."
            )
        return FreezePlan(network, plan.phases, norm=plan.norm, weight_decay=self._weight_decay)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the epoch's phase into force; a resumed run lands in the right one."""
        phase = max(number for number, start in enumerate(self._starts) if start <= trainer.current_epoch)
        if phase != self.freeze.phase:
            self.freeze.start(phase, static=_is_static(trainer))
        self.freeze.set_modes(training=True)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """What the phase does not train is not stepped, not even by weight decay or momentum."""
        self.freeze.drop_idle()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the plan off the network; `teardown` is not called then."""
        if self._freeze is not None:
            self._freeze.release()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the plan off the network."""
        if self._freeze is not None and stage == "fit":
            self._freeze.release()


def _is_static(trainer: pl.Trainer) -> bool:
    """Whether the network is wrapped in what looks once at who asks for gradients: that must hold for all phases."""
    return trainer.world_size > 1 or isinstance(trainer.strategy, pl.strategies.ModelParallelStrategy)
