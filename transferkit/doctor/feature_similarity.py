"""How far a network's features have moved from those at the start of training: linear CKA on a few fixed images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from transferkit.doctor.plain_content import from_plain, to_plain
from transferkit.nn.stages import evaluating, tensor_of

__all__ = ["FeatureComparison", "linear_cka"]

FEWEST_IMAGES = 4
"""Below, the debiased estimate does not exist."""


def linear_cka(one: torch.Tensor, other: torch.Tensor) -> float:
    """Linear centred kernel alignment of two representations of the same images, debiased; higher is more alike.

    Args:
        one, other: (N, N) products of all pairs of images' features, N >= 4.

    Returns:
        At most 1: equal up to rotation and scale; about 0: unrelated. NaN where the features do not differ between
        images.

    References:
        Kornblith et al., ICML 2019. Deviation: the unbiased estimate of HSIC (Song et al., JMLR 2012), as the biased
        one is near 1 for any two representations with more features than images.

    Example:
        >>> features = torch.randn(16, 400, generator=torch.Generator().manual_seed(0))
        >>> other = torch.randn(16, 400, generator=torch.Generator().manual_seed(1))
        >>> round(linear_cka(features @ features.T, 4 * features @ features.T), 6)
        1.0
        >>> abs(linear_cka(features @ features.T, other @ other.T)) < 0.2
        True
    """
    first, second = one.double(), other.double()
    scale = math.sqrt(max(0.0, _hsic(first, first) * _hsic(second, second)))
    return min(1.0, _hsic(first, second) / scale) if scale > 0 else math.nan


def _hsic(one: torch.Tensor, other: torch.Tensor) -> float:
    n = len(one)
    left, right = one - one.diag().diag(), other - other.diag().diag()
    across = left.sum() * right.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (left.sum(0) @ right.sum(0))
    return float((left * right).sum() + across) / (n * (n - 3))


class FeatureComparison:
    """Compares the outputs of some modules with those at the start, on the first images of the first batch.

    The images are those that the largest called module with trainable parameters gets: of a LightningModule that calls
    its network, the network's. They are run in evaluation mode, without gradients, in single precision; neither random
    generators nor statistics change.

    Args:
        model: The network in training.
        stages: Name -> path of the module whose output is compared.
        images: Number of images, >= 4.

    Attributes:
        missing: Why nothing is compared; "" otherwise.
        count: Number of images that are compared; 0 before the start.
    """

    def __init__(self, model: nn.Module, stages: Mapping[str, str], *, images: int) -> None:
        self.missing = ""
        self.count = 0
        self._model, self._images = model, images
        self._stages = {name: model.get_submodule(path) for name, path in stages.items()}
        self._root = ""
        self._inputs: tuple[Any, ...] = ()
        self._start = dict[str, torch.Tensor]()
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._largest = 0
        self._offered: tuple[Any, ...] = ()

    @property
    def is_started(self) -> bool:
        """Whether there is something to compare with."""
        return bool(self._start)

    def offer(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Note a call of a module with its positional arguments; that of the largest module counts."""
        if id(module) not in self._paths or not self._model.training or not torch.is_grad_enabled():
            return
        if module is self._model and "forward" in vars(module):
            return  # Lightning's training step on its way through DistributedDataParallel: no call of a network
        size = sum(one.numel() for one in module.parameters() if one.requires_grad)
        if size > self._largest and _count(inputs):
            self._largest, self._root, self._offered = size, self._paths[id(module)], inputs

    def start(self) -> None:
        """Compute the features that later ones are compared with, if a call was noted."""
        if self._start or self.missing or not self._offered:
            return
        count = min(self._images, _count(self._offered))
        self._inputs = _take(self._offered, _count(self._offered), count)
        self._offered = ()
        if count < FEWEST_IMAGES:
            self.missing = f"Features were not compared: batches have {count} of {FEWEST_IMAGES} images needed."
            return
        self._start = self._products()
        self.count = count if self._start else 0

    def compare(self) -> dict[str, float]:
        """Name -> linear CKA with the features at the start; empty if there are none."""
        return (
            {name: linear_cka(self._start[name], now) for name, now in self._products().items()} if self._start else {}
        )

    def _products(self) -> dict[str, torch.Tensor]:
        """Name -> (N, N) products of the images' features."""
        found, names = dict[str, torch.Tensor](), {id(module): name for name, module in self._stages.items()}

        def see(module: nn.Module, inputs: Any, output: Any) -> None:
            features = tensor_of(output)
            if id(module) in names and features is not None and len(features) == count:
                rows = features.detach().flatten(1).float()
                rows = rows - rows.mean(dim=0)
                found.setdefault(names[id(module)], (rows @ rows.T).cpu())

        root = self._model.get_submodule(self._root)
        device = next(root.parameters()).device
        inputs, count = _move(self._inputs, device), _count(self._inputs)
        handle = register_module_forward_hook(see)
        try:
            with evaluating(root), torch.no_grad(), _unseen(device):
                root(*inputs)
        except Exception as error:  # a network that cannot run so few images must be trained all the same
            self.missing = f"Features were not compared: {type(error).__name__}: {str(error).splitlines()[:1]}"
            self._start.clear()
            return {}
        finally:
            handle.remove()
        # In the order of the stages, whatever the order of calls.
        return {name: found[name] for name in self._stages if name in found}

    def state_dict(self) -> dict[str, Any]:
        """Images and features at the start."""
        return {
            "root": self._root,
            "inputs": to_plain(self._inputs)[0],
            "start": dict(self._start),
            "count": self.count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self._root, self._inputs = state["root"], from_plain(state["inputs"])
        self._start, self.count = dict(state["start"]), state["count"]


@contextmanager
def _unseen(device: torch.device) -> Iterator[None]:
    """Inside, torch's generators may be used and are as before afterwards; there is no autocast."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.autocast(device.type, enabled=False):
        yield


def _count(inputs: Any) -> int:
    """Length of the first tensor."""
    if isinstance(inputs, torch.Tensor):
        return len(inputs) if inputs.dim() else 0
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, (tuple, list)) else ()
    return next((count for count in map(_count, parts) if count), 0)


def _take(inputs: Any, whole: int, count: int) -> Any:
    """The first images, copied: a batch may be written over."""
    return _map(inputs, lambda one: one.detach()[:count].clone() if one.dim() and len(one) == whole else one)


def _move(inputs: Any, device: torch.device) -> Any:
    return _map(inputs, lambda one: one.to(device))


def _map(inputs: Any, change: Any) -> Any:
    if isinstance(inputs, torch.Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        return {name: _map(one, change) for name, one in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        changed = [_map(one, change) for one in inputs]
        return type(inputs)(*changed) if hasattr(inputs, "_fields") else type(inputs)(changed)
    return inputs
