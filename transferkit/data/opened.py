"""Opening any source of labelled images: audited, split, and read image by image."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from transferkit.core.errors import DataError, OptionError
from transferkit.core.paths import expand
from transferkit.data.audit import AuditReport, audit
from transferkit.data.corrections import read_corrections
from transferkit.data.datasets import is_data_module, is_dataset, module_datasets, read_builtin, read_datasets
from transferkit.data.depth import Range
from transferkit.data.inventory import UNSPLIT, FileReader, Inspect, Inventory, Reader, read_files
from transferkit.data.members import ImageFile
from transferkit.data.prepared import check_prepared
from transferkit.data.sources import is_builtin, list_source
from transferkit.data.split_findings import DEFAULT_TEST
from transferkit.data.splits import check_shares
from transferkit.data.target_values import check_task
from transferkit.options import MAX_PIXELS
from transferkit.records import (
    TARGET_TASKS,
    CorrectedLabel,
    DataSummary,
    Folds,
    Picture,
    Preprocessing,
    TargetFolds,
    Targets,
)

__all__ = ["Data", "open_data"]

_JPEG_QUALITY = 85


class Data:
    """Labelled images that passed the audit.

    Args:
        inventory: The source's rows.
        report: The audit's result: usable rows, splits, groups.
        normalised: Whether `pixels` returns already normalised float32 tensors.

    Attributes:
        summary: `DataSummary`: counts, findings, how the splits were made.
        items: N image names, for display.
        labels: (N,) int64 in [0, K); beside `targets` the strata that splits are spread over.
        targets: (N, T) labels or numbers; None where each image has one class.
        splits: (N,) of "train", "val", "test".
        content_ids: (N,) dtype "S32", hex digests of the images' contents.
        groups: (N,) int64; images of equal value must stay together: equal or nearly equal content, or a group given by
            the user.
        normalised: Whether `pixels` returns already normalised float32 tensors.
        value_range: (black, white) of the images deeper than 8 bits, in stored units; None if there are none.
        corrected: What a table of corrected labels changed; empty without one.
        thread_safe: Whether images may be read from several threads at once.
    """

    def __init__(self, inventory: Inventory, report: AuditReport, *, normalised: bool) -> None:
        rows = report.rows
        self.summary: DataSummary = report.summary
        self.items: tuple[str, ...] = tuple(inventory.names[row] for row in rows)
        self.labels: npt.NDArray[np.int64] = report.labels
        self.targets: Targets | None = None if inventory.targets is None else inventory.targets.take(rows)
        self.splits: npt.NDArray[np.str_] = report.splits
        self.content_ids: npt.NDArray[np.bytes_] = np.array(
            [inventory.inspections[row].content_id for row in rows], dtype="S32"
        )
        self.groups: npt.NDArray[np.int64] = report.groups
        self.corrected: tuple[CorrectedLabel, ...] = report.corrected
        self.normalised = normalised
        self.value_range: Range | None = None if normalised else report.value_range
        self._outside = inventory.outside
        inspections = [inventory.inspections[row] for row in rows]
        self._shapes = [(one.height, one.width) for one in inspections] if normalised else []
        self.thread_safe = inventory.reader.thread_safe
        self._sizes = np.array([(one.width, one.height) for one in inventory.inspections], dtype=np.int64)
        self._reader: Reader = inventory.reader
        self._rows = rows

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.summary.size(split)} {split}" for split in self.summary.counts)
        what = {"single_label": "classes", "multi_label": "labels"}.get(self.summary.task, "targets")
        return f"Data({self.summary.origin}: {self.summary.num_classes} {what}, {counts})"

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """(N, 2) width and height in pixels, as stored."""
        found: npt.NDArray[np.int64] = self._sizes[self._rows]
        return found

    @property
    def copies(self) -> npt.NDArray[np.int64]:
        """(N,) images of equal value have equal content; numbered by content, independent of the order of the files."""
        return np.unique(self.content_ids, return_inverse=True)[1].reshape(-1).astype(np.int64)

    @property
    def folds(self) -> Folds:
        """Which images are held back together in every estimate."""
        if self.targets is not None:
            return TargetFolds(self.labels, self.groups, self.copies, self.targets)
        return Folds(self.labels, self.groups, self.copies)

    def indices(self, split: str) -> npt.NDArray[np.int64]:
        """Indices of a split's images, ascending; empty if there is no such split."""
        return np.flatnonzero(self.splits == split)

    def image(self, index: int) -> Image.Image:
        """The picture, upright 8-bit RGB.

        Raises:
            DataError: It was changed or removed since the audit.
        """
        return self._reader.image(int(self._rows[index]), self.value_range)

    def adapt_preprocessing(self, preprocessing: Preprocessing) -> Preprocessing:
        """A checkpoint's preprocessing, completed for these images; a model fitted to them must keep it.

        Returns:
            The preprocessing with the value range of deep images, if it has none yet; for preprocessed tensors, with
            that fact and their shape.

        Raises:
            DataError: Preprocessed tensors have several shapes, or another than the model was fitted on; or these are
                pictures and the model needs tensors.

        Example:
            >>> half = (0.5, 0.5, 0.5)
            >>> plain = Preprocessing(size=8, mean=half, std=half, interpolation="bilinear")
            >>> open_data("builtin/digits").adapt_preprocessing(plain) == plain
            True
        """
        if not self.normalised:
            if preprocessing.prepared:
                check_prepared(preprocessing, preprocessed=False)
            if self.value_range is None or preprocessing.value_range is not None:
                return preprocessing
            return replace(preprocessing, value_range=self.value_range)
        if preprocessing.shape not in (None, self.prepared_shape):
            raise DataError(
                f"The tensors have shape {self.prepared_shape}, and the model was fitted on {preprocessing.shape}. "
                "Preprocess them with the same transform as the training images."
            )
        how = f": {'; '.join(self._outside)}" if self._outside else ""
        return replace(
            preprocessing, prepared=True, shape=self.prepared_shape, origin=f"the tensors were passed preprocessed{how}"
        )

    @property
    def prepared_shape(self) -> tuple[int, int]:
        """(H, W) of preprocessed tensors.

        Raises:
            DataError: They have several shapes.
        """
        counts = Counter(self._shapes)
        if len(counts) > 1:
            shapes = "; ".join(
                f"{number} of (3, {height}, {width}), e.g. {self.items[self._shapes.index((height, width))]}"
                for (height, width), number in counts.most_common(3)
            )
            raise DataError(f"Preprocessed tensors must all have one shape, got {shapes}. Resize them in the dataset.")
        return next(iter(counts))

    def pixels(self, index: int, preprocessing: Preprocessing) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
        """The image in the checkpoint's geometry, not normalised.

        Args:
            index: In [0, N).
            preprocessing: The checkpoint's.

        Returns:
            (3, S, S) uint8, resized and cropped; (V, 3, S, S) if the preprocessing has V views. If `normalised`:
            (3, H, W) float32, unchanged.

        Raises:
            DataError: The image was changed or removed since the audit.
        """
        if self.normalised:
            return self._reader.tensor(int(self._rows[index]))
        value_range = preprocessing.value_range or self.value_range
        return self._reader.pixels(int(self._rows[index]), preprocessing, value_range)

    def original(self, index: int) -> ImageFile | Image.Image:
        """The image as a person would pass it for a prediction: its file, or the picture where there is none."""
        if isinstance(self._reader, FileReader):
            return self._reader.paths[self._rows[index]]
        return self.image(index)

    def thumbnail(self, index: int, side: int = 96) -> Picture:
        """A JPEG for display, with a long side of `side` pixels."""
        image = self.image(index)
        scale = side / max(image.size)
        width, height = (max(1, round(extent * scale)) for extent in image.size)
        buffer = io.BytesIO()
        image.resize((width, height), Image.Resampling.LANCZOS).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
        return Picture(jpeg=buffer.getvalue(), item=self.items[index])


