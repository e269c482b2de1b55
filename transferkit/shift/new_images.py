"""New, unlabelled images of a run: read once, their features put into the bank, the model's answers beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from transferkit.core.errors import DataError
from transferkit.core.progress import track
from transferkit.data import DeepImages, check_prepared, predictable_pixels
from transferkit.data.fingerprints import array_digest
from transferkit.features import FeatureTable, average_tables, frozen_pass
from transferkit.nn import TransferModel
from transferkit.result import Result
from transferkit.result.prediction import nothing_read
from transferkit.shift.reference import Witness, is_probe
from transferkit.shift.shift_options import ShiftOptions

__all__ = ["NewImages", "linear_logits", "read_new_images", "witness_features"]

AT_ONCE = 256
"""Images that are prepared before the next are read."""

KEPT = 512
"""Prepared pictures that are kept for remedies that run the network, a random sample: 14 MB at 96 pixels."""


@dataclass(frozen=True)
class NewImages:
    """N images that were read.

    Args:
        items: Their names.
        logits: (N, K) of the run's model.
        tables: Features by the witness, which together hold all images in order; empty without a witness.
        pixels: Some prepared pictures, (3, S, S) uint8 or (V, 3, S, S) each.
        chosen: Positions of these among the N.
        failures: Reasons why others could not be read.
    """

    items: tuple[str, ...]
    logits: npt.NDArray[np.float64]
    tables: tuple[FeatureTable, ...]
    pixels: tuple[npt.NDArray[np.uint8], ...]
    chosen: npt.NDArray[np.int64]
    failures: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def features(self, stages: Sequence[str]) -> npt.NDArray[np.float32]:
        """(N, D) of some stages joined, in memory."""
        return np.concatenate([table.load(stages) for table in self.tables])


def linear_logits(model: TransferModel, table: FeatureTable) -> npt.NDArray[np.float64]:
    """(N, K) of a model whose backbone computed the table."""
    weight, bias = (tensor.detach().cpu().numpy() for tensor in (model.linear.weight, model.linear.bias))
    _, columns = table.select(model.stages)
    return np.concatenate([np.asarray(chunk @ weight.T + bias, np.float64) for chunk in table.chunks(columns)])


def read_new_images(result: Result, images: Any, witness: Witness | None, options: ShiftOptions) -> NewImages:
    """Read, prepare and run new images; one that cannot be read is noted and left out.

    Args:
        result: The run whose model they are for.
        images: As for `Result.predict`.
        witness: Whose features are wanted; None for none.
        options: How they are read, and the seed of the sample of pictures.

    Raises:
        DataError: There is no image, none could be read, or the model takes prepared tensors.
    """
    wants = result.preprocessing
    check_prepared(wants, preprocessed=False)
    named = predictable_pixels(
        images, wants, max_pixels=options.max_pixels, deep=DeepImages(wants.value_range), on_error="skip"
    )
    rng = np.random.default_rng(options.seed)
    items: list[str] = []
    failures: list[str] = []
    logits: list[npt.NDArray[np.float64]] = []
    tables: list[FeatureTable] = []
    kept: list[tuple[int, npt.NDArray[np.uint8]]] = []
    for part in track(_parts(named, failures), "new images", enabled=options.progress):
        pixels = [one for _, one in part]
        for position, one in enumerate(pixels, start=len(items)):
            _sample(kept, position, one, rng)
        items += [name for name, _ in part]
        if witness is not None:
            tables.append(witness_features(witness, pixels))
        if witness is not None and is_probe(result.record) and isinstance(result.model, TransferModel):
            logits.append(linear_logits(result.model, tables[-1]))
        else:
            found = np.asarray(result.probabilities(np.stack(pixels)), dtype=np.float64)
            logits.append(np.log(np.maximum(found, np.finfo(np.float32).tiny)))
    if not items:
        raise nothing_read(failures)
    order = np.array([position for position, _ in kept], dtype=np.int64)
    return NewImages(
        items=tuple(items),
        logits=log_softmax(np.concatenate(logits), axis=1),
        tables=tuple(tables),
        pixels=tuple(one for _, one in kept),
        chosen=order,
        failures=tuple(failures),
    )


def _parts(
    named: Iterator[tuple[str, npt.NDArray[np.uint8] | DataError]], failures: list[str]
) -> Iterator[list[tuple[str, npt.NDArray[np.uint8]]]]:
    """Readable images, some at once; why others are not is added to the failures."""

    def readable() -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
        for name, found in named:
            if isinstance(found, DataError):
                failures.append(str(found))
            else:
                yield name, found

    images = readable()
    while part := list(islice(images, AT_ONCE)):
        yield part


def _sample(
    kept: list[tuple[int, npt.NDArray[np.uint8]]],
    position: int,
    pixels: npt.NDArray[np.uint8],
    rng: np.random.Generator,
) -> None:
    """Keep a random sample of a stream whose length is unknown: each image with the same chance."""
    if len(kept) < KEPT:
        kept.append((position, pixels))
    elif (place := int(rng.integers(position + 1))) < KEPT:
        kept[place] = (position, pixels)


def witness_features(witness: Witness, pixels: Sequence[npt.NDArray[np.uint8]]) -> FeatureTable:
    """Rows of the bank for prepared pictures, averaged over their views."""
    views = witness.backbone.spec.preprocessing.each_view
    several = pixels[0].ndim == 4
    tables = []
    for number, view in enumerate(views):
        shown = [one[number] if several else one for one in pixels]
        ids = np.array([array_digest(one) for one in shown], dtype="S32")
        found = frozen_pass(
            witness.backbone.with_preprocessing(view),
            lambda index, shown=shown: shown[index],  # type: ignore[misc]
            ids,
            bank=witness.bank,
            pooling=witness.pooling,
            device=witness.device,
            batch_size=witness.batch_size,
            engines=witness.engines,
            progress=False,
        )
        tables.append(found.table)
    return average_tables(tables)
