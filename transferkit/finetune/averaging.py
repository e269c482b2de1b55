"""Averages of the weights along a training run: how they are kept, and how they take the place of the raw ones.

When an average is updated is for the run to say: "ema" after every optimizer step, "swa" at the end of late epochs.
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
from transferkit.finetune.sharding import local, placed, whole
from transferkit.options import AVERAGES

__all__ = ["EMA_DECAY", "SWA_SHARE", "WeightAverage", "swa_start"]

EMA_DECAY = 0.999
"""Highest decay. The decay's own warm-up reaches it after 9000 steps only: shorter runs average about the last tenth of
their steps, whatever this value."""

SWA_SHARE = 0.25
"""Share of the epochs, the last ones, whose weights "swa" averages (Izmailov et al., UAI 2018, start at 75 %)."""


class WeightAverage:
    """The average of some of a model's tensors; the first update copies them.

    torch's `AveragedModel` copies the whole model, frozen backbone and all; this keeps what learns, with torch's own
    update rules. Name the running statistics that are updated in training along with the parameters: floating-point
    tensors are averaged, statistics too, since those of the raw weights do not fit averaged ones, while averaged ones
    nearly do ("swa" wants `recalibrate_statistics` on top). Integers, such as the batches counted, are copied.

    Args:
        names: Of parameters and buffers, as `named_parameters` and `named_buffers` give them.
        kind: "ema", the exponential moving average, updated after every step, or "swa", the equal average of the
            ends of the last epochs.
        decay: Of "ema", in [0, 1): update t (from 0) keeps min(decay, (1 + t) / (10 + t)) of the old average.

    Attributes:
        count: Updates so far.

    Raises:
        OptionError: If the kind is unknown, the decay out of range, or there is nothing to average.

    References:
        Polyak & Juditsky, 1992, and TensorFlow's ExponentialMovingAverage for the decay's warm-up. Deviation: the
        average starts at the weights after the first step, not before it. Izmailov et al., UAI 2018, for "swa".
        Deviation: the learning rate is left to the schedule; where it dies away, the ends of epochs differ little.

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
            raise OptionError("There is nothing to average: name the tensors that learn.")
        self.kind, self.decay = kind, decay
        self.count = 0
        self._averages: dict[str, Tensor] = {}

    def update(self, model: nn.Module) -> None:
        """Take the model's weights of now into the average.

        Raises:
            OptionError: If the model lacks one of the tensors.
        """
        # Lightning validates in inference mode; a tensor made there could not be averaged into later.
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
        """Put the averages into the model for good; before the first update the model stays as it is."""
        for name, tensor in self._find(model).items():
            if name in self._averages:
                tensor.copy_(placed(self._averages[name], tensor))

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """The averages in the model for a while; its own tensors come back bit for bit, after an exception as well."""
        own = {name: tensor.detach().clone() for name, tensor in self._find(model).items()}
        try:
            self.write(model)
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self._find(model).items():
                    tensor.copy_(own[name])

    def state_dict(self) -> dict[str, Any]:
        """The averages and the number of updates; copies, which later updates leave alone."""
        return {"count": self.count, "averages": {name: whole(kept).clone() for name, kept in self._averages.items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            CheckpointError: If the state is about other tensors.
        """
        averages = state_dict["averages"]
        if averages and (differ := set(self.names) ^ averages.keys()):
            raise CheckpointError(
                f"The averaged weights are those of other tensors; {len(differ)} differ, such as {min(differ)!r}. "
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
        """The average so far, on the device where the tensor is now; in half precision small updates would be lost."""
        if name in self._averages:
            return placed(self._averages[name], tensor)
        dtype = torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype
        return tensor.to(dtype, copy=True)

    def _find(self, model: nn.Module) -> dict[str, Tensor]:
        """Looked up each time: `Module.to` puts new tensors in the place of buffers."""
        tensors: dict[str, Tensor] = dict(model.named_parameters())
        tensors.update(model.named_buffers())
        if missing := [name for name in self.names if name not in tensors]:
            problems = [unknown_name("tensor", name, tensors) for name in missing]
            raise OptionError(list_problems("The model lacks tensors that were to be averaged:", problems))
        return {name: tensors[name] for name in self.names}


def swa_start(epochs: int, *, share: float = SWA_SHARE) -> int:
    """Number of the first epoch, from 0, whose end "swa" averages: at least the last one is.

    Args:
        epochs: Of the whole run, >= 1.
        share: Of the epochs, the last ones, in (0, 1].

    Example:
        >>> swa_start(20)
        15
    """
    if not 0 < share <= 1:
        raise OptionError(f"The share of epochs to average must be in (0, 1], got {share!r}.")
    return epochs - max(1, math.floor(share * epochs))
