"""Options of the Lightning trainer: which users may set, device, and number of processes.

Lightning is imported only where needed: a run without gradient training does not import it.
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
    "SET_BY_RECIPE",
    "check_options",
    "check_sharding",
    "count_processes",
    "device_options",
    "launch_options",
    "quietly",
    "with_sharding",
]

QUIET = (
    ".*does not have many workers.*",  # batches are in memory: workers would only copy them
    ".*Consider setting `persistent_workers=True`.*",
    ".*is smaller than the logging interval.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # inside Lightning
    ".*The `srun` command is available.*",
    ".*validation_step` but have no `val_dataloader`.*",  # the final fit uses all images
    ".*exists and is not empty.*",  # curves of a fit interrupted before its first checkpoint
)
"""Lightning's warnings about things that are intended here."""

SPEAKERS = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric", "lightning")
"""Loggers that report devices and processes."""

SET_BY_RECIPE = (
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
"""Trainer options that users cannot set, because the recipe and the validation logic set them."""

SHARDED = "fsdp"
"""Name of the strategy that shards weights, gradients and optimizer state over processes."""


def check_options(options: Mapping[str, Any]) -> None:
    """Raise unless users may set these trainer options and training works with them.

    Raises:
        OptionError: If not.

    Example:
        >>> check_options({"precision": "bf16-mixed", "strategy": "ddp"})
    """
    if mine := sorted(set(SET_BY_RECIPE) & set(options)):
        raise OptionError(
            f"trainer.{', trainer.'.join(mine)}: these are set by the recipe (train.epochs, batch_size, "
            "train.clip). For your own callbacks use transferkit.TransferModule with your own trainer."
        )
    strategy = options.get("strategy")
    if strategy is None:
        return
    if isinstance(strategy, lightning().strategies.ModelParallelStrategy):
        raise OptionError(f"Each fit needs its own strategy object: pass trainer.strategy={SHARDED} instead.")
    if strategy == SHARDED and options.get("sync_batchnorm"):
        raise OptionError(
            "trainer.sync_batchnorm does not work with trainer.strategy=fsdp. Use norm=sync, which does the same."
        )
    if strategy != SHARDED:
        check_sharding(strategy)


def check_sharding(strategy: object) -> None:
    """Raise if a trainer's strategy shards weights in an unsupported way.

    Args:
        strategy: A Lightning trainer's strategy, or its name.

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
            f"{kind.__name__} shards weights in a way that hides them from clipping, averaging and saving. Use "
            "trainer.strategy=fsdp, or in your own trainer ModelParallelStrategy(data_parallel_size=<number of "
            "processes>, tensor_parallel_size=1), which is PyTorch's FSDP2."
        )


def count_processes(device: torch.device, options: Mapping[str, Any]) -> int:
    """Number of processes of a fit, before any is started or connected.

    Creates a trainer with the options, so that invalid ones are reported before any work.

    Args:
        device: Device to train on.
        options: For the trainer.

    Raises:
        OptionError: If users may not set an option, or the trainer does not accept it.

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
    except Exception as error:  # any error here is about the options
        reason = str(error).split("\n")[0].replace("Trainer.__init__() got an", "there is an")
        raise OptionError(f"Lightning's Trainer does not accept these options: {reason}") from error


def device_options(device: torch.device) -> dict[str, Any]:
    """Trainer options to run on a device."""
    return {
        "accelerator": {"cuda": "gpu"}.get(device.type, device.type),
        "devices": 1 if device.index is None or device.type == "cpu" else [device.index],
        **launch_options(),
    }


def launch_options() -> dict[str, Any]:
    """Trainer options if torchrun started the processes: one device per process."""
    if "LOCAL_WORLD_SIZE" not in os.environ or "WORLD_SIZE" not in os.environ:
        return {}
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return {"devices": here, "num_nodes": everywhere // here, "strategy": "ddp" if everywhere > 1 else "auto"}


def with_sharding(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Trainer options with "fsdp" replaced by FSDP2: Lightning's "fsdp" is FSDP1, whose flat parameters only its own
    methods can clip or average."""
    if settings.get("strategy") != SHARDED:
        return settings
    pl = lightning()
    devices = {name: settings[name] for name in ("accelerator", "devices", "num_nodes") if name in settings}
    world = pl.Trainer(**devices, strategy="ddp", logger=False, enable_checkpointing=False).world_size
    strategy = pl.strategies.ModelParallelStrategy(
        data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False
    )
    return {**settings, "strategy": strategy}


_SHOWN: set[str] = set()
"""Warnings shown in this process already, as every fit repeats them."""


def _shown_once(show: Callable[..., None]) -> Callable[..., None]:
    """Wrap `showwarning` to show each warning once, because `catch_warnings` resets Python's registry."""

    def show_new(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        text = f"{category.__name__}: {message}"
        if text not in _SHOWN:
            _SHOWN.add(text)
            show(message, category, *where, **more)

    return show_new


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress Lightning's messages about devices and workers inside the block."""
    lightning()  # imported first, because that sets its loggers' levels
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
