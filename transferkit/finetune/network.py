"""The network of a fit: what a strategy adds to a backbone or a model before training."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from transferkit.core.errors import OptionError
from transferkit.finetune.adapters import add_adapters, is_adapter
from transferkit.finetune.targets import TargetScale
from transferkit.nn import Backbone, StandardisedLinear, TransferModel
from transferkit.records import JOINED
from transferkit.strategies import Plan

__all__ = ["add_plan_adapters", "add_zero_head", "fold_scale", "head_stage", "scale_like", "standardise_head"]


def head_stage(model: TransferModel) -> str:
    """The stage that a model's head reads, as strategies take it: its name, or "joined" for several."""
    return model.stages[0] if len(model.stages) == 1 else JOINED


def add_plan_adapters(backbone: Backbone, plan: Plan, *, seed: int) -> None:
    """Add the adapters that a plan asks for to a backbone, unless it has some."""
    if plan.adapters is None or any(is_adapter(name) for name, _ in backbone.trunk.named_parameters()):
        return
    backbone.anatomy  # noqa: B018 - of the network as it is, before anything is added
    add_adapters(backbone.trunk, plan.adapters, size=backbone.spec.preprocessing.size, seed=seed)


def add_zero_head(
    backbone: Backbone, plan: Plan, *, classes: Sequence[str] | int | None, pooling: str
) -> TransferModel:
    """A model of a backbone, its new head all zeros: every class is equally likely.

    Raises:
        OptionError: If there are no classes.
    """
    if classes is None:
        raise OptionError("A new head needs its classes: classes=data.classes, or their number.")
    names = [str(number) for number in range(classes)] if isinstance(classes, int) else classes
    model = TransferModel(backbone, stages=plan.stages, pooling=pooling, classes=names)
    torch.nn.init.zeros_(model.linear.weight)
    torch.nn.init.zeros_(model.linear.bias)
    return model


def standardise_head(
    model: TransferModel, moments: tuple[torch.Tensor, torch.Tensor] | None, *, dropout: float
) -> None:
    """Put a head that standardises its features in the place of a model's linear layer; its outputs stay the same.

    Args:
        model: Changed in place.
        moments: (D,) means and (D,) standard deviations of the features; None leaves these as they are.
        dropout: Of the features, in [0, 1).
    """
    linear = model.linear
    if moments is None:
        moments = torch.zeros(linear.in_features), torch.ones(linear.in_features)
    model.classifier = StandardisedLinear(linear, *moments, dropout=dropout)


def scale_like(scale: TargetScale, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(R,) means and (R,) standard deviations of the targets, on the device and of the dtype of another tensor."""
    return like.new_tensor(scale.mean), like.new_tensor(scale.std)


@torch.no_grad()
def fold_scale(linear: torch.nn.Linear, scale: TargetScale) -> None:
    """Make a layer that predicts standardised targets predict them in their own units, in place."""
    mean, std = scale_like(scale, linear.weight)
    linear.weight.mul_(std.unsqueeze(1))
    linear.bias.mul_(std).add_(mean)
