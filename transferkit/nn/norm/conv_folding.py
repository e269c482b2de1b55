"""Batch normalisation with fixed statistics, computed by the convolution before it, in training as well.

While its statistics are fixed, normalisation is an affine map per channel, and so a part of the convolution: with
s = weight / sqrt(variance + eps), norm(conv(x, W, b)) = conv(x, W * s, (b - mean) * s + bias). The product is made in
each pass, so autograd yields the gradients of all four parameters, and the unnormalised output is neither computed nor
kept for the backward pass. Modules, parameters and their names stay as they are; two methods are replaced meanwhile.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from transferkit.nn.depthwise import convolve
from transferkit.nn.norm.batch import FrozenBatchNorm
from transferkit.nn.norm.source import EPS, FOLLOWERS, followers_of, is_batch_norm
from transferkit.nn.overriding import Override, is_rewritten, is_traced
from transferkit.nn.stages import evaluating, reads_inputs

__all__ = ["find_foldable", "fold_convolutions", "foldable_in_pass", "folded_parameters"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""Tolerated difference between both ways to compute a layer in the check; absolute in units of its largest value."""

Pairs = Sequence[tuple[str, str]]
"""Paths of convolutions and of the normalisations of their outputs."""


def folded_parameters(conv: nn.Module, norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the convolution that equals another one and the normalisation of its output together.

    Args:
        conv: A convolution.
        norm: Batch normalisation with running statistics, which are used whatever its mode.

    Returns:
        Both are differentiable with respect to all parameters. Computed in float32 or wider, and returned with the
        dtype of the convolution.

    Example:
        >>> conv, norm = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0)
        >>> _ = norm.running_var.fill_(4)
        >>> torch.equal(folded_parameters(conv, norm)[0], conv.weight / 2)
        True
    """
    weight, bias = conv._parameters["weight"], conv._parameters["bias"]
    layer: Any = norm  # not by `read_source`, whose checks would take as long as the product
    assert weight is not None
    dtype = torch.promote_types(weight.dtype, torch.float32)
    scale = (layer.running_var.to(dtype) + float(getattr(layer, "eps", EPS))).rsqrt()
    if layer.weight is not None:
        scale = scale * layer.weight
    mean = layer.running_mean.to(dtype)
    offset = -mean if bias is None else bias - mean
    shift = offset * scale if layer.bias is None else torch.addcmul(layer.bias.to(dtype), offset, scale)
    folded = weight * scale.view(-1, *(1,) * (weight.ndim - 1))
    return folded.to(weight.dtype), shift.to(weight.dtype)


@contextmanager
def _with_parameters(conv: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> Iterator[None]:
    """Other tensors in the place of a convolution's parameters, whatever its forward does with them."""
    own = dict(conv._parameters)
    held: dict[str, Any] = conv._parameters
    held.update(weight=weight, bias=bias)
    try:
        yield
    finally:
        conv._parameters.update(own)


class _FoldedPair:
    """The replaced methods of a convolution and of the normalisation of its output.

    Args:
        conv, norm: The modules.
        harmless: Functions that may be hooks of the normalisation: they do not read what it is given.
    """

    def __init__(self, conv: nn.Module, norm: nn.Module, harmless: Collection[Callable[..., Any]] = ()) -> None:
        self.conv, self.norm, self.harmless = conv, norm, tuple(harmless)
        self.normalised: torch.Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "normalised": None}

    def run_conv(self, images: torch.Tensor) -> torch.Tensor:
        """The convolution's output, normalised already where that is possible and pays."""
        self.normalised = None
        if not self._is_folded(images):
            return convolve(self.conv, images)
        with _with_parameters(self.conv, *folded_parameters(self.conv, self.norm)):
            self.normalised = convolve(self.conv, images)
        return self.normalised

    def run_norm(self, values: torch.Tensor) -> torch.Tensor:
        """The normalisation's output; of values that are normalised already only dropout and activation are left."""
        normalised, self.normalised = self.normalised, None
        return run_followers(self.norm, values) if values is normalised else _forward(self.norm, values)

    def _is_folded(self, images: torch.Tensor) -> bool:
        """Whether the statistics are fixed, nobody reads what lies between both, and there is something to gain."""
        return (
            uses_running_statistics(self.norm)
            and self._are_plain()
            and _pays(self.conv, images)
            and not is_traced()
            and not self._is_read()
        )

    def _are_plain(self) -> bool:
        """Whether none of the tensors is sharded, of which a part may be elsewhere."""
        tensors = (*self.conv._parameters.values(), *self.norm._parameters.values())
        return all(tensor is None or type(tensor) in (torch.Tensor, nn.Parameter) for tensor in tensors)

    def _is_read(self) -> bool:
        conv, norm = self.conv, self.norm
        return bool(
            conv._forward_hooks
            or conv._backward_hooks
            or norm._backward_hooks
            or conv._backward_pre_hooks
            or norm._backward_pre_hooks
            or any(hook not in self.harmless for hook in norm._forward_pre_hooks.values())
            or any(reads_inputs(hook) for hook in norm._forward_hooks.values())
        )


