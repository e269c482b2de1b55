"""What follows each layer of a network: outputs of layers followed through the operators of one forward pass.

Operators, not modules, are watched, so `F.relu` in a `forward` counts as `nn.ReLU` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from transferkit.nn.stages import evaluating

__all__ = ["LAYERS", "RECTIFIERS", "as_at_start", "call", "find_nonlinearities", "follow_layers", "list_layers"]

See = Callable[[str, str, torch.Tensor, torch.Tensor], object]
"""(path of the layer, nonlinearity, its input, its output)."""

SeeOutput = Callable[[str, Any], object]
"""(path of the layer, its output)."""

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

RECTIFIERS = frozenset({"relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "hardswish", "prelu"})
"""Nonlinearities that suppress about half of their inputs; others are taken as linear near zero."""

NONLINEARITIES = {
    "relu": "relu",
    "hardtanh": "relu6",
    "leaky_relu": "leaky_relu",
    "elu": "elu",
    "gelu": "gelu",
    "silu": "silu",
    "hardswish": "hardswish",
    "_prelu_kernel": "prelu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "hardsigmoid": "sigmoid",
    "_softmax": "softmax",
    "_log_softmax": "softmax",
}
"""Name of torch's operator, without a final underscore -> nonlinearity. ReLU6 is a clamp to [0, 6], `hardtanh` for
torch."""

PASSES = frozenset(
    {
        "native_batch_norm",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "cudnn_batch_norm",
        "native_group_norm",
        "native_layer_norm",
        "add",
        "cat",
        "div",
        "sub",
        "squeeze",
        "unsqueeze",
        "slice",
        "expand",
        "constant_pad_nd",
        "mul",
        "clone",
        "view",
        "_unsafe_view",
        "reshape",
        "flatten",
        "permute",
        "transpose",
        "t",
        "contiguous",
        "_to_copy",
        "native_dropout",
        "max_pool2d_with_indices",
        "avg_pool2d",
        "mean",
        "_adaptive_avg_pool2d",
        "detach",
        "alias",
    }
)
"""Operators that hand a layer's output on to what follows it."""


class _Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the outputs of layers through the operators of one forward pass."""

    def __init__(self, see: See) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._see = see
        self._layers: dict[int, str] = {}
        self._kept: list[torch.Tensor] = []  # an id is free again once its tensor is gone

    def follow(self, tensor: Any, layer: str) -> None:
        if isinstance(tensor, torch.Tensor):
            self._layers[id(tensor)] = layer
            self._kept.append(tensor)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # torch.cat takes a list of tensors.
        operands = [two for one in args for two in (one if isinstance(one, (list, tuple)) else (one,))]
        source = next((one for one in operands if id(one) in self._layers), None)
        name = function.overloadpacket.__name__.removesuffix("_")
        if source is None:
            return function(*args, **(kwargs or {}))
        layer = self._layers[id(source)]
        # An operator in place overwrites what it reads.
        before = source.clone() if name in NONLINEARITIES else source
        result = function(*args, **(kwargs or {}))
        if name in NONLINEARITIES:
            del self._layers[id(source)]
            self._see(layer, NONLINEARITIES[name], before, result)
        elif name in PASSES:
            self.follow(result[0] if isinstance(result, tuple) else result, layer)
        return result


def list_layers(module: nn.Module) -> list[tuple[str, Any]]:
    """Dotted path and layer of every linear and convolutional layer."""
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, LAYERS)]


def call(module: nn.Module, batch: Any) -> Any:
    """The module's output for a batch: one input, or a tuple of them."""
    return module(*batch) if isinstance(batch, tuple) else module(batch)


@contextmanager
def as_at_start(module: nn.Module, batch: Any) -> Iterator[None]:
    """Evaluation mode without gradients, in which batch normalisation that has seen no batch yet uses this one's
    statistics.

    Its running mean 0 and variance 1 would do nothing, whereas the first step normalises. Nothing is changed
    afterwards.
    """
    images = batch[0] if isinstance(batch, tuple) else batch
    several = isinstance(images, torch.Tensor) and len(images) > 1
    fresh: list[Any] = [one for one in module.modules() if several and _is_fresh(one)]
    momenta = [one.momentum for one in fresh]
    # Inference mode hides operators from whoever follows them.
    with torch.inference_mode(False), evaluating(module), torch.no_grad():
        try:
            for one in fresh:
                one.training, one.momentum = True, 0.0
            yield
        finally:
            for one, momentum in zip(fresh, momenta, strict=True):
                one.momentum = momentum
                one.num_batches_tracked.zero_()


def _is_fresh(one: Any) -> bool:
    is_norm = isinstance(one, nn.modules.batchnorm._BatchNorm) and one.num_batches_tracked is not None
    return bool(is_norm and one.num_batches_tracked == 0)


def follow_layers(module: nn.Module, batch: Any, *, see: See, see_output: SeeOutput) -> None:
    """One forward pass in evaluation mode, without gradients, in which the outputs of layers are followed.

    Args:
        module: Any network; it is as it was afterwards.
        batch: Its input, or a tuple of its inputs.
        see: Called for each nonlinearity that reads a layer's output, directly or through `PASSES`.
        see_output: Called for each call of a layer.
    """
    follower = _Follower(see)

    def hook(name: str) -> Callable[..., None]:
        def note(layer: nn.Module, inputs: Any, output: Any) -> None:
            with _disable_current_modes():
                see_output(name, output)
            follower.follow(output, name)

        return note

    handles = [layer.register_forward_hook(hook(name)) for name, layer in list_layers(module)]
    try:
        with as_at_start(module, batch), follower:
            call(module, batch)
    finally:
        for handle in handles:
            handle.remove()


def find_nonlinearities(module: nn.Module, batch: Any) -> dict[str, str]:
    """The nonlinearity that follows each linear or convolutional layer, modules and functions alike.

    Args:
        module: Any network; it is run once in evaluation mode, without gradients, and is as it was afterwards.
        batch: Its input, or a tuple of its inputs.

    Returns:
        Dotted path of each layer that ran, in order of its first call -> name, "linear" where none follows before the
        next layer. Normalisation, pooling, dropout and residual sums are looked through.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> find_nonlinearities(net, torch.zeros(1, 3, 4, 4))
        {'0': 'relu', '4': 'linear'}
    """
    found = dict[str, str]()
    order = list[str]()
    follow_layers(
        module,
        batch,
        see=lambda layer, name, before, after: found.setdefault(layer, name),
        see_output=lambda layer, output: order.append(layer),
    )
    return {layer: found.get(layer, "linear") for layer in dict.fromkeys(order)}
