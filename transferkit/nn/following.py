"""What follows each layer of a network: outputs of layers followed through the operators of one forward pass.

Operators, not modules, are watched, so `F.relu` in a `forward` counts as `nn.ReLU` does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from transferkit.nn.nonlinearity import Nonlinearity, assumed, grid, is_affine, name_of
from transferkit.nn.stages import evaluating

__all__ = [
    "Follower",
    "LAYERS",
    "TRANSPOSED",
    "as_at_start",
    "call",
    "find_nonlinearities",
    "follow_layers",
    "list_layers",
]

See = Callable[[str, Nonlinearity, torch.Tensor, torch.Tensor], object]
"""(path of the layer, nonlinearity, its input, its output)."""

SeeOutput = Callable[[str, Any], object]
"""(path of the layer, its output)."""

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

LAYERS = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)

NAMES = {
    "_prelu_kernel": "prelu",
    "hardsigmoid": "sigmoid",
    "log_sigmoid_forward": "logsigmoid",
}
"""Name of torch's operator, without a final underscore -> nonlinearity, where they differ and its values do not tell
(`name_of`)."""

OF_SINGLE_VALUES = frozenset({"_prelu_kernel", "hardswish", "log_sigmoid_forward", "where", "masked_fill", "rsub"})
"""Functions of single values that torch does not tag as pointwise."""

OF_SEVERAL_VALUES = {"_softmax": "softmax", "_log_softmax": "softmax", "glu": "glu"}
"""Operator -> nonlinearity that mixes values or draws them, so that its gain is not known."""

NORMALISES = frozenset(
    {
        "native_batch_norm",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "_batch_norm_with_update",
        "_batch_norm_no_update",
        "cudnn_batch_norm",
        "native_group_norm",
        "native_layer_norm",
        "_fused_rms_norm",
    }
)

PASSES = NORMALISES | frozenset(
    {
        "cat",
        "squeeze",
        "unsqueeze",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "unbind",
        "expand",
        "constant_pad_nd",
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

COMBINES = frozenset({"add", "sub", "rsub", "mul", "div"})
"""Operators that join a layer's output, not yet through a nonlinearity, with another tensor: residual sums, gates,
learnt scales. All layers that enter are followed further."""


@dataclass(frozen=True)
class _Trace:
    """How a tensor follows from the output of a layer.

    Args:
        outputs: (Q, ...) its values where the layer's output, or its normalised form, runs through `grid()`.
        name: Of the nonlinearity on the way; None where there was none.
        start: What entered that nonlinearity.
        chain: Which nonlinearity of the pass it is.
    """

    outputs: torch.Tensor
    name: str | None = None
    start: torch.Tensor | None = None
    chain: int = 0


_Origin = tuple[str, int]
"""(layer, part): slices and means of one output are parts of their own, not the same values again."""


class Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the outputs of layers through the operators of one forward pass."""

    def __init__(self, see: See) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._see = see
        self._traces: dict[int, dict[_Origin, _Trace]] = {}
        self._chains: dict[str, int] = {}
        self._kept: list[torch.Tensor] = []  # an id is free again once its tensor is gone
        self._count = itertools.count(1)

    def follow(self, tensor: Any, layer: str) -> None:
        if isinstance(tensor, torch.Tensor):
            self._keep(tensor, {(layer, 0): _Trace(grid())})

    def _keep(self, tensor: torch.Tensor, traces: dict[_Origin, _Trace]) -> None:
        if traces:
            self._traces[id(tensor)] = traces
            self._kept.append(tensor)
        else:
            self._traces.pop(id(tensor), None)

    def _of(self, tensor: Any) -> dict[_Origin, _Trace]:
        return self._traces.get(id(tensor), {}) if isinstance(tensor, torch.Tensor) else {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # torch.cat takes a list of tensors.
        operands = [two for one in args for two in (one if isinstance(one, (list, tuple)) else (one,))]
        traced = [one for one in operands if self._of(one)]
        if not traced:
            return function(*args, **kwargs)
        name = function.overloadpacket.__name__
        if name.startswith("rrelu_with_noise"):
            function, name, args, kwargs = _average_rrelu(args)
        # An operator in place overwrites what it reads.
        before = [one.clone() if one is args[0] and name.endswith("_") else one for one in args]
        result = function(*args, **kwargs)
        name = name.removesuffix("_")
        first = result[0] if isinstance(result, tuple) else result
        if name in PASSES:
            self._pass_on(name, traced, result if isinstance(result, list) else [first])
        elif torch.Tag.pointwise in function.tags or name in OF_SINGLE_VALUES:
            self._apply(function, name, args, kwargs, before, first)
        elif name in OF_SEVERAL_VALUES:
            for (layer, _), trace in self._of(traced[0]).items():
                if trace.name is None:
                    self._report(layer, next(self._count), OF_SEVERAL_VALUES[name], None, traced[0], first)
        return result

    def _pass_on(self, name: str, traced: Sequence[torch.Tensor], results: Sequence[torch.Tensor]) -> None:
        for result in results:
            found = dict[_Origin, _Trace]()
            for operand in traced:
                moved = name not in NORMALISES and result.numel() == operand.numel()
                for (layer, part), trace in self._of(operand).items():
                    if moved:
                        found[layer, part] = trace
                    elif trace.name is None:
                        found[layer, next(self._count)] = _Trace(grid()) if name in NORMALISES else trace
            self._keep(result, found)

    def _apply(
        self,
        function: Any,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        before: Sequence[Any],
        result: torch.Tensor,
    ) -> None:
        """The traces of a function of single values: composed where all operands are known, else ended or passed."""
        origins = dict.fromkeys(origin for one in args for origin in self._of(one))
        found = dict[_Origin, _Trace]()
        for origin in origins:
            own = [(one, old) for one, old in zip(args, before, strict=True) if origin in self._of(one)]
            traces = [self._of(one)[origin] for one, _ in own]
            values = [self._value(one, origin, name) for one in args]
            if any(one is None for one in values):
                if name in COMBINES and all(trace.name is None for trace in traces):
                    found[origin] = _Trace(grid())  # whatever its scale was, the other's counts as well
                continue
            outputs = _evaluate(function, [one[0] for one in values if one is not None], kwargs)
            trace = self._compose(name, outputs, traces, [old for _, old in own])
            found[origin] = trace
            if trace.name is not None and trace.start is not None:
                self._report(origin[0], trace.chain, trace.name, outputs, trace.start, result)
        self._keep(result, found)

    def _value(self, operand: Any, origin: _Origin, name: str) -> tuple[Any] | None:
        """An operand as a function of the layer's output on the grid; None where it depends on something else."""
        if not isinstance(operand, torch.Tensor):
            return (operand,)
        traces = self._of(operand)
        if origin in traces:
            return (traces[origin].outputs.clone(),)
        if name == "_prelu_kernel":
            return (operand.detach().double().cpu().flatten(),)
        if not traces and _is_constant(operand):
            value = operand.detach().flatten()[0].cpu()
            return (value.double() if value.is_floating_point() else value,)
        return None

    def _compose(
        self, name: str, outputs: torch.Tensor, traces: Sequence[_Trace], operands: Sequence[torch.Tensor]
    ) -> _Trace:
        named = [trace for trace in traces if trace.name is not None]
        plain = [one for one, trace in zip(operands, traces, strict=True) if trace.name is None]
        if not named and is_affine(outputs):
            return _Trace(outputs)
        label = NAMES.get(name, name)
        if named and name in COMBINES:
            inner = (named[0].name or "").removeprefix("scaled_")
            label = f"gated_{inner}" if plain else f"scaled_{inner}"
        chain = min((trace.chain for trace in named), default=0) or next(self._count)
        return _Trace(outputs, name_of(outputs, label), plain[0] if plain else named[0].start, chain)

    def _report(
        self,
        layer: str,
        chain: int,
        name: str,
        outputs: torch.Tensor | None,
        before: torch.Tensor,
        after: torch.Tensor,
    ) -> None:
        """Tell of a layer's first nonlinearity, again whenever more of its operators are known."""
        if self._chains.setdefault(layer, chain) == chain:
            self._see(layer, Nonlinearity(name=name, outputs=outputs), before, after)


def _average_rrelu(args: Sequence[Any]) -> tuple[Any, str, Sequence[Any], Mapping[str, Any]]:
    """RReLU as it is in evaluation, without random slopes: leaky, with the average of their range."""
    lower, upper = (float(one) for one in (*args[2:4], 1 / 8, 1 / 3)[:2])
    return torch.ops.aten.leaky_relu.default, "leaky_relu", (args[0], (lower + upper) / 2), {}


def _is_constant(operand: torch.Tensor) -> bool:
    if operand.numel() <= 1 or isinstance(operand, nn.Parameter):
        return operand.numel() == 1  # many learnt scales start equal and do not stay so
    return bool((operand == operand.flatten()[0]).all())


def _evaluate(function: Any, values: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """The function on the grid; where channels have their own, they are a second axis."""
    widths = [one.shape[1] for one in values if isinstance(one, torch.Tensor) and one.dim() == 2]
    if function.overloadpacket.__name__ == "_prelu_kernel":
        widths.append(values[1].numel())
    if width := max(widths, default=0):
        values = [
            one[:, None].expand(-1, width).contiguous()
            if isinstance(one, torch.Tensor) and one.shape == grid().shape
            else one
            for one in values
        ]
    result = function(*values, **kwargs)
    return result[0] if isinstance(result, tuple) else result


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
    is_norm = isinstance(one, nn.modules.batchnorm._NormBase) and one.num_batches_tracked is not None
    return bool(is_norm and one.num_batches_tracked == 0)


def follow_layers(module: nn.Module, batch: Any, *, see: See, see_output: SeeOutput) -> None:
    """One forward pass in evaluation mode, without gradients, in which the outputs of layers are followed.

    Args:
        module: Any network; it is as it was afterwards.
        batch: Its input, or a tuple of its inputs.
        see: Called for the first nonlinearity that reads a layer's output, directly or through `PASSES`; again, with
            the whole of it, for each further operator of one that is put together from several.
        see_output: Called for each call of a layer.
    """
    follower = Follower(see)

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


def find_nonlinearities(module: nn.Module, batch: Any) -> dict[str, Nonlinearity]:
    """The nonlinearity that follows each linear or convolutional layer, modules and functions alike.

    Args:
        module: Any network; it is run once in evaluation mode, without gradients, and is as it was afterwards.
        batch: Its input, or a tuple of its inputs.

    Returns:
        Dotted path of each layer that ran, in order of its first call -> the nonlinearity, "linear" where none follows
        before the next layer. Normalisation, pooling and dropout are looked through; so are residual sums and gates,
        of which every layer that enters is followed.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> {layer: found.name for layer, found in find_nonlinearities(net, torch.zeros(1, 3, 4, 4)).items()}
        {'0': 'relu', '4': 'linear'}
    """
    found = dict[str, Nonlinearity]()
    order = list[str]()
    follow_layers(
        module,
        batch,
        see=lambda layer, nonlinearity, before, after: found.update({layer: nonlinearity}),
        see_output=lambda layer, output: order.append(layer),
    )
    return {layer: found.get(layer, assumed("linear")) for layer in dict.fromkeys(order)}