def open_data(
    data: Any,
    *,
    root: str | Path | None = None,
    columns: Mapping[str, Any] | None = None,
    task: str = "auto",
    seed: int = 0,
    val: float = 0.0,
    test: float | None = None,
    strict: bool = False,
    preprocessed: bool = False,
    progress: bool = True,
    max_pixels: int = MAX_PIXELS,
    cache: str | Path | None = None,
    value_range: tuple[float, float] | None = None,
    labels: str | Path | None = None,
    inspect: Inspect | None = None,
    trains: bool = True,
) -> Data:
    """Open labelled images from any source, and audit them.

    Given splits are kept unchanged. Without any, images are split class by class; groups and identical images stay
    together.

    Args:
        data: A folder (`ROOT/{train,val,test}/<class>/*`, `ROOT/<class>/{train,val,test}/*` or `ROOT/<class>/*`); a
            CSV, TSV or Parquet manifest with columns path, label and optionally split and group; shards: a folder of
            tar files, one of them, or a pattern such as "train-{000000..000099}.tar"; a map-style dataset of (image,
            label), or a mapping from split name to such datasets; a LightningDataModule; or "builtin/digits".
            Open `Data`, also inside a `TransferDataModule`, is returned unchanged, and the other arguments are ignored.
        root: Folder that a manifest's relative paths are relative to; None: the manifest's folder.
        columns: "path", "label", "split", "group" -> the manifest's name for it, if it differs; for "label" also a list
            of columns of 0 and 1, or of numbers.
        task: "single_label", "multi_label" (labels in one column separated by ;, or a column of 0 and 1 each),
            "regression" (numbers), or "auto": one class per image unless there are several columns of labels, or a
            dataset returns vectors that are not one-hot.
        seed: Determines the splits.
        val: Share of the training images to hold back for validation if there is no validation split, in [0, 1).
        test: Share of the training images to hold back for testing if there is no test split, in [0, 1). None: 0.2 if
            there are no splits at all; none, with a warning, if there are splits but no test images.
        strict: Whether an unusable image, or a file in a class folder that is not an image, is an error; else it is
            set aside, and the summary says so.
        preprocessed: Whether a dataset's float tensors are used unchanged.
        progress: Whether to show a progress bar on a terminal.
        max_pixels: Width times height above which an image is not decoded.
        cache: Folder where the audit caches its inspections, so that unchanged files are not read again; None uses
            `$TRANSFERKIT_CACHE` or the user's cache folder.
        value_range: (black, white) of images deeper than 8 bits, in stored units; None measures it on the training
            images.
        labels: Table of corrected labels of training and validation images, as `transferkit doctor labels` writes it:
            columns path, corrected (a class; drop removes the image) and label, which counts where corrected is empty.
        inspect: How files are inspected; None reads each that the audit does not remember.
        trains: Whether a model may be trained on them; else labels that are on all or none of them are no error.

    Returns:
        The usable images, with a summary that contains all findings.

    Raises:
        DataError: The data cannot be used; the message lists every problem with its remedy.
        OptionError: An argument has a value that cannot work.
        MissingDependencyError: A Parquet manifest without pyarrow.

    Example:
        >>> digits = open_data("builtin/digits", test=0.3)
        >>> digits
        Data(builtin/digits: 10 classes, 1258 train, 539 test)
        >>> digits.image(0).size
        (8, 8)
    """
    check_task(task)
    check_shares(val=val, test=DEFAULT_TEST if test is None else test)
    if max_pixels < 1:
        raise OptionError(f"max_pixels is a number of pixels and must be >= 1, got {max_pixels!r}.")
    opened = getattr(data, "data", data)
    if isinstance(opened, Data):  # a TransferDataModule's images are open already
        if labels is not None:
            raise OptionError("These images are open already: pass labels= where they are opened.")
        if task not in ("auto", opened.summary.task):
            raise OptionError(
                f"These images are open already, as task={opened.summary.task}, so task={task} is too late."
            )
        return opened
    corrections = None if labels is None else read_corrections(labels)
    inventory = _read_source(
        data,
        root=root,
        columns=columns,
        task=task,
        preprocessed=preprocessed,
        max_pixels=max_pixels,
        progress=progress,
        cache=None if cache is None else expand(cache),
        inspect=inspect,
    )
    if corrections is not None and inventory.targets is not None:
        raise OptionError(
            f"labels= corrects one class per image, and these have task={inventory.targets.task}. Leave it out."
        )
    report = audit(
        inventory,
        val=val,
        test=test,
        seed=seed,
        strict=strict,
        value_range=value_range,
        corrections=corrections,
        trains=trains,
    )
    return Data(inventory, report, normalised=preprocessed)


