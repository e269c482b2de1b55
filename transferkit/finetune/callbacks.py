"""The freeze plan as a Lightning callback."""

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

__all__ = ["FreezePlanCallback", "cycle_ends", "phase_starts"]


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
            f"{len(phases)} phases need at least {len(phases)} epochs, got {epochs}. Train longer, or use a "
            "strategy with one phase (lp_ft, norm_only)."
        )
    starts, share = [0], 0.0
    for number, phase in enumerate(phases[:-1], start=1):
        share += phase.share
        latest = epochs - (len(phases) - number)
        starts.append(min(max(round(share * epochs), starts[-1] + 1), latest))
    return starts


def cycle_ends(phases: Sequence[Phase], epochs: int, cycles: int) -> tuple[int, ...]:
    """Last epoch of each cycle of the learning rate in the last phase.

    Args:
        phases: Of the plan.
        epochs: Of all phases.
        cycles: M >= 1.

    Raises:
        OptionError: If the last phase has fewer epochs than cycles.

    Example:
        >>> from transferkit.strategies import Rule
        >>> cycle_ends([Phase(name="all", rules=(Rule(stage="*", lr=1e-3),))], 10, 3)
        (2, 5, 9)
    """
    start = phase_starts(phases, epochs)[-1]
    if epochs - start < cycles:
        raise OptionError(
            f"snapshots={cycles} needs as many epochs in the last phase, which has {epochs - start}. Train longer "
            "(train.epochs), or keep fewer snapshots."
        )
    return tuple(start + (epochs - start) * number // cycles - 1 for number in range(1, cycles + 1))


class FreezePlanCallback(pl.Callback):
    """Applies a freeze plan during training, phase by phase, for your own LightningModule and trainer.

    Your module must contain one transferkit backbone (`transferkit.load_backbone`); pass `groups()` to its optimizer.

    Args:
        plan: Name of a strategy, its plan, or a `FreezePlan`.
        stage: With a name: the input stage of your head.
        unfreeze: With a name: stages to train, by name, or k for the last k; None for the strategy's default.
        lr: With a name: learning rate of the backbone's last stage; None for a tenth of its original rate.
        norm: With a name: "frozen" fixes running statistics, "keep" updates those of trained stages.
        weight_decay: For the parameters it applies to (see `FreezePlan`).

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
        """The plan on the network; available after the trainer's setup."""
        if self._freeze is None:
            raise OptionError("There is no freeze plan before the trainer's setup. Use it in configure_optimizers.")
        return self._freeze

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for `configure_optimizers`: all parameters trained in any phase."""
        return self.freeze.groups()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Apply the plan to the network, before its optimizers are created."""
        if stage != "fit":
            return
        # Created for every fit: one callback may be used for the networks of several folds.
        self._freeze = self._plan if isinstance(self._plan, FreezePlan) else self._make_plan(pl_module)
        phases = self._freeze.phases
        if getattr(trainer, "fast_dev_run", False):  # a few batches of one epoch, as a smoke test
            self._starts = [0]
        elif trainer.max_epochs is None or trainer.max_epochs < 1:
            if len(phases) > 1:
                raise OptionError("Phases are shares of the epochs: pass max_epochs to the trainer.")
            self._starts = [0]
        else:
            self._starts = phase_starts(phases, trainer.max_epochs)
        self._freeze.start(0, static=_is_static(trainer))
        pl.utilities.rank_zero_info("\n".join(["Trained parameters:", *claims_table(self._freeze.claims())]))
        # Lightning warns about modules in evaluation mode, such as a loaded backbone. Frozen modules return to it when
        # they are called, or when the first epoch starts.
        find_backbone(pl_module).trunk.train()

    def _make_plan(self, network: pl.LightningModule) -> FreezePlan:
        plan = self._plan
        if isinstance(plan, str):
            plan = plan_for(plan, find_backbone(network), **self._asked)
        assert isinstance(plan, Plan)
        if plan.adapters is not None and not any(is_adapter(name) for name, _ in network.named_parameters()):
            raise OptionError(
                f"{plan.strategy} trains adapters, but this network has none. transferkit.TransferModule adds them; in "
                "your own module, call transferkit.finetune.adapters.add_adapters on the backbone's trunk."
            )
        return FreezePlan(network, plan.phases, norm=plan.norm, weight_decay=self._weight_decay)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's phase; also correct for a resumed run."""
        phase = max(number for number, start in enumerate(self._starts) if start <= trainer.current_epoch)
        if phase != self.freeze.phase:
            self.freeze.start(phase, static=_is_static(trainer))
        self.freeze.set_modes(training=True)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Exclude parameters that the phase does not train from the step, including weight decay and momentum."""
        self.freeze.drop_idle()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the plan from the network; `teardown` is not called then."""
        if self._freeze is not None:
            self._freeze.release()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove the plan from the network."""
        if self._freeze is not None and stage == "fit":
            self._freeze.release()


def _is_static(trainer: pl.Trainer) -> bool:
    """Whether a wrapper reads requires_grad only once, so that it must be the same in all phases."""
    return trainer.world_size > 1 or isinstance(trainer.strategy, pl.strategies.ModelParallelStrategy)
