"""Cached activations of a frozen stage on disk, so that partial fine-tuning runs only the stages after it.

Cost: one forward pass of the stages up to the cut over the images not in the bank yet, and `activation_bytes` of disk.
The shelf's key depends only on the weights up to the cut, so the activations stay valid however the stages after it are
trained.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from transferkit.core.errors import CacheError, OptionError, unknown_name
from transferkit.features.bank import FeatureBank
from transferkit.features.device import choose_device
from transferkit.features.engines.torch import Kind, TorchExtractor
from transferkit.features.extraction import Need, Read, fill_shelves, open_shelves
from transferkit.features.forward import Compute
from transferkit.features.identity import Identity
from transferkit.features.tables import DTYPES, FeatureTable, RowOverflowError
from transferkit.nn.pooling import pooled_width
from transferkit.nn.tail import Tail

__all__ = ["ActivationTable", "activation_bytes", "cache_activations", "choose_dtype"]

EXACT_LIMIT = 2**30
"""Bytes up to which dtype "auto" uses float32: then training from the cache equals training without it."""

FREE_SHARE = 0.25
"""Default share of the free disk that activations may use."""

BANK_SHARE = 0.5
"""Share of the bank's limit that they may use: the rest is left for features."""

ID_BYTES = 32
"""Bytes that the bank stores per image in addition to its row."""

ACTIVATIONS, POOLED = "activations", "pooled"
"""The two kinds of rows."""


