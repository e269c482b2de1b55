"""Depthwise convolutions with large kernels, of whose weights the gradient is computed in blocks of 3 x 3.

oneDNN has fast code for that gradient with kernels of 3 x 3 only: for one of 5 x 5 it takes up to forty times as long
as for the output (EfficientNet-Lite0 at 96 px on a CPU), in blocks a third of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from transferkit.nn.overriding import is_traced, is_transformed

__all__ = ["convolve"]

BLOCK = 3
"""Side of the kernels that are fast."""

FAST_ON = ("AVX512",)
"""Vector instructions, as torch names them, for which oneDNN has that code."""

Sizes = Sequence[int]


def convolve(conv: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The output of a convolution's class; gradients are the same but for the order of additions.

    Args:
        conv: Its forward may do what it likes, such as pad the images first.
        images: What it takes.

    Example:
        >>> conv = nn.Conv2d(4, 4, 5, groups=4)
        >>> convolve(conv, torch.randn(2, 4, 9, 9)).shape
        torch.Size([2, 4, 5, 5])
    """
    with_blocks = _is_large(conv) and images.requires_grad | _learns(conv) and _are_blocks_faster(images)
    if not with_blocks:
        return _forward(conv, images)
    with _Blocks():
        return _forward(conv, images)


def _forward(conv: nn.Module, images: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = type(conv).forward(conv, images)
    return output


def _learns(conv: nn.Module) -> bool:
    weight = conv._parameters["weight"]
    return weight is not None and weight.requires_grad


def _is_large(conv: nn.Module) -> bool:
    """Whether it is depthwise, with a kernel that is not fast."""
    if not isinstance(conv, nn.Conv2d) or not conv.groups == conv.in_channels == conv.out_channels > 1:
        return False
    return max(conv.kernel_size) > BLOCK <= min(conv.kernel_size) and tuple(conv.dilation) == (1, 1)


def _are_blocks_faster(images: torch.Tensor) -> bool:
    """Whether oneDNN will compute it, in float32, and nothing else than autograd follows the computation."""
    return (
        images.device.type == "cpu"
        and images.dtype == torch.float32
        and torch.is_grad_enabled()
        and torch._C._has_mkldnn
        and torch.backends.cpu.get_cpu_capability() in FAST_ON
        and not torch.is_autocast_enabled("cpu")
        and not is_traced()
        and not is_transformed()
    )


class _Blocks(TorchFunctionMode):
    """Inside, `conv2d` with explicit padding is computed by `_Depthwise`."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        options = options or {}
        # As torch.nn's and timm's convolutions call it: input, weight, bias, stride, padding, dilation, groups.
        if function is not torch.conv2d or options or len(arguments) != 7 or isinstance(arguments[4], str):
            return function(*arguments, **options)
        images, weight, bias, stride, padding, _, _ = arguments
        return _Depthwise.apply(images, weight, bias, _both(stride), _both(padding))


def _both(size: int | Sizes) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)


class _Depthwise(torch.autograd.Function):
    """conv2d with a group for each channel, without dilation."""

    @staticmethod
    def forward(
        ctx: Any, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: Sizes, padding: Sizes
    ) -> torch.Tensor:
        ctx.save_for_backward(images, weight)
        ctx.steps = stride, padding
        return torch.conv2d(images, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        stride, padding = ctx.steps
        gradient, (wants_images, wants_weight, wants_bias) = gradients[0], ctx.needs_input_grad[:3]
        for_images = for_weight = None
        if wants_images:
            for_images = _backward(gradient, images, weight, stride, padding, mask=(True, False))[0]
        if wants_weight:
            for_weight = _gradient_of_weight(gradient, images, weight, stride, padding)
        return for_images, for_weight, gradient.sum((0, 2, 3)) if wants_bias else None, None, None


def _gradient_of_weight(
    gradient: torch.Tensor, images: torch.Tensor, weight: torch.Tensor, stride: Sizes, padding: Sizes
) -> torch.Tensor:
    """Each block of the kernel is a smaller kernel on a part of the images."""
    padded = nn.functional.pad(images, (padding[1], padding[1], padding[0], padding[0]))
    block = weight.new_zeros(len(weight), 1, BLOCK, BLOCK)  # its values do not matter
    high, wide = ((size - 1) * step + BLOCK for size, step in zip(gradient.shape[2:], stride, strict=True))
    found = torch.empty_like(weight)
    for top in _starts(weight.shape[2]):
        for left in _starts(weight.shape[3]):
            part = padded[:, :, top : top + high, left : left + wide].contiguous(memory_format=torch.channels_last)
            of_block = _backward(gradient, part, block, stride, (0, 0), mask=(False, True))[1]
            found[:, :, top : top + BLOCK, left : left + BLOCK] = of_block
    return found


def _starts(size: int) -> list[int]:
    """Where the blocks that cover the side of a kernel begin; the last one may overlap with the one before.

    Example:
        >>> _starts(5), _starts(7)
        ([0, 2], [0, 3, 4])
    """
    return [*range(0, size - BLOCK, BLOCK), size - BLOCK]


def _backward(
    gradient: torch.Tensor,
    images: torch.Tensor,
    weight: torch.Tensor,
    stride: Sizes,
    padding: Sizes,
    *,
    mask: tuple[bool, bool],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of images and weight; only those in the mask are computed."""
    found = torch.ops.aten.convolution_backward.default(
        gradient, images, weight, None, stride, padding, [1, 1], False, [0, 0], len(weight), [*mask, False]
    )
    return found[0], found[1]
