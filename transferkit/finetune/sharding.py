"""A network whose weights are shared out among processes, each holding a part of every tensor, and whole again after.

PyTorch's `fully_shard` (FSDP2) does it. It changes the modules that it is given for good, so a copy that was set aside
takes in what they have learnt.
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

__all__ = ["Shards", "add_up", "blocks_of", "fill_state", "is_sharded", "local", "placed", "whole"]

LARGEST = 0.1
"""Share of the parameters in one block, where that can be: so much is whole at once, but each block costs messages."""

OLDEST = (2, 7)
"""The torch whose `distribute_tensor` can be told not to ask the first process for what all of them have."""


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
    an optimizer keeps. In a pass the weights of a block come together when it is the block's turn.

    Args:
        model: Its blocks and parameters are others until `gather`.
        run: What a pass does with it.
        mesh: One dimension: the processes, each of which sees images of its own.

    Raises:
        OptionError: If torch is too old, or a parameter is a single number.
    """

    def __init__(self, model: TransferModel, run: Callable[..., Tensor], *, mesh: DeviceMesh) -> None:
        fully_shard = _load_fully_shard()
        if single := [name for name, parameter in model.named_parameters() if not parameter.ndim]:
            raise OptionError(
                f"{single[0]} is a single number, which cannot be shared out. Use trainer.strategy=ddp, or a backbone "
                "without such."
            )
        self._paths = [f"backbone.trunk.{path}" for path in blocks_of(model.backbone)]
        self._model = model
        self._spare = copy.deepcopy(model).cpu()  # what fully_shard changes in a module it changes for good
        # But outside of blocks it only hangs a hook on what holds parameters.
        self._hooks = {module: dict(module._load_state_dict_post_hooks) for module in model.modules()}
        model.to(memory_format=torch.contiguous_format)  # it takes no other
        for path in self._paths:
            fully_shard(model.get_submodule(path), mesh=mesh)
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

    def share_statistics(self) -> None:
        """Let all processes have the running statistics of the first: each measures its own images'. All must come
        here."""
        for statistic in self._model.buffers():
            distributed.broadcast(statistic, src=0)

    def gather(self) -> None:
        """Make the model whole, on the CPU; blocks are copies of those that it had. All processes must come here."""
        self.share_statistics()
        self._spare.load_state_dict({name: whole(tensor) for name, tensor in self._model.state_dict().items()})
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
            f"Sharing weights out needs torch {'.'.join(map(str, OLDEST))} or newer, this is {torch.__version__}. Use "
            "trainer.strategy=ddp."
        )
    from torch.distributed.fsdp import fully_shard

    return fully_shard


def blocks_of(backbone: Backbone) -> list[str]:
    """Paths inside the trunk of what is sharded together: the outermost modules that hold a tenth of the parameters at
    most, or do not call others that have any.

    Each is called once in a pass, and shares no parameter with the rest; no stage is read inside one. Found by watching
    two images go through.
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
    """Parameter -> by how many of the modules inside it is held."""
    return Counter(parameter for part in module.modules() for parameter in part.parameters(recurse=False))


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
