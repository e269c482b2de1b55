"""Low-rank adapters (LoRA): added to a network for training, merged into its weights afterwards.

The plain network is saved. A separately saved adapter would lack the new head and the updated running statistics of
batch normalisation. The freeze plan decides which parameters are trained.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import nn

from transferkit.core.errors import MissingDependencyError, OptionError, list_problems, unknown_name
from transferkit.nn.anatomy import calls_in_order
from transferkit.strategies import Adapters

__all__ = ["add_adapters", "find_targets", "is_adapter", "merge_adapters"]

MARK = "lora_"
"""Prefix of peft's parameter names."""

Layer: TypeAlias = nn.Linear | nn.Conv2d

HINT = "Low-rank adapters need peft: pip install 'transferkit[lora]'."


def is_adapter(name: str) -> bool:
    """Whether a parameter or module of this dotted name belongs to an adapter.

    Example:
        >>> is_adapter("blocks.3.0.conv.lora_A.default.weight"), is_adapter("blocks.3.0.conv.base_layer.weight")
        (True, False)
    """
    return any(part.startswith(MARK) for part in name.split("."))


def find_targets(trunk: nn.Module, *, rank: int, size: int) -> tuple[str, ...]:
    """The layers for which a low-rank update works and is smaller than the weight.

    These are linear layers and dense 1x1 convolutions, in network order.

    Args:
        trunk: A network without its classifier.
        rank: Of the updates, >= 1.
        size: Side of the input, in pixels.

    Returns:
        Module paths.
    """
    return tuple(path for path, layer in _adaptable(trunk, size=size) if _is_worthwhile(layer, rank))


def add_adapters(
    trunk: nn.Module, adapters: Adapters, *, size: int, targets: Sequence[str] | None = None, seed: int = 0
) -> tuple[str, ...]:
    """Add low-rank updates to layers of a network, in place; they start at zero, so outputs are unchanged.

    A layer at "x" becomes "x.base_layer", and its update "x.lora_A.default" and "x.lora_B.default". Existing
    parameters keep requires_grad and modules their modes; added ones require gradients and have the layer's mode.

    Args:
        trunk: A network without its classifier.
        adapters: Rank and scale.
        size: Side of the input, in pixels.
        targets: Module paths; None for those of `find_targets`.
        seed: Of the random half of each update; the other half starts at 0. The global generator is not affected.

    Returns:
        Paths of the adapted layers.

    Raises:
        MissingDependencyError: If peft is not installed.
        OptionError: If there is nothing to adapt, a target is unsuitable, or there are adapters already.

    References:
        Hu et al., LoRA: Low-rank adaptation of large language models, ICLR 2022.

    Example:
        >>> trunk = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> add_adapters(trunk, Adapters(rank=8, alpha=16), size=32)
        ('1',)
        >>> [name for name, _ in trunk.named_parameters() if is_adapter(name)]
        ['1.lora_A.default.weight', '1.lora_B.default.weight']
        >>> merge_adapters(trunk)
        ('1',)
        >>> list(trunk.state_dict())
        ['0.weight', '0.bias', '1.weight', '1.bias']
    """
    if any(is_adapter(path) for path, _ in trunk.named_modules()):
        raise OptionError("This network has adapters already. Merge them with merge_adapters first.")
    chosen = find_targets(trunk, rank=adapters.rank, size=size) if targets is None else tuple(targets)
    if targets is not None:
        _check_targets(trunk, chosen, size=size)
    if not chosen:
        raise OptionError(
            "This network has no linear layer or 1x1 convolution larger than a low-rank update of rank "
            f"{adapters.rank}. Choose a lower rank, or another strategy, such as few_layers."
        )
    asked = {parameter: parameter.requires_grad for parameter in trunk.parameters()}
    _inject(trunk, adapters, chosen, seed=seed)
    for parameter, wanted in asked.items():  # peft freezes all other parameters
        parameter.requires_grad_(wanted)
    for path in chosen:
        layer: Any = trunk.get_submodule(path)
        layer.train(layer.get_base_layer().training)
    return chosen


def merge_adapters(trunk: nn.Module) -> tuple[str, ...]:
    """Merge every update into its layer's weight, in place, restoring the plain architecture.

    Args:
        trunk: The network passed to `add_adapters`, or a copy of it.

    Returns:
        Paths of the merged layers; empty if there were no adapters.
    """
    wrapped: list[tuple[str, Any]] = [
        (path, module) for path, module in trunk.named_modules() if hasattr(module, f"{MARK}A")
    ]
    for path, layer in wrapped:
        layer.merge()
        trunk.set_submodule(path, layer.get_base_layer())
    return tuple(path for path, _ in wrapped)


def _inject(trunk: nn.Module, adapters: Adapters, paths: Sequence[str], *, seed: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingDependencyError(HINT) from error
    # In a list, every path would match as a suffix: "fc" would match "blocks.0.fc" too.
    pattern = "|".join(re.escape(path) for path in paths)
    config = LoraConfig(r=adapters.rank, lora_alpha=adapters.alpha, target_modules=pattern)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, trunk)
    # Left on the network, it would be copied along and be mistaken for a second adapter.
    del trunk.peft_config


def _adaptable(trunk: nn.Module, *, size: int) -> Iterator[tuple[str, Layer]]:
    """Yield the layers for which an update works and can be merged exactly."""
    occurrences = Counter(module for _, module in trunk.named_modules(remove_duplicate=False))
    owners = Counter(id(parameter) for _, parameter in trunk.named_parameters(remove_duplicate=False))
    fit = {
        path: module
        for path, module in trunk.named_modules()
        if path
        and _is_dense(module)
        and occurrences[module] == 1
        and owners[id(module.weight)] == 1
        and not _is_watched(module)
    }
    # Attention often uses a layer's weight without calling the layer (timm's BEiT, torchvision's Swin): an update there
    # would be ignored, and a distributed wrapper would miss its gradients.
    called = set(calls_in_order(trunk, list(fit), size=size))
    return ((path, module) for path, module in fit.items() if path in called)


def _is_dense(module: nn.Module) -> TypeGuard[Layer]:
    """Whether it is a linear layer or a dense 1x1 convolution. Subclasses do not count: they may transform their weight
    (weight standardisation, quantisation), and an update would be added after that, but merged before it."""
    if type(module) is nn.Conv2d:
        return module.kernel_size == (1, 1) and module.groups == 1
    return type(module) is nn.Linear


def _is_watched(module: nn.Module) -> bool:
    """Whether it has hooks: they would see the layer without its update, and weight norms undo a merge."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _is_worthwhile(layer: Layer, rank: int) -> bool:
    outputs, inputs = layer.weight.shape[:2]
    return rank * (inputs + outputs) < inputs * outputs


def _check_targets(trunk: nn.Module, targets: Sequence[str], *, size: int) -> None:
    known = [path for path, _ in trunk.named_modules() if path]
    fit = {path for path, _ in _adaptable(trunk, size=size)}
    problems = [
        f"{path!r} is not a linear layer or dense 1x1 convolution that is called, occurs once and has no hooks"
        if path in known
        else unknown_name("module", path, known)
        for path in targets
        if path not in fit
    ]
    if problems:
        raise OptionError(list_problems("Adapters cannot be added to these layers:", problems))
