"""Copies of a finished model for threads to run: nothing that one thread does to a model reaches another.

A model is Python objects around tensors. The objects change while they run or are handled (modes, devices, whatever a
network keeps on itself during a forward pass); the tensors of a finished model do not. So every thread that predicts
has a replica's objects to itself for as long as it runs, and all replicas on a device share one set of tensors.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Generic, TypeVar

import torch
from torch import nn

__all__ = ["Replicas"]

Model = TypeVar("Model", bound=nn.Module)


class Replicas(Generic[Model]):
    """A model's copies in evaluation mode, made when first needed and used again. Any number of threads may use it.

    Memory: on each device one set of tensors, which is the model's own where that is possible; per thread that runs at
    the same time a few kilobytes per module.

    Args:
        model: Is only read. If its tensors, modules, attributes or hooks have been changed since the copies were made,
            they are made again at the next use.
        prepare: Called with the first copy on each device, returns what threads run, made of the copy's modules.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1), nn.Dropout())
        >>> replicas = Replicas(model)
        >>> with replicas.on(torch.device("cpu")) as replica:
        ...     replica.training, replica[0].weight.data_ptr() == model[0].weight.data_ptr()
        (False, True)
        >>> model.training
        True
    """

    def __init__(self, model: Model, *, prepare: Callable[[Model], Model] | None = None) -> None:
        self.model = model
        self._prepare = prepare
        self._lock = threading.Lock()
        self._made_of: list[object] = []
        self._numbers: list[int] = []
        self._pools: dict[torch.device, _Pool[Model]] = {}

    def __reduce__(self) -> tuple[object, ...]:  # a lock can be neither copied nor pickled
        return partial(type(self), prepare=self._prepare), (self.model,)

    @contextmanager
    def on(self, device: torch.device) -> Iterator[Model]:
        """A copy on the device, in evaluation mode and in channels_last, for this thread alone inside the block."""
        with self._lock:
            made_of, numbers = _snapshot(self.model)
            if numbers != self._numbers:
                self._made_of, self._numbers, self._pools = made_of, numbers, {}
            if device not in self._pools:
                self._pools[device] = _Pool(self.model, device, self._prepare)
            pool = self._pools[device]
            replica = pool.take()
        yield replica
        pool.idle.append(replica)  # after an exception it is dropped: who knows what it was in the middle of


class _Pool(Generic[Model]):
    """The replicas on one device.

    Attributes:
        idle: Those that no thread runs.
    """

    def __init__(self, model: Model, device: torch.device, prepare: Callable[[Model], Model] | None) -> None:
        # The same memory layout however the model came to be: another one can change the last bit.
        first = _copy_around(model, fresh=True).eval().to(device).to(memory_format=torch.channels_last)
        self._pattern = first if prepare is None else prepare(first)
        self.idle: list[Model] = []

    def take(self) -> Model:
        return self.idle.pop() if self.idle else _copy_around(self._pattern, fresh=False)


def _copy_around(model: Model, *, fresh: bool) -> Model:
    """A deep copy of everything but the values of parameters and buffers, which are shared.

    Args:
        model: Is only read.
        fresh: Share the values but not the tensor objects, so that moving the copy does not move the model.
    """
    shared: dict[int, object] = {}
    for module in model.modules():
        for tensor in _tensors_of(module):
            shared[id(tensor)] = _same_values(tensor) if fresh else tensor
        for value in vars(module).values():  # kept from a pass with gradients: deepcopy refuses these
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                shared[id(value)] = value.detach()
    return copy.deepcopy(model, shared)


def _same_values(tensor: torch.Tensor) -> torch.Tensor:
    values = tensor.detach()
    return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values


def _tensors_of(module: nn.Module) -> Iterator[torch.Tensor]:
    for tensor in chain(module._parameters.values(), module._buffers.values()):
        if tensor is not None:
            yield tensor


def _snapshot(model: nn.Module) -> tuple[list[object], list[int]]:
    """What a model consists of, and numbers that change when somebody changes any of it.

    Costs a millisecond for 500 modules. The numbers are ids, so the objects must be kept for as long as they are to be
    compared: the id of an object that is gone may be given to another.
    """
    objects: list[object] = []
    counts: list[int] = []
    modules = [model]
    for module in modules:
        held = vars(module)
        objects.append(module)
        objects += held.values()
        counts += (len(module._forward_hooks), len(module._forward_pre_hooks))
        modules += [child for child in module._modules.values() if child is not None]
        for tensor in _tensors_of(module):
            objects.append(tensor)
            counts += (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
    return objects, [*map(id, objects), *counts]