def uses_running_statistics(norm: nn.Module) -> bool:
    """Whether a layer's next call normalises by its running statistics."""
    if any(getattr(norm, name, None) is None for name in ("running_mean", "running_var")):
        return False
    is_frozen_kind = not isinstance(norm, _BatchNorm) and "Frozen" in type(norm).__name__
    return not norm.training or is_frozen_kind or isinstance(norm, FrozenBatchNorm)


def run_followers(norm: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Dropout and activation that follow a normalisation in the same module, as in timm's."""
    for follower in followers_of(norm):
        values = follower(values)
    return values


def _pays(conv: nn.Module, images: torch.Tensor) -> bool:
    """Whether the convolution has at least as many outputs as weights, since both are passed over alike."""
    weight = conv._parameters["weight"]
    assert isinstance(weight, torch.Tensor)
    if images.ndim != weight.ndim:
        return False
    positions = images.numel() // max(images.shape[1], 1) / math.prod(conv.stride)  # type: ignore[arg-type]
    return positions * len(weight) >= weight.numel()


def _forward(module: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """A module's output by its class, without hooks."""
    output: torch.Tensor = type(module).forward(module, values)
    return output


def find_foldable(network: nn.Module, run: Callable[[torch.Tensor], Mapping[str, torch.Tensor]], *, size: int) -> Pairs:
    """The convolutions of a network into which the normalisation of their outputs can be folded.

    Each of the two runs once in a pass, one after the other; the convolution's output reaches nothing else, and both
    ways to compute the pair agree. Tested on two random images in evaluation mode.

    Args:
        network: (N, 3, size, size) float -> anything.
        run: Runs it, and returns all that counts by name: its output, and what is read inside.
        size: Side of the images, in pixels.

    Returns:
        Paths of convolution and normalisation, in the order in which they run.

    Example:
        >>> toy = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
        >>> find_foldable(toy, lambda images: {"": toy(images)}, size=8)
        [('0', '1')]
    """
    device = next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
    like = next((parameter for parameter in network.parameters()), torch.empty(0))
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device, like.dtype)
    return foldable_in_pass(network, lambda: run(images))


def foldable_in_pass(network: nn.Module, run: Callable[[], Mapping[str, torch.Tensor]]) -> Pairs:
    """As `find_foldable`, for the images that `run` takes itself: at their size, and on the network's device."""
    device = next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
    with evaluating(network), torch.no_grad(), torch.autocast(device.type, enabled=False):
        pairs = _observe(network, run)
        if not pairs:
            return pairs
        expected = run()
        right = _try_without(network, pairs, run, expected)
        if right is None:  # which of them are read elsewhere?
            alone = [_try_without(network, [pair], run, expected) for pair in pairs]
            right = [pair for found in alone if found for pair in found]
        return right


def _observe(network: nn.Module, run: Callable[[], object]) -> list[tuple[str, str]]:
    """Pairs of which the normalisation is called next after the convolution, with the very tensor it returned."""
    found: list[tuple[str, str]] = []
    last: list[tuple[str, object]] = []
    called: list[str] = []

    def leave(path: str, output: object) -> None:
        called.append(path)
        last[:] = [(path, output)]

    def enter(path: str, inputs: tuple[object, ...]) -> None:
        called.append(path)
        if last and len(inputs) == 1 and inputs[0] is last[0][1]:
            found.append((last[0][0], path))

    with ExitStack() as handles:
        for path, module in network.named_modules():
            if _is_plain_convolution(module):
                hook = module.register_forward_hook(lambda _m, _i, output, path=path: leave(path, output))
            elif _is_plain_norm(module):
                hook = module.register_forward_pre_hook(lambda _m, inputs, path=path: enter(path, inputs))
            else:
                continue
            handles.callback(hook.remove)
        run()
    takers = Counter(conv for conv, _ in found)
    return [pair for pair in found if takers[pair[0]] == 1 and all(called.count(path) == 1 for path in pair)]


def _is_plain_convolution(module: nn.Module) -> bool:
    plain = isinstance(module, CONVOLUTIONS) and not module._modules and not is_rewritten(module)
    weight = module._parameters.get("weight")
    return plain and "bias" in module._parameters and weight is not None and not nn.parameter.is_lazy(weight)


def _is_plain_norm(module: nn.Module) -> bool:
    if not is_batch_norm(module) or is_rewritten(module) or not set(module._modules) <= set(FOLLOWERS):
        return False
    return module.running_mean is not None and module.running_var is not None


def _try_without(
    network: nn.Module, pairs: Pairs, run: Callable[[], Mapping[str, torch.Tensor]], expected: Mapping[str, object]
) -> list[tuple[str, str]] | None:
    """The pairs for which folding computes the same; None if anything else needs the output of a convolution."""
    trials = [_BothWays(network.get_submodule(conv), network.get_submodule(norm)) for conv, norm in pairs]
    with ExitStack() as stack:
        for trial in trials:
            stack.callback(Override(trial.conv, trial.run_conv).remove)
            stack.callback(Override(trial.norm, trial.run_norm).remove)
        found = run()
    same = found.keys() == expected.keys() and all(_agree(found[name], expected[name]) for name in expected)
    return [pair for pair, trial in zip(pairs, trials, strict=True) if trial.agrees] if same else None


class _BothWays:
    """Computes a pair in both ways; everybody but the normalisation gets NaN from the convolution."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        self.conv, self.norm, self.agrees = conv, norm, False

    def run_conv(self, images: torch.Tensor) -> torch.Tensor:
        self.plain = _forward(self.conv, images)
        self.blank = torch.full_like(self.plain, torch.nan)
        self.folded: torch.Tensor | None = None
        if self.plain.ndim > 1 and self.plain.shape[1] == len(self.norm.running_mean):  # type: ignore[arg-type]
            with _with_parameters(self.conv, *folded_parameters(self.conv, self.norm)):
                self.folded = _forward(self.conv, images)
        return self.blank

    def run_norm(self, _blank: torch.Tensor) -> torch.Tensor:
        output = _forward(self.norm, self.plain)
        self.agrees = self.folded is not None and _agree(run_followers(self.norm, self.folded), output)
        del self.plain, self.blank, self.folded
        return output


def _agree(found: object, expected: object) -> bool:
    if not isinstance(found, torch.Tensor) or not isinstance(expected, torch.Tensor) or found.shape != expected.shape:
        return False
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return math.isfinite(largest) and torch.allclose(found, expected, rtol=RELATIVE, atol=ABSOLUTE * largest)


def fold_convolutions(
    network: nn.Module, pairs: Pairs, *, harmless: Collection[Callable[..., Any]] = ()
) -> list[Override]:
    """Let convolutions compute the normalisation of their outputs too, in each pass in which its statistics are fixed:
    in evaluation mode, or of a frozen kind.

    A pair runs as it is where that is cheaper (more weights than outputs), where a hook reads what lies between both,
    and under compilation.

    Args:
        network: Nothing in it but the `forward` of these modules changes.
        pairs: See `find_foldable`; those whose modules are something else by now are left alone.
        harmless: Functions that may be hooks of a normalisation, since they do not read what it is given.

    Returns:
        Handles to undo it.

    References:
        You et al., "Efficient ConvBN Blocks for Transfer Learning and Beyond", ICLR 2024 (arXiv 2305.11624), "tune
        mode". Deviation: decided anew in each call.

    Example:
        >>> toy = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        >>> images = torch.randn(2, 3, 32, 32)
        >>> expected = toy(images)
        >>> handles = fold_convolutions(toy, [("0", "1")])
        >>> torch.allclose(toy(images), expected, atol=1e-5)
        True
    """
    folded = [_FoldedPair(conv, norm, harmless) for conv, norm in _present(network, pairs)]
    return [
        override
        for pair in folded
        for override in (Override(pair.conv, pair.run_conv), Override(pair.norm, pair.run_norm))
    ]


def _present(network: nn.Module, pairs: Pairs) -> Iterator[tuple[nn.Module, nn.Module]]:
    modules = dict(network.named_modules())
    for paths in pairs:
        conv, norm = (modules.get(path) for path in paths)
        if conv is not None and norm is not None and _is_plain_convolution(conv) and _is_plain_norm(norm):
            yield conv, norm
