"""Registry of the kinds of normalisation that can replace batch normalisation.

Each function makes the replacement of one layer, without modifying it, with default options; for other options use the
class: `swap_norm(module, lambda layer: GhostBatchNorm(layer, size=8))`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from transferkit.core.registry import Registry
from transferkit.nn.norm.batch import SLOW_MOMENTUM, AffineFrozenBatchNorm, BatchNorm, FrozenBatchNorm, SyncBatchNorm
from transferkit.nn.norm.blended import AlphaBatchNorm
from transferkit.nn.norm.decorrelated import DecorrelatedBatchNorm
from transferkit.nn.norm.micro_batches import AccumulatedBatchNorm, GhostBatchNorm
from transferkit.nn.norm.per_image import GROUPS, ChannelLayerNorm, GroupNorm, InstanceNorm, LayerNorm
from transferkit.nn.norm.renorm import BatchRenorm
from transferkit.nn.norm.standardised import standardising

__all__ = ["BY_BATCH", "CALIBRATED", "GROUPED", "KEEPS_OUTPUTS", "NEEDS_SEVERAL", "NORM_KINDS", "MakeNorm"]

MakeNorm = Callable[[nn.Module, int | None], nn.Module]
"""(layer, groups) -> its replacement. Kinds that are not `GROUPED` do not read `groups`."""

NORM_KINDS: Registry[MakeNorm] = Registry("kind of normalisation")
"""Name -> function that makes the replacement of one batch normalisation layer."""

GROUPED = frozenset({"group", "standardised_group", "decorrelated"})
"""Kinds that divide channels into groups."""

CALIBRATED = frozenset({"standardised_group", "recalibrated"})
"""Kinds that can be fitted to images."""

KEEPS_OUTPUTS = frozenset(
    {"frozen", "frozen_affine", "momentum", "sync", "renorm", "ghost", "accumulated", "decorrelated"}
)
"""Kinds with the layer's outputs in evaluation, until they are trained."""

NEEDS_SEVERAL = frozenset({"frozen_affine", "momentum", "recalibrated", "ghost", "accumulated", "decorrelated"})
"""Kinds that train on plain batch statistics, and so need several images per batch."""

BY_BATCH = frozenset({"alpha"})
"""Kinds with which a prediction depends on the other images of its batch, also in evaluation."""


@NORM_KINDS.register("frozen")
def _frozen(layer: nn.Module, groups: int | None) -> nn.Module:
    return FrozenBatchNorm(layer)


@NORM_KINDS.register("frozen_affine")
def _frozen_affine(layer: nn.Module, groups: int | None) -> nn.Module:
    return AffineFrozenBatchNorm(layer)


@NORM_KINDS.register("momentum")
def _momentum(layer: nn.Module, groups: int | None) -> nn.Module:
    return BatchNorm(layer, momentum=SLOW_MOMENTUM)


@NORM_KINDS.register("recalibrated")
def _recalibrated(layer: nn.Module, groups: int | None) -> nn.Module:
    return BatchNorm(layer)


@NORM_KINDS.register("sync")
def _sync(layer: nn.Module, groups: int | None) -> nn.Module:
    return SyncBatchNorm(layer)


@NORM_KINDS.register("renorm")
def _renorm(layer: nn.Module, groups: int | None) -> nn.Module:
    return BatchRenorm(layer)


@NORM_KINDS.register("ghost")
def _ghost(layer: nn.Module, groups: int | None) -> nn.Module:
    return GhostBatchNorm(layer)


@NORM_KINDS.register("accumulated")
def _accumulated(layer: nn.Module, groups: int | None) -> nn.Module:
    return AccumulatedBatchNorm(layer)


@NORM_KINDS.register("alpha")
def _alpha(layer: nn.Module, groups: int | None) -> nn.Module:
    return AlphaBatchNorm(layer)


@NORM_KINDS.register("decorrelated")
def _decorrelated(layer: nn.Module, groups: int | None) -> nn.Module:
    return DecorrelatedBatchNorm(layer, groups=groups)


@NORM_KINDS.register("group")
def _group(layer: nn.Module, groups: int | None) -> nn.Module:
    return GroupNorm(layer, groups=GROUPS if groups is None else groups)


@NORM_KINDS.register("standardised_group")
def _standardised_group(layer: nn.Module, groups: int | None) -> nn.Module:
    return standardising(layer, groups=1 if groups is None else groups)


@NORM_KINDS.register("layer")
def _layer(layer: nn.Module, groups: int | None) -> nn.Module:
    return LayerNorm(layer)


@NORM_KINDS.register("channel_layer")
def _channel_layer(layer: nn.Module, groups: int | None) -> nn.Module:
    return ChannelLayerNorm(layer)


@NORM_KINDS.register("instance")
def _instance(layer: nn.Module, groups: int | None) -> nn.Module:
    return InstanceNorm(layer)
