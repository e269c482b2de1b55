"""A network whose weights are shared out among processes, each holding a part of every tensor, and whole again after.

PyTorch's `fully_shard` (FSDP2) does it. It changes the modules that it is given for good, so a copy that was set aside
takes in what they have learnt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed, nn

from transferkit.errors import OptionError
from transferkit.nn import TransferModel

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

__all__ = ["Shards", "add_up", "fill_state", "is_sharded", "local", "placed", "whole"]


class _Unit(nn.Module):
    """A module to hang shards on: called for each pass, around whatever makes the pass."""

    def __init__(self, network: nn.Module, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network
        self._run = run

    def forward(self, *inputs: Any) -> Tensor:
        return self._run(*inputs)


class Shards:
    """Shares a model out among the processes of a mesh, in place.

    Between passes each parameter is a `DTensor`, of which this process holds its own part; so are gradients, and what
    an optimizer keeps. In a pass the weights of a stage come together when it is the stage's turn.

    Args:
        model: Changed for good.
        run: What a pass does with it.
        mesh: One dimension: the processes, each of which sees images of its own.

    Raises:
        OptionError: If torch is too old.
    """

    def __init__(self, model: TransferModel, run: Callable[..., Tensor], *, mesh: DeviceMesh) -> None:
        fully_shard = _load_fully_shard()
        self._spare = copy.deepcopy(model)
        model.to(memory_format=torch.contiguous_format)  # fully_shard takes no other
        for tap in model.backbone.taps:
            if tap.path:
                fully_shard(model.backbone.trunk.get_submodule(tap.path), mesh=mesh)
        self._unit = _Unit(model, run)
        # The outermost as well: averages and checkpoints must not find some of the weights whole.
        fully_shard(self._unit, mesh=mesh, reshard_after_forward=True)

    def __call__(self, *inputs: Any) -> Tensor:
        """What a pass gives. All processes must come here."""
        if not torch.is_inference_mode_enabled():
            return self._unit(*inputs)
        # Weights that come together in inference mode first could not be trained on later.
        with torch.inference_mode(False), torch.no_grad():
            return self._unit(*inputs)

    def gather(self) -> TransferModel:
        """A model as it was before, on the CPU, with the weights of now; running statistics, which each process has
        measured on its own images, are those of the first. All processes must come here."""
        state = self._unit.network.state_dict()
        self._spare.load_state_dict({name: _common(tensor) for name, tensor in state.items()})
        return self._spare


def _load_fully_shard() -> Callable[..., Any]:
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise OptionError(
            f"Sharing weights out needs torch 2.6 or newer, this is {torch.__version__}. Use trainer.strategy=ddp."
        ) from error
    return fully_shard


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether this process holds a part of it only.

    Example:
        >>> is_sharded(torch.ones(2))
        False
    """
    return hasattr(tensor, "device_mesh")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, if it is sharded; else itself. All processes must come here.

    Example:
        >>> whole(torch.ones(2))
        tensor([1., 1.])
    """
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory; one that is not sharded is returned itself.

    Example:
        >>> local(torch.ones(2))
        tensor([1., 1.])
    """
    return tensor.to_local() if is_sharded(tensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor on the device of another, and sharded if that is; a whole one must be the same in all processes.

    Example:
        >>> placed(torch.ones(2), torch.zeros(2))
        tensor([1., 1.])
    """
    if is_sharded(tensor) or not is_sharded(like):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def fill_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the state of all parameters, as it is before the first step, though some may wait for their phase.

    A checkpoint of shards must be complete: what it lacks, torch makes up when it is loaded, by a step along weight
    decay alone. Of SGD and AdamW all zeros are the state that they begin with.
    """
    groups = optimizer.param_groups
    rates = [group["lr"] for group in groups]
    for group in groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()


def add_up(part: Tensor) -> Tensor:
    """The sum of what the processes have each computed from their own part of the weights; gradients flow into this
    process's. All processes must come here."""
    total = part.detach().clone()
    distributed.all_reduce(total)
    return part + (total - part.detach())


def _common(tensor: Tensor) -> Tensor:
    """The same in all processes: all of what is sharded, else what the first has."""
    if is_sharded(tensor):
        return whole(tensor)
    distributed.broadcast(tensor, src=0)
    return tensor