def _read_source(
    data: Any,
    *,
    root: str | Path | None,
    columns: Mapping[str, Any] | None,
    task: str,
    preprocessed: bool,
    max_pixels: int,
    progress: bool,
    cache: Path | None,
    inspect: Inspect | None,
) -> Inventory:
    """The inventory of any kind of source."""
    if isinstance(data, (str, Path)):
        if preprocessed:
            raise OptionError("preprocessed=True is for datasets that yield float tensors; files contain pixels.")
        if root is None and columns is None and is_builtin(data):
            if task in TARGET_TASKS:
                raise OptionError(f"{data} has one class per image, so task={task} does not fit. Leave task out.")
            return read_builtin(str(data), max_pixels=max_pixels, progress=progress)
        listing = list_source(data, root=root, columns=columns, cache=cache, task=task)
        return read_files(listing, max_pixels=max_pixels, progress=progress, cache=cache, inspect=inspect)
    if root is not None or columns is not None:
        raise OptionError(f"root and columns are for manifests only, got {type(data).__name__} as data.")
    parts, origin = _parts(data)
    return read_datasets(
        parts, origin=origin, preprocessed=preprocessed, max_pixels=max_pixels, progress=progress, task=task
    )


def _parts(data: Any) -> tuple[Mapping[str, Any], str]:
    """Split name -> dataset, and a phrase for where they come from."""
    if is_data_module(data):
        return module_datasets(data), type(data).__name__
    if isinstance(data, Mapping):
        return data, "datasets"
    if is_dataset(data) or hasattr(data, "__iter__"):  # an IterableDataset gets its own message later
        return {UNSPLIT: data}, type(data).__name__
    raise DataError(
        "Expected a folder, a manifest, a map-style dataset, a mapping from split to dataset, a LightningDataModule or "
        f"'builtin/digits', got {type(data).__name__}."
    )
