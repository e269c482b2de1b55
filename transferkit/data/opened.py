"""Any source of labelled images, opened: audited, split, and read image by image."""

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
from transferkit.core.file_kinds import is_text, kind_of, read_head
from transferkit.core.paths import expand
from transferkit.data.audit import AuditReport, audit
from transferkit.data.datasets import is_data_module, is_dataset, module_datasets, take_builtin, take_datasets
from transferkit.data.depth import Range
from transferkit.data.folders import take_folder
from transferkit.data.formats import is_image
from transferkit.data.geometry import to_pixels
from transferkit.data.inventory import UNSPLIT, Inventory, Reader
from transferkit.data.layouts import LAYOUTS
from transferkit.data.manifests import MANIFEST_EXTENSIONS, take_manifest
from transferkit.data.prepared import check_prepared
from transferkit.data.split_findings import DEFAULT_TEST
from transferkit.data.splits import check_shares
from transferkit.data.tables import CONVERT_JSON
from transferkit.options import MAX_PIXELS
from transferkit.records import DataSummary, Folds, Picture, Preprocessing

__all__ = ["Data", "check_place", "open_data"]

_JPEG_QUALITY = 85


class Data:
    """Labelled images after the audit: only usable ones are in it.

    Args:
        inventory: What the source listed.
        report: What the audit left of it.
        normalised: Whether `pixels` returns float32 tensors that are normalised already.

    Attributes:
        summary: `DataSummary`: counts, findings, how the splits came to be.
        items: N names for people.
        labels: (N,) int64 in [0, K).
        splits: (N,) of "train", "val", "test".
        content_ids: (N,) dtype "S32", hex digests of the images' contents.
        groups: (N,) int64; images of equal value must not be parted: equal or nearly equal content, or one group of the
            person's.
        normalised: Whether `pixels` returns float32 tensors that are normalised already.
        value_range: (black, white) of the images deeper than 8 bits, in stored units; None if there are none.
        thread_safe: Whether images may be read from several threads at once.
    """

    def __init__(self, inventory: Inventory, report: AuditReport, *, normalised: bool) -> None:
        rows = report.rows
        self.summary: DataSummary = report.summary
        self.items: tuple[str, ...] = tuple(inventory.names[row] for row in rows)
        self.labels: npt.NDArray[np.int64] = inventory.labels[rows]
        self.splits: npt.NDArray[np.str_] = report.splits
        self.content_ids: npt.NDArray[np.bytes_] = np.array(
            [inventory.inspections[row].content_id for row in rows], dtype="S32"
        )
        self.groups: npt.NDArray[np.int64] = report.groups
        self.normalised = normalised
        self.value_range: Range | None = None if normalised else report.value_range
        self._outside = inventory.outside
        looks = [inventory.inspections[row] for row in rows]
        self._shapes = [(look.height, look.width) for look in looks] if normalised else []
        self.thread_safe = inventory.reader.thread_safe
        self._sizes = np.array([(look.width, look.height) for look in inventory.inspections], dtype=np.int64)
        self._reader: Reader = inventory.reader
        self._rows = rows

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.summary.size(split)} {split}" for split in self.summary.counts)
        return f"Data({self.summary.origin}: {self.summary.num_classes} classes, {counts})"

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """(N, 2) width and height in pixels, as stored."""
        found: npt.NDArray[np.int64] = self._sizes[self._rows]
        return found

    @property
    def copies(self) -> npt.NDArray[np.int64]:
        """(N,) images of equal value have equal content; numbered by content, whatever the order of the files."""
        return np.unique(self.content_ids, return_inverse=True)[1].reshape(-1).astype(np.int64)

    @property
    def folds(self) -> Folds:
        """Which images are held back together in every estimate."""
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

    def fitted(self, preprocessing: Preprocessing) -> Preprocessing:
        """A checkpoint's preprocessing as it holds for these images: what a model made of them must keep.

        Returns:
            With the range of deep images, if it has none yet; of prepared tensors, that they are prepared, and their
            shape.

        Raises:
            DataError: Prepared tensors are of several shapes, or of another than
                the model was fitted on; or these are pictures and the model needs tensors.

        Example:
            >>> half = (0.5, 0.5, 0.5)
            >>> plain = Preprocessing(size=8, mean=half, std=half, interpolation="bilinear")
            >>> open_data("builtin/digits").fitted(plain) == plain
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
                "Prepare them with the transform that was used then."
            )
        how = f": {'; '.join(self._outside)}" if self._outside else ""
        return replace(
            preprocessing, prepared=True, shape=self.prepared_shape, origin=f"the tensors came prepared{how}"
        )

    @property
    def prepared_shape(self) -> tuple[int, int]:
        """(H, W) of prepared tensors.

        Raises:
            DataError: They are of several shapes.
        """
        counts = Counter(self._shapes)
        if len(counts) > 1:
            told = "; ".join(
                f"{number} of (3, {height}, {width}), e.g. {self.items[self._shapes.index((height, width))]}"
                for (height, width), number in counts.most_common(3)
            )
            raise DataError(f"Prepared tensors must all have one shape, got {told}. Resize them in the dataset.")
        return next(iter(counts))

    def pixels(self, index: int, preprocessing: Preprocessing) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
        """The image as the checkpoint wants it, but for normalisation.

        Args:
            index: In [0, N).
            preprocessing: The checkpoint's own.

        Returns:
            (3, S, S) uint8, resized and cropped; (V, 3, S, S) where the preprocessing has V views. If `normalised`:
            (3, H, W) float32, taken as it is.

        Raises:
            DataError: The image was changed or removed since the audit.
        """
        if self.normalised:
            return self._reader.tensor(int(self._rows[index]))
        value_range = preprocessing.value_range or self.value_range
        return to_pixels(self._reader.image(int(self._rows[index]), value_range), preprocessing)

    def thumbnail(self, index: int, side: int = 96) -> Picture:
        """A JPEG whose long side is `side` pixels, for people."""
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
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    val: float = 0.0,
    test: float | None = None,
    strict: bool = False,
    preprocessed: bool = False,
    progress: bool = True,
    max_pixels: int = MAX_PIXELS,
    cache: str | Path | None = None,
    value_range: tuple[float, float] | None = None,
) -> Data:
    """Open labelled images from any source, audited before any work.

    Official splits are kept as they are. Without any, images are split class by class; groups and identical images
    stay together.

    Args:
        data: A folder (`ROOT/{train,val,test}/<class>/*`, `ROOT/<class>/{train,val,test}/*` or `ROOT/<class>/*`); a
            CSV, TSV or Parquet manifest with columns path, label and maybe split and group; a map-style dataset of
            (image, label), or a mapping from split name to such datasets; a LightningDataModule; or "builtin/digits".
            What is opened already, also inside a `TransferDataModule`, stays as it is, and the other arguments are not
            looked at.
        root: Folder that a manifest's relative paths start from; None: the manifest's own.
        columns: "path", "label", "split", "group" -> what the manifest calls it, where it differs.
        seed: Draws the splits.
        val: Share of the training images to hold back for validation where there is no validation split, in [0, 1).
        test: Share of the training images to hold back for testing where there is no test split, in [0, 1). None: 0.2
            where there are no splits at all; nothing, and a warning, where there are splits but no test images.
        strict: Whether an image that cannot be used, or a file in a class folder that is none, is an error; else it is
            set aside, and the summary says so.
        preprocessed: Whether a dataset's float tensors are to be taken as they are.
        progress: Whether to show a bar, if on a terminal.
        max_pixels: Width times height above which an image is not decoded.
        cache: Folder where the audit remembers what it saw of image files, so that those that have not changed are not
            read again; None takes `$TRANSFERKIT_CACHE` or the user's cache folder.
        value_range: (black, white) of images deeper than 8 bits, in stored units; None measures it on the training
            images.

    Returns:
        The usable images, with a summary that holds all findings.

    Raises:
        DataError: The data cannot be used; the message lists every problem found, with its remedy.
        OptionError: An argument has a value that cannot work.
        MissingDependencyError: A Parquet manifest without pyarrow.

    Example:
        >>> digits = open_data("builtin/digits", test=0.3)
        >>> digits
        Data(builtin/digits: 10 classes, 1258 train, 539 test)
        >>> digits.image(0).size
        (8, 8)
    """
    check_shares(val=val, test=DEFAULT_TEST if test is None else test)
    if max_pixels < 1:
        raise OptionError(f"max_pixels is a number of pixels and must be >= 1, got {max_pixels!r}.")
    opened = getattr(data, "data", data)
    if isinstance(opened, Data):  # a TransferDataModule has opened its images already
        return opened
    inventory = _take(
        data,
        root=root,
        columns=columns,
        preprocessed=preprocessed,
        max_pixels=max_pixels,
        progress=progress,
        cache=None if cache is None else expand(cache),
    )
    report = audit(inventory, val=val, test=test, seed=seed, strict=strict, value_range=value_range)
    return Data(inventory, report, normalised=preprocessed)


def check_place(data: Any) -> None:
    """Whether there is anything where a path points; other kinds of data are not looked at.

    Raises:
        DataError: There is nothing.

    Example:
        >>> check_place("builtin/digits")
    """
    if not isinstance(data, (str, Path)):
        return
    _check_path(data)
    if expand(data).exists():
        return
    if isinstance(data, str) and data.startswith("builtin"):
        return
    what = "manifest" if expand(data).suffix.lower() in MANIFEST_EXTENSIONS else "folder"
    raise DataError(f"There is no {what} {str(data)!r}.{'' if what == 'manifest' else f' {LAYOUTS}'}")


def _check_path(data: str | Path) -> None:
    """Raise where a text is no path at all."""
    if isinstance(data, str) and not data.strip():
        raise OptionError(f"The path of the data is empty, got {data!r}. Pass a folder; '.' is the current one.")
    if "://" in str(data):
        raise OptionError(f"{str(data)!r} is an address. Download the images, and pass the folder that they are in.")


def _take(
    data: Any,
    *,
    root: str | Path | None,
    columns: Mapping[str, str] | None,
    preprocessed: bool,
    max_pixels: int,
    progress: bool,
    cache: Path | None,
) -> Inventory:
    """The inventory of whatever `data` is."""
    if isinstance(data, (str, Path)):
        if preprocessed:
            raise OptionError("preprocessed=True is for datasets that yield float tensors; files hold pixels.")
        return _take_named(data, root=root, columns=columns, max_pixels=max_pixels, progress=progress, cache=cache)
    if root is not None or columns is not None:
        raise OptionError(f"root and columns belong to a manifest, got {type(data).__name__} as data.")
    parts, origin = _parts(data)
    return take_datasets(parts, origin=origin, preprocessed=preprocessed, max_pixels=max_pixels, progress=progress)


def _take_named(
    data: str | Path,
    *,
    root: str | Path | None,
    columns: Mapping[str, str] | None,
    max_pixels: int,
    progress: bool,
    cache: Path | None,
) -> Inventory:
    _check_path(data)
    path = expand(data)
    if path.suffix.lower() in MANIFEST_EXTENSIONS and not path.is_dir():
        base = None if root is None else expand(root)
        return take_manifest(path, root=base, columns=columns, max_pixels=max_pixels, progress=progress, cache=cache)
    if root is not None or columns is not None:
        raise OptionError(f"root and columns belong to a manifest, got {str(data)!r} as data.")
    if isinstance(data, str) and data.startswith("builtin") and not path.exists():
        return take_builtin(data, max_pixels=max_pixels, progress=progress)
    if path.is_file():
        raise DataError(_no_source(data, path))
    return take_folder(path, max_pixels=max_pixels, progress=progress, cache=cache)


def _no_source(data: str | Path, path: Path) -> str:
    """The message for a file that is no manifest: what it is, and the next step."""
    head = read_head(path)
    known = ", ".join(MANIFEST_EXTENSIONS)
    if (kind := kind_of(head)) is not None:
        return f"{str(data)!r} is {kind.name}. {kind.remedy}; images come in a folder or in a manifest ({known})."
    if is_image(path):
        return f"{str(data)!r} is one image; expected a folder of them, or a manifest ({known}). {LAYOUTS}"
    if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        return f"{str(data)!r} holds JSON; manifests are {known}. {CONVERT_JSON}"
    if is_text(head):
        return (
            f"{str(data)!r} is a text file, and manifests are {known}. If it is a table with a line of names above, "
            "such as path,label, call it .csv; its cells may be apart by commas, semicolons, tabs or bars."
        )
    return f"{str(data)!r} is a file but no manifest; expected {known}, or a folder. {LAYOUTS}"


def _parts(data: Any) -> tuple[Mapping[str, Any], str]:
    """Split name -> dataset, and a phrase for where they come from."""
    if is_data_module(data):
        return module_datasets(data), type(data).__name__
    if isinstance(data, Mapping):
        return data, "datasets"
    if is_dataset(data) or hasattr(data, "__iter__"):  # an IterableDataset has its own message further on
        return {UNSPLIT: data}, type(data).__name__
    raise DataError(
        "Expected a folder, a manifest, a map-style dataset, a mapping from split to dataset, a LightningDataModule or "
        f"'builtin/digits', got {type(data).__name__}."
    )
