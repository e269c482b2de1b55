"""An ensemble whose networks begin with the same weights, as frozen stages have: these stages run once for all."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from transferkit.core.errors import BackboneError
from transferkit.nn.backbone import Backbone
from transferkit.nn.heads import Blend
from transferkit.nn.model import TransferModel, mean_over_views
from transferkit.nn.overriding import is_traced
from transferkit.nn.tail import Tail, cut

__all__ = ["SharingBlend", "share_stages"]


class SharingBlend(Blend):
    """A blend that computes the first stages, equal in all members, once; see `share_stages`.

    Args:
        blend: Its members are run.
        prefix: Cut behind the shared stages of the first member.

    Shape:
        As of `Blend`.
    """

    def __init__(self, blend: Blend, prefix: Tail) -> None:
        super().__init__(blend.parts)
        self.thresholds = blend.thresholds
        self._prefix = prefix
        self._tails = tuple(prefix.on(member.backbone) for member in blend.parts)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) float, normalised, or (N, V, 3, H, W) -> (N, K) logits, the mean over the views."""
        return mean_over_views(self._classify, images)

    def _classify(self, images: torch.Tensor) -> torch.Tensor:
        first = self.parts[0]
        size = self.preprocessing.size
        # Networks are cut at images of one size; a trace must not keep the number of images, as the cut does.
        if images.shape[-2:] != (size, size) or is_traced():
            return super().forward(images)
        read = {stage for member in self.parts for stage in member.stages}
        activation, before = self._prefix.activations(
            images, pooling=first.pooling, names=tuple(read & set(self._prefix.stages_before))
        )
        logits = [
            _classify_behind(member, tail, activation, before)
            for member, tail in zip(self.parts, self._tails, strict=True)
        ]
        return torch.stack(logits).sum(dim=0)


def _classify_behind(
    member: TransferModel, tail: Tail, activation: torch.Tensor, before: dict[str, torch.Tensor]
) -> torch.Tensor:
    names = [stage for stage in member.stages if stage not in before]
    pooled = {**before, **(tail.pooled_stages(activation, pooling=member.pooling, names=names) if names else {})}
    logits: torch.Tensor = member.classifier(torch.cat([pooled[stage] for stage in member.stages], dim=1))
    return logits


def share_stages(model: TransferModel | Blend) -> TransferModel | Blend:
    """A model with the same output in less time, if it is a blend whose networks begin with equal stages.

    Three networks of which the first half is equal take two thirds of the time. Costs a few forward passes over two
    images, in which it is checked that a network can be cut there, and that the members' first stages do the same.

    Args:
        model: In evaluation mode. The result runs its modules.

    Returns:
        A `SharingBlend`, or the model itself where nothing can be shared.
    """
    if not isinstance(model, Blend) or not _are_plain(model):
        return model
    try:
        return _share(model)
    except (BackboneError, RuntimeError):  # it saves time only: whatever is wrong is told where the model itself runs
        return model


def _share(model: Blend) -> Blend:
    stage = _last_shared([part.backbone for part in model.parts])
    if stage is None:
        return model
    first, *others = (part.backbone for part in model.parts)
    prefix = cut(first, stage)
    # Equal weights do not suffice: modules may compute something else with them.
    return SharingBlend(model, prefix).eval() if all(map(prefix.begins_like, others)) else model


def _are_plain(model: Blend) -> bool:
    """Whether nothing but the modules' own code runs, which is all that a `SharingBlend` runs."""
    parts = model.parts
    outer = (model, *parts, *(part.backbone for part in parts))
    return (
        type(model) is Blend
        and len(parts) > 1
        and all(type(part) is TransferModel for part in parts)
        and len({part.pooling for part in parts}) == 1
        and not any(module._forward_hooks or module._forward_pre_hooks for module in outer)
    )


def _last_shared(backbones: Sequence[Backbone]) -> str | None:
    """The last of the stages, from the stem on, whose weights and statistics are the same in all backbones."""
    first, *others = (_weights_by_stage(backbone) for backbone in backbones)
    last = None
    for stage in backbones[0].stages[:-1]:
        if not all(_equal(first.get(stage.name, {}), other.get(stage.name, {})) for other in others):
            break
        last = stage.name
    return last


def _weights_by_stage(backbone: Backbone) -> dict[str, dict[str, torch.Tensor]]:
    """Stage -> name of a weight or statistic -> its values; batch counters do not matter."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in backbone.trunk.state_dict().items():
        if tensor.is_floating_point():
            found.setdefault(backbone.stage_of(name.rpartition(".")[0]), {})[name] = tensor
    return found


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
