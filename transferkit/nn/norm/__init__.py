"""Normalisation layers that can replace batch normalisation in a network, and the swap itself.

Defines what each kind computes; `decision` chooses the kind.
"""

from transferkit.nn.norm.batch import AffineFrozenBatchNorm, BatchNorm, FrozenBatchNorm, SyncBatchNorm
from transferkit.nn.norm.blended import AlphaBatchNorm
from transferkit.nn.norm.conversion import ConversionReport, LayerFit, find_batch_norms, fit_group_norms
from transferkit.nn.norm.decorrelated import DecorrelatedBatchNorm
from transferkit.nn.norm.kinds import BY_BATCH, CALIBRATED, KEEPS_OUTPUTS, NEEDS_SEVERAL, NORM_KINDS, MakeNorm
from transferkit.nn.norm.micro_batches import AccumulatedBatchNorm, GhostBatchNorm, begin_step
from transferkit.nn.norm.per_image import ChannelLayerNorm, GroupNorm, InstanceNorm, LayerNorm
from transferkit.nn.norm.recalibration import follows_batches, recalibrate_statistics
from transferkit.nn.norm.renorm import AT_ONCE, FROM_SCRATCH, BatchRenorm, Clipping
from transferkit.nn.norm.source import NormSource, folded_affine, is_batch_norm, nearest_divisor, read_source
from transferkit.nn.norm.standardised import StandardisedGroupNorm, fold, standardising
from transferkit.nn.norm.swap import restore_norm, swap_norm
from transferkit.nn.norm.swap_record import NormSwap, original_of, swapped_layers, swapped_norms
from transferkit.nn.norm.weights import StandardisedWeight, normalise_weights, plain_weights, standardise_weights

__all__ = [
    "AT_ONCE",
    "BY_BATCH",
    "CALIBRATED",
    "FROM_SCRATCH",
    "KEEPS_OUTPUTS",
    "NEEDS_SEVERAL",
    "NORM_KINDS",
    "AccumulatedBatchNorm",
    "AffineFrozenBatchNorm",
    "AlphaBatchNorm",
    "BatchNorm",
    "BatchRenorm",
    "ChannelLayerNorm",
    "Clipping",
    "ConversionReport",
    "DecorrelatedBatchNorm",
    "FrozenBatchNorm",
    "GhostBatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerFit",
    "LayerNorm",
    "MakeNorm",
    "NormSource",
    "NormSwap",
    "StandardisedGroupNorm",
    "StandardisedWeight",
    "SyncBatchNorm",
    "begin_step",
    "find_batch_norms",
    "fit_group_norms",
    "fold",
    "folded_affine",
    "follows_batches",
    "is_batch_norm",
    "nearest_divisor",
    "normalise_weights",
    "original_of",
    "plain_weights",
    "read_source",
    "recalibrate_statistics",
    "restore_norm",
    "standardise_weights",
    "standardising",
    "swap_norm",
    "swapped_layers",
    "swapped_norms",
]
