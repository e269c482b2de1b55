"""The options of a Lightning trainer: which are for people to set, where it runs, and in how many processes.

Lightning is imported by what asks it something: a run that trains nothing by gradient does without.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from transferkit.core.errors import OptionError
from transferkit.core.frameworks import lightning

__all__ = [
    "OF_THE_RECIPE",
    "check_options",
    "check_sharding",
    "count_processes",
    "launch_options",
    "device_options",
    "quietly",
    "with_sharding",
]

QUIET = (
    ".*does not have many workers.*",  # batches come from memory: workers would only copy them
    ".*Consider setting `persistent_workers=True`.*",
    ".*is smaller than the logging interval.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # inside Lightning
    ".*The `srun` command is available.*",
    ".*validation_step` but have no `val_dataloader`.*",  # the last fit is on all images
    ".*exists and is not empty.*",  # curves of a fit that was killed before its first checkpoint
)
"""Warnings of Lightning's that are about what is meant to be so here."""

SPEAKERS = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric", "lightning")
"""Loggers that tell of devices and processes."""

OF_THE_RECIPE = (
    "accumulate_grad_batches",
    "callbacks",
    "check_val_every_n_epoch",
    "enable_checkpointing",
    "fast_dev_run",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "limit_val_batches",
    "max_epochs",
    "max_steps",
    "max_time",
    "min_epochs",
    "min_steps",
    "num_sanity_val_steps",
    "overfit_batches",
    "reload_dataloaders_every_n_epochs",
    "use_distributed_sampler",
    "val_check_interval",
)
"""Options of the trainer that are not for people to set: what is trained, judged and kept depends on them."""

SHARDED = "fsdp"
"""Name of the strategy that shares weights, gradients and the optimizer's state out among the processes."""


def check_options(options: Mapping[str, Any]) -> None:
    """Whether these options of the trainer are for people to set, and such that training works with them.

    Raises:
        OptionError: If not.

    Example:
        >>> check_options({"precision": "bf16-mixed", "strategy": "ddp"})
    """
    if mine := sorted(set(OF_THE_RECIPE) & set(options)):
        raise OptionError(
            f"trainer.{', trainer.'.join(mine)}: these are set by the recipe (train.epochs, batch_size, "
            "train.clip). For callbacks of your own use transferkit.TransferModule with your own trainer."
        )
    strategy = options.get("strategy")
    if strategy is None:
        return
    if isinstance(strategy, lightning().strategies.ModelParallelStrategy):
        raise OptionError(f"Each fit needs such a strategy of its own: say trainer.strategy={SHARDED} instead.")
    if strategy == SHARDED and options.get("sync_batchnorm"):
        raise OptionError(
            "trainer.sync_batchnorm is not for trainer.strategy=fsdp. Use norm=sync, which does the same."
        )
    if strategy != SHARDED:
        check_sharding(strategy)


def check_sharding(strategy: object) -> None:
    """Whether a trainer's strategy leaves weights whole, or shares them out in the one way that is known here.

    Args:
        strategy: A Lightning trainer's, or the name that it goes by there.

    Raises:
        OptionError: If not.

    Example:
        >>> check_sharding("ddp")
    """
    kinds = lightning().strategies
    known = kinds.StrategyRegistry
    kind = known[strategy]["strategy"] if isinstance(strategy, str) and strategy in known else type(strategy)
    if issubclass(kind, (kinds.FSDPStrategy, kinds.DeepSpeedStrategy)):
        raise OptionError(
            f"{kind.__name__} shares weights out in a way that hides them from clipping, averages and the network that "
            "is kept. Use trainer.strategy=fsdp, or in a trainer of your own ModelParallelStrategy(data_parallel_size="
            "<number of processes>, tensor_parallel_size=1), which is PyTorch's FSDP2."
        )


def count_processes(device: torch.device, options: Mapping[str, Any]) -> int:
    """How many processes a fit will be shared out among; known before any is connected, or started.

    A trainer is made of the options to tell, so what it does not take is known before any work, too.

    Args:
        device: Where.
        options: For the trainer.

    Raises:
        OptionError: If an option is not for people to set, or the trainer does not take it.

    Example:
        >>> count_processes(torch.device("cpu"), {"devices": 2, "num_nodes": 3})
        6
    """
    check_options(options)
    if not {*launch_options(), *options}:
        return 1
    make_trainer = lightning().Trainer
    silent = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    try:
        with quietly():
            return int(make_trainer(**with_sharding({**device_options(device), **options, **silent})).world_size)
    except Exception as error:  # of many kinds, and all about the options: there is nothing else yet
        said = str(error).split("\n")[0].replace("Trainer.__init__() got an", "there is an")
        raise OptionError(f"Lightning's Trainer does not take these options: {said}") from error


def device_options(device: torch.device) -> dict[str, Any]:
    """What the trainer must know to run there."""
    return {
        "accelerator": {"cuda": "gpu"}.get(device.type, device.type),
        "devices": 1 if device.index is None or device.type == "cpu" else [device.index],
        **launch_options(),
    }


def launch_options() -> dict[str, Any]:
    """What the trainer must know where torchrun started the processes: their number is that of the devices."""
    if "LOCAL_WORLD_SIZE" not in os.environ or "WORLD_SIZE" not in os.environ:
        return {}
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return {"devices": here, "num_nodes": everywhere // here, "strategy": "ddp" if everywhere > 1 else "auto"}


def with_sharding(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of a trainer, the name "fsdp" replaced by what it stands for here: Lightning's own of that name is the
    first FSDP, whose flat parameters nothing but its own methods can clip or average."""
    if settings.get("strategy") != SHARDED:
        return settings
    pl = lightning()
    places = {name: settings[name] for name in ("accelerator", "devices", "num_nodes") if name in settings}
    world = pl.Trainer(**places, strategy="ddp", logger=False, enable_checkpointing=False).world_size
    strategy = pl.strategies.ModelParallelStrategy(
        data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False
    )
    return {**settings, "strategy": strategy}


_SHOWN: set[str] = set()
"""Warnings that were shown in this process: every fit brings the same ones."""


def _shown_once(show: Callable[..., None]) -> Callable[..., None]:
    """How to show a warning, but for one that was shown already; `catch_warnings` makes Python forget that."""

    def show_new(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        said = f"{category.__name__}: {message}"
        if said not in _SHOWN:
            _SHOWN.add(said)
            show(message, category, *where, **more)

    return show_new


@contextmanager
def quietly() -> Iterator[None]:
    """Without Lightning's words about devices and workers."""
    lightning()  # its import sets the level of its loggers: it must not come later
    loggers = [logging.getLogger(name) for name in SPEAKERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for message in QUIET:
                warnings.filterwarnings("ignore", message)
            warnings.showwarning = _shown_once(warnings.showwarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
