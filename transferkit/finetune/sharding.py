"""Sharding of a network's weights over processes (FSDP2), and gathering them afterwards.

Uses PyTorch's `fully_shard`, which changes modules permanently; so the trained weights are loaded into a copy that was
made before.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed, nn

from transferkit.core.errors import OptionError
from transferkit.nn import Backbone, TransferModel
from transferkit.nn.stages import Call, call_tree, calls_in, count_parameters, evaluating

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

__all__ = ["Shards", "blocks_of", "fill_state", "full_tensor", "is_sharded", "local", "placed", "sum_over_processes"]

LARGEST = 0.1
"""Maximum share of the parameters in one block, if possible: a block is gathered at once, but each costs messages."""

OLDEST = (2, 7)
"""Minimum torch version, in which `distribute_tensor` can skip the broadcast from rank 0."""


class _Unit(nn.Module):
    """Outermost module to shard: calls the function that makes the forward pass."""

    def __init__(self, network: nn.Module, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network
        self._run = run

    def forward(self, *inputs: Any) -> Tensor:
        return self._run(*inputs)


class Shards:
    """Shards a model over the processes of a mesh, in place.

    Between passes each parameter is a `DTensor` of which this process holds its shard; likewise gradients and optimizer
    state. In a pass the weights of a block are gathered when the block runs.

    Args:
        model: Its blocks and parameters are replaced until `gather`.
        run: Function that makes a forward pass.
        mesh: One-dimensional: data-parallel processes.

    Raises:
        OptionError: If torch is too old, or a parameter is a scalar.
    """

    def __init__(self, model: TransferModel, run: Callable[..., Tensor], *, mesh: DeviceMesh) -> None:
        fully_shard = _load_fully_shard()
        if single := [name for name, parameter in model.named_parameters() if not parameter.ndim]:
            raise OptionError(
                f"{single[0]} is a scalar parameter, which cannot be sharded. Use trainer.strategy=ddp, or a backbone "
                "without scalar parameters."
            )
        self._paths = [f"backbone.trunk.{path}" for path in blocks_of(model.backbone)]
        self._model = model
        self._spare = copy.deepcopy(model).cpu()  # fully_shard's changes to modules are permanent
        # Outside of blocks it only adds a hook to modules with parameters.
        self._hooks = {module: dict(module._load_state_dict_post_hooks) for module in model.modules()}
        model.to(memory_format=torch.contiguous_format)  # required by fully_shard
        for path in self._paths:
            fully_shard(model.get_submodule(path), mesh=mesh)
        self._unit = _Unit(model, run)
        # The outermost module too: averages and checkpoints must not see a mix of sharded and full weights.
        fully_shard(self._unit, mesh=mesh, reshard_after_forward=True)

    def __call__(self, *inputs: Any) -> Tensor:
        """The result of a forward pass. All processes must call this."""
        if not torch.is_inference_mode_enabled():
            return self._unit(*inputs)
        # Weights first gathered in inference mode could not be trained later.
        with torch.inference_mode(False), torch.no_grad():
            return self._unit(*inputs)

    def share_statistics(self) -> None:
        """Broadcast the running statistics of rank 0, as each process measures its own images'. All processes must call
        this."""
        for statistic in self._model.buffers():
            distributed.broadcast(statistic, src=0)

    def gather(self) -> None:
        """Restore the full model on the CPU; blocks are copies of the original ones. All processes must call this."""
        self.share_statistics()
        self._spare.load_state_dict({name: full_tensor(tensor) for name, tensor in self._model.state_dict().items()})
        for path in self._paths:
            self._model.set_submodule(path, self._spare.get_submodule(path))
        for path, module in self._spare.named_modules():
            mine = self._model.get_submodule(path)
            mine._parameters.update(module._parameters)
            mine._buffers.update(module._buffers)
        for module, hooks in self._hooks.items():
            module._load_state_dict_post_hooks.clear()
            module._load_state_dict_post_hooks.update(hooks)


def _load_fully_shard() -> Callable[..., Any]:
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST:
        raise OptionError(
            f"Sharding needs torch {'.'.join(map(str, OLDEST))} or newer, this is {torch.__version__}. Use "
            "trainer.strategy=ddp."
        )
    from torch.distributed.fsdp import fully_shard

    return fully_shard


def blocks_of(backbone: Backbone) -> list[str]:
    """Paths inside the trunk of the blocks to shard: the outermost modules with at most a tenth of the parameters, or
    that call no other modules with parameters.

    Each is called once per pass, shares no parameter with the rest, and contains no tapped stage. Found by tracing a
    pass of two images.
    """
    trunk, size = backbone.trunk, backbone.spec.preprocessing.size
    images = next(trunk.parameters()).new_zeros(2, 3, size, size)
    with evaluating(trunk), torch.no_grad():
        tree = call_tree(trunk, images)
    largest = LARGEST * count_parameters(trunk)
    times = Counter(call.path for call in calls_in(tree))
    holders = _holders(trunk)

    def is_block(call: Call) -> bool:
        return (
            (count_parameters(call.module) <= largest or not any(count_parameters(part.module) for part in call.calls))
            and times[call.path] == 1
            and all(holders[parameter] == count for parameter, count in _holders(call.module).items())
            and not any(tap.path.startswith(f"{call.path}.") for tap in backbone.taps)
        )

    def blocks(call: Call) -> Iterator[str]:
        for inner in call.calls:
            if not count_parameters(inner.module):
                continue
            if is_block(inner):
                yield inner.path
            else:
                yield from blocks(inner)

    return list(dict.fromkeys(blocks(tree)))


def _holders(module: nn.Module) -> Counter[nn.Parameter]:
    """Parameter -> number of the modules inside that own it."""
    return Counter(parameter for part in module.modules() for parameter in part.parameters(recurse=False))


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether this process holds only a shard of it.

    Example:
        >>> is_sharded(torch.ones(2))
        False
    """
    return hasattr(tensor, "device_mesh")


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one; else the tensor itself. All processes must call this.

    Example:
        >>> full_tensor(torch.ones(2))
        tensor([1., 1.])
    """
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, sharing its memory; an unsharded tensor itself.

    Example:
        >>> local(torch.ones(2))
        tensor([1., 1.])
    """
    return tensor.to_local() if is_sharded(tensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor on the device of another, and sharded like it; an unsharded input must be equal in all processes.

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
    """Create the initial optimizer state of all parameters, including those trained only in later phases.

    A sharded checkpoint must be complete: on loading, torch creates missing state by a step of weight decay alone. For
    SGD and AdamW the initial state is all zeros.
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


def sum_over_processes(part: Tensor) -> Tensor:
    """The sum over processes of values computed from their shards; gradients flow into this process's value. All
    processes must call this."""
    total = part.detach().clone()
    distributed.all_reduce(total)
    return part + (total - part.detach())
