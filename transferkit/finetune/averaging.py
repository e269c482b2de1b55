"""Weight averaging along a training run (EMA and SWA), and swapping the averages into the model.

The run decides when to update: "ema" after every optimizer step, "swa" at the end of late epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from transferkit.core.errors import CheckpointError, OptionError, list_problems, unknown_name
from transferkit.finetune.sharding import full_tensor, local, placed
from transferkit.options import AVERAGES

__all__ = ["EMA_DECAY", "SWA_SHARE", "WeightAverage", "swa_start"]

EMA_DECAY = 0.999
"""Maximum decay. The decay's warm-up reaches it after 9000 steps: shorter runs average about the last tenth of their
steps, whatever this value."""

SWA_SHARE = 0.25
"""Share of the epochs, at the end, whose weights "swa" averages (Izmailov et al., UAI 2018, start at 75 %)."""


class WeightAverage:
    """The average of some of a model's tensors; the first update copies them.

    torch's `AveragedModel` copies the whole model, including a frozen backbone; this stores only trained tensors, with
    torch's update rules. Include running statistics that are updated in training: floating-point tensors are averaged,
    statistics too, since those of the raw weights do not fit averaged weights, while averaged ones nearly do ("swa"
    needs `recalibrate_statistics` as well). Integers, such as batch counters, are copied.

    Args:
        names: Of parameters and buffers, as in `named_parameters` and `named_buffers`.
        kind: "ema", the exponential moving average, updated after every step, or "swa", the plain average over the
            ends of the last epochs.
        decay: Of "ema", in [0, 1): update t (from 0) keeps min(decay, (1 + t) / (10 + t)) of the old average.

    Attributes:
        count: Updates so far.

    Raises:
        OptionError: If the kind is unknown, the decay out of range, or there is nothing to average.

    References:
        Polyak & Juditsky, 1992, and TensorFlow's ExponentialMovingAverage for the decay's warm-up. Deviation: the
        average starts at the weights after the first step, not before it. Izmailov et al., UAI 2018, for "swa".
        Deviation: the learning rate follows the schedule; where it decays to 0, the ends of epochs differ little.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> average = WeightAverage(["weight"], kind="swa")
        >>> for value in (1.0, 2.0):
        ...     _ = model.weight.data.fill_(value)
        ...     average.update(model)
        >>> with average.swapped(model):
        ...     print(model.weight.item())
        1.5
        >>> model.weight.item()
        2.0
    """

    def __init__(self, names: Iterable[str], *, kind: str = "ema", decay: float = EMA_DECAY) -> None:
        if kind not in AVERAGES:
            raise OptionError(unknown_name("average of weights", kind, AVERAGES))
        if not 0 <= decay < 1:
            raise OptionError(f"The decay of an average must be in [0, 1), got {decay!r}.")
        self.names = tuple(dict.fromkeys(names))
        if not self.names:
            raise OptionError("There is nothing to average: pass the names of the trained tensors.")
        self.kind, self.decay = kind, decay
        self.count = 0
        self._averages: dict[str, Tensor] = {}

    def update(self, model: nn.Module) -> None:
        """Update the average with the model's current weights.

        Raises:
            OptionError: If the model lacks one of the tensors.
        """
        # Lightning validates in inference mode; a tensor created there could not be updated later.
        with torch.inference_mode(False), torch.no_grad():
            current = {name: tensor.detach() for name, tensor in self._find(model).items()}
            self._averages = {name: self._kept(name, tensor) for name, tensor in current.items()}
            floating = [name for name, tensor in current.items() if tensor.is_floating_point()]
            for name in self._averages.keys() - set(floating):
                self._averages[name].copy_(current[name])
            if self.count and floating:
                averages = [local(self._averages[name]) for name in floating]
                weights = [local(current[name]).to(self._averages[name].dtype) for name in floating]
                self._rule()(averages, weights, self.count)
        self.count += 1

    @torch.no_grad()
    def write(self, model: nn.Module) -> None:
        """Write the averages into the model permanently; before the first update this does nothing."""
        for name, tensor in self._find(model).items():
            if name in self._averages:
                tensor.copy_(placed(self._averages[name], tensor))

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """The averages in the model inside the block; its own tensors are restored exactly, also after an exception."""
        own = {name: tensor.detach().clone() for name, tensor in self._find(model).items()}
        try:
            self.write(model)
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self._find(model).items():
                    tensor.copy_(own[name])

    def state_dict(self) -> dict[str, Any]:
        """Copies of the averages, and the number of updates."""
        return {
            "count": self.count,
            "averages": {name: full_tensor(kept).clone() for name, kept in self._averages.items()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state.

        Raises:
            CheckpointError: If the state has other tensors.
        """
        averages = state_dict["averages"]
        if averages and (differ := set(self.names) ^ averages.keys()):
            raise CheckpointError(
                f"The checkpoint's averages are of other tensors; {len(differ)} differ, such as {min(differ)!r}. "
                "Resume with the plan that the run was started with."
            )
        self.count = state_dict["count"]
        self._averages = {name: averages[name].clone() for name in self.names if name in averages}

    def _rule(self) -> Callable[..., None]:
        if self.kind == "swa":
            return get_swa_multi_avg_fn()  # type: ignore[no-untyped-call, no-any-return, unused-ignore]
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        return get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call, no-any-return, unused-ignore]

    def _kept(self, name: str, tensor: Tensor) -> Tensor:
        """The average so far, on the tensor's device, in float32 or wider, as half precision loses small updates."""
        if name in self._averages:
            return placed(self._averages[name], tensor)
        dtype = torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype
        return tensor.to(dtype, copy=True)

    def _find(self, model: nn.Module) -> dict[str, Tensor]:
        """Name -> tensor, looked up each time, because `Module.to` replaces buffers.

        By path: collecting all tensors of a network of 150 layers takes as long as averaging them.
        """
        found = {name: _tensor_at(model, name) for name in self.names}
        if missing := [name for name, tensor in found.items() if tensor is None]:
            known = [*dict(model.named_parameters()), *dict(model.named_buffers())]
            problems = [unknown_name("tensor", name, known) for name in missing]
            raise OptionError(list_problems("The model lacks tensors to be averaged:", problems))
        return {name: tensor for name, tensor in found.items() if tensor is not None}


def _tensor_at(model: nn.Module, path: str) -> Tensor | None:
    """The parameter or buffer; None if there is none."""
    *names, leaf = path.split(".")
    module: nn.Module | None = model
    for name in names:
        module = None if module is None else module._modules.get(name)
    if module is None:
        return None
    parameter = module._parameters.get(leaf)
    return module._buffers.get(leaf) if parameter is None else parameter


def swa_start(epochs: int, *, share: float = SWA_SHARE) -> int:
    """The first epoch, from 0, that "swa" averages; at least the last one is averaged.

    Args:
        epochs: Of the run, >= 1.
        share: Share of the epochs, at the end, in (0, 1].

    Example:
        >>> swa_start(20)
        15
    """
    if not 0 < share <= 1:
        raise OptionError(f"The share of epochs to average must be in (0, 1], got {share!r}.")
    return epochs - max(1, math.floor(share * epochs))
