"""Depthwise convolutions with large kernels, of whose weights the gradient is computed as a convolution itself.

That gradient sums, for each offset in the kernel, the products of a channel's inputs and its output's gradients. It is
the output of another depthwise convolution, with the pictures of every image as channels of their own and the gradients
as kernels, summed over the images; for that oneDNN has fast code. For the gradient of a kernel larger than 3 x 3 it has
none: this takes between a seventh and four fifths of its time with AVX-512, as long or less with AVX2 (maps of 3 x 3 to
112 x 112, kernels of 5 x 5 and 7 x 7, 16 to 256 images; by hand). scripts/bench_training_step.py has whole steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

from transferkit.nn.overriding import is_traced, is_transformed

__all__ = ["convolve"]

FAST_SIDE = 3
"""Side of the kernels for which oneDNN's gradient is fast."""

FAST_ON = ("AVX512", "AVX2")
"""Vector instructions, as torch names them, with which this was measured to be faster, or as fast."""

AT_ONCE = 600_000
"""Values of the input that are convolved at once: more would not stay in the cache, and take twice the time."""

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
    with_own = _is_large(conv) and images.requires_grad | _learns(conv) and _is_faster(images)
    if not with_own:
        return _forward(conv, images)
    with _OwnGradient():
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
    return max(conv.kernel_size) > FAST_SIDE and tuple(conv.dilation) == (1, 1)


def _is_faster(images: torch.Tensor) -> bool:
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


class _OwnGradient(TorchFunctionMode):
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
        images, weight, bias, stride, padding, dilation, groups = arguments
        if groups != len(weight) or _both(dilation) != [1, 1]:
            return function(*arguments, **options)
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
            for_images = conv2d_input(  # type: ignore[no-untyped-call]
                images.shape, weight, gradient, stride, padding, 1, len(weight)
            )
        if wants_weight:
            for_weight = _gradient_of_weight(gradient, images, weight, stride, padding)
        return for_images, for_weight, gradient.sum((0, 2, 3)) if wants_bias else None, None, None


def _gradient_of_weight(
    gradient: torch.Tensor, images: torch.Tensor, weight: torch.Tensor, stride: Sizes, padding: Sizes
) -> torch.Tensor:
    """The sum over parts of the images that stay in the cache."""
    if gradient.shape[2:] == (1, 1):  # as kernels of one value these would take up to 60 times oneDNN's time
        return _gradient_of_points(gradient, images, weight, padding)
    size = max(1, AT_ONCE * len(images) // max(images.numel(), 1))
    found = torch.zeros_like(weight)
    for of_outputs, of_images in zip(torch.split(gradient, size), torch.split(images, size), strict=True):
        if len(of_images):
            found += _gradient_of_part(of_outputs, of_images, weight, stride, padding)
    return found


def _gradient_of_points(
    gradient: torch.Tensor, images: torch.Tensor, weight: torch.Tensor, padding: Sizes
) -> torch.Tensor:
    """Where the output is one value, the kernel saw one window of each image."""
    high, wide = weight.shape[2:]
    seen = nn.functional.pad(images, (padding[1], padding[1], padding[0], padding[0]))[:, :, :high, :wide]
    return (seen * gradient).sum(dim=0).reshape(weight.shape)


def _gradient_of_part(
    gradient: torch.Tensor, images: torch.Tensor, weight: torch.Tensor, stride: Sizes, padding: Sizes
) -> torch.Tensor:
    """The images' channels are convolved with the gradients, which are as far apart as the kernel's steps."""
    count, channels, *sides = images.shape
    # (1, N C, H, W), laid out with the channels last.
    pictures = images.permute(2, 3, 0, 1).reshape(1, *sides, count * channels).permute(0, 3, 1, 2)
    kernels = gradient.reshape(count * channels, 1, *gradient.shape[2:])
    found = torch.conv2d(pictures, kernels, None, 1, padding, stride, count * channels)
    high, wide = weight.shape[2:]  # positions behind these were reached by no step
    by_image = found[:, :, :high, :wide].permute(0, 2, 3, 1).reshape(high * wide, count, channels)
    return by_image.sum(dim=1).t().reshape(weight.shape)