class ActivationTable:
    """Activations of images at a cut, and pooled stages up to it.

    Args:
        tail: The cut.
        tables: "activations" -> (N, prod(shape)) rows; "pooled" -> (N, P) rows, if any stage was requested.
        computed: Number of images that the backbone ran over.

    Attributes:
        stage, shape: Of the cut.
        dtype: Storage type of the activations; they are read as float32.
        computed: As passed.
    """

    def __init__(self, tail: Tail, tables: Mapping[str, FeatureTable], *, computed: int) -> None:
        self.stage = tail.stage
        self.shape = tail.shape
        self.dtype = tables[ACTIVATIONS].dtype
        self.computed = computed
        self._activations = tables[ACTIVATIONS].opened()
        self._pooled = tables[POOLED].opened() if POOLED in tables else None
        self._blocks = tables[POOLED].blocks if POOLED in tables else {}
        self._channels_last = _is_channels_last(tail)

    def __len__(self) -> int:
        return len(self._activations)

    def batch(self, rows: npt.NDArray[np.integer]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Activations of these rows, in this order, (n, *shape) float32, and stage name -> (n, C) float32.

        Returns copies. Spatial activations are in the memory format channels_last.
        """
        flat = torch.from_numpy(self._activations.read(rows))
        if self._channels_last:
            channels, height, width = self.shape
            activation = flat.view(-1, height, width, channels).permute(0, 3, 1, 2)
        else:
            activation = flat.view(-1, *self.shape)
        if self._pooled is None:
            return activation, {}
        pooled = torch.from_numpy(self._pooled.read(rows))
        return activation, {stage: pooled[:, block] for stage, block in self._blocks.items()}


def _is_channels_last(tail: Tail) -> bool:
    """Whether rows are stored in channels_last order, in which convolutions are fast."""
    return tail.tap.layout == "channels_first" and len(tail.shape) == 3


def activation_bytes(
    tail: Tail, images: int, *, dtype: str = "auto", stages: Sequence[str] = (), pooling: str = "avg+max"
) -> int:
    """Bytes of disk for the activations of `images` images.

    Args:
        tail: The cut, see `transferkit.nn.cut`.
        images: Number of images; each view counts.
        dtype, stages, pooling: As for `cache_activations`.
    """
    kept = DTYPES[choose_dtype(tail, images, dtype)].itemsize * math.prod(tail.shape) + ID_BYTES
    widths = _pooled_widths(tail, stages, pooling)
    return images * (kept + (4 * sum(widths.values()) + ID_BYTES if widths else 0))


def choose_dtype(tail: Tail, images: int, dtype: str = "auto") -> str:
    """Resolve "auto" to float32 if that takes 1 GiB or less, else float16; other names are returned unchanged.

    Raises:
        OptionError: If the name is unknown.
    """
    if dtype == "auto":
        return "float32" if 4 * images * math.prod(tail.shape) <= EXACT_LIMIT else "float16"
    if dtype not in DTYPES:
        raise OptionError(unknown_name("dtype", dtype, ["auto", *DTYPES]))
    return dtype


def _pooled_widths(tail: Tail, stages: Sequence[str], pooling: str) -> dict[str, int]:
    if strange := [name for name in stages if name not in tail.stages_before]:
        raise OptionError(
            f"Stage {strange[0]!r} is not before the cut. Stages before it: {', '.join(tail.stages_before)}."
        )
    return {
        tap.stage: pooled_width(tap.channels, tap.layout, pooling) for tap in tail.backbone.taps if tap.stage in stages
    }


def cache_activations(
    tail: Tail,
    read: Read,
    content_ids: npt.NDArray[np.bytes_],
    *,
    bank: FeatureBank,
    stages: Sequence[str] = (),
    pooling: str = "avg+max",
    dtype: str = "auto",
    limit: int | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    one_reader: bool = False,
    progress: bool = True,
) -> ActivationTable:
    """Run the backbone up to the cut over every image not in the bank, and open all rows.

    Args:
        tail: The cut. Its backbone runs in evaluation mode without gradients; its state is restored.
        read: Index -> (3, H, W) uint8 pixels, or float32 if already normalised. Called from worker threads.
        content_ids: (N,) S32, one per image or view of it; equal ids are computed once.
        bank: Stores the rows.
        stages: Stages up to the cut whose pooled vectors are stored as well.
        pooling: "avg" or "avg+max".
        dtype: Storage type of activations: "float32", "float16", "bfloat16", or "auto": float32 if that takes 1 GiB or
            less, else float16, or bfloat16 if a value exceeds 65504. Pooled vectors are always float32.
        limit: Bytes that may be written; None allows a quarter of the free disk, and half of the bank's limit.
        device, batch_size, workers, one_reader, progress: As for `frozen_pass`.

    Returns:
        N rows in the order of `content_ids`.

    Raises:
        OptionError: If an argument is unknown, or float16 was requested and a value exceeds its range.
        CacheError: If the limit is too small, or the bank cannot be written.
        BackboneError: If a value is not finite, or the network cannot take these images.
    """
    widths = _pooled_widths(tail, stages, pooling)
    chosen = choose_dtype(tail, len(content_ids), dtype)
    extractor = _extractor(tail, widths, pooling, choose_device(device))
    identities = extractor.identity()
    overflow: RowOverflowError | None = None
    for kept in (chosen, "bfloat16") if dtype == "auto" and chosen == "float16" else (chosen,):
        shelves = open_shelves(bank, _kept_as(identities, tail.stage, kept))
        needs = {kind: Need(shelf, shelf.missing(content_ids)) for kind, shelf in shelves.items()}
        _check_room(tail, needs, bank, limit)
        try:
            computed = fill_shelves(
                extractor,
                read,
                content_ids,
                needs,
                bank=bank,
                batch_size=batch_size,
                workers=workers,
                one_reader=one_reader,
                label=f"up to {tail.stage}, {tail.backbone.spec.architecture}" if progress else None,
            )
        except RowOverflowError as error:
            overflow = error
            continue
        return ActivationTable(
            tail, {kind: need.shelf.table(content_ids) for kind, need in needs.items()}, computed=computed
        )
    raise OptionError(
        f"The activations at stage {tail.stage!r} do not fit: {overflow}. Use dtype=bfloat16 or dtype=float32."
    ) from overflow


def _extractor(tail: Tail, widths: Mapping[str, int], pooling: str, device: torch.device) -> TorchExtractor:
    """Of the activations at the cut, and of pooled stages up to it if there are any."""
    cut = {"cut": [tail.tap.path, list(tail.shape)]}
    kinds = {ACTIVATIONS: Kind(cut, {tail.stage: math.prod(tail.shape)})}
    if widths:
        kinds[POOLED] = Kind({**cut, "pooling": pooling}, widths)
    compute = _up_to_cut(tail, list(widths), pooling)
    return TorchExtractor(tail.backbone, compute, kinds, device=device, part=tail.prefix())


def _kept_as(identities: Mapping[str, Identity], stage: str, dtype: str) -> dict[str, Identity]:
    """The same with activations kept in that type. Pooled vectors lie apart: they stay float32."""
    plain = identities[ACTIVATIONS]
    names = {**plain.names, "pooling": f"{stage} unpooled, {dtype}"}
    return {**identities, ACTIVATIONS: replace(plain, names=names, dtype=dtype)}


def _check_room(tail: Tail, needs: dict[str, Need], bank: FeatureBank, limit: int | None) -> None:
    needed = sum(len(need.positions) * (need.shelf.row_bytes + ID_BYTES) for need in needs.values())
    allowed, whose = limit, "are allowed"
    if allowed is None:
        allowed = int(min(FREE_SHARE * shutil.disk_usage(bank.folder).free, BANK_SHARE * bank.limit))
        whose = "are allowed: a quarter of the free disk, and half of cache_limit"
    if needed > allowed:
        raise CacheError(
            f"The activations at stage {tail.stage!r} of {len(needs[ACTIVATIONS].positions):,} images take "
            f"{needed / 2**20:,.0f} MB, but {allowed / 2**20:,.0f} MB {whose}. Freeze up to a later stage, choose a "
            "smaller image_size, or train without cached activations."
        )


def _up_to_cut(tail: Tail, stages: Sequence[str], pooling: str) -> Compute:
    def compute(images: torch.Tensor, wanted: frozenset[str]) -> dict[str, dict[str, torch.Tensor]]:
        names = stages if POOLED in wanted else ()
        activation, pooled = tail.activations(images, pooling=pooling, names=names)
        if _is_channels_last(tail):
            activation = activation.permute(0, 2, 3, 1)
        return {ACTIVATIONS: {tail.stage: activation.flatten(1)}, POOLED: pooled}

    return compute
