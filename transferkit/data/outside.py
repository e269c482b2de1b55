"""What a dataset does to its images before anybody sees them: no part of the model that is saved, so it is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from transferkit.data.arrays import as_rgb
from transferkit.records import Finding

__all__ = ["outside_steps", "tell_steps"]

CONVERSIONS = frozenset(
    {"ToTensor", "PILToTensor", "ToImage", "ToPILImage", "ToDtype", "ConvertImageDtype", "ToPureTensor", "Identity"}
)
"""Transforms that change the form of an image and nothing that is seen in it."""

_LONGEST = 120


def outside_steps(dataset: Any) -> tuple[str, ...]:
    """What a dataset does that changes its pictures, in words; through subsets and joined datasets.

    Only what is kept as `.transform`, `.transforms` or `.loader`, as torchvision does, can be seen; a loader is
    tried on a few files.

    Example:
        >>> class Shrinking:
        ...     transform = staticmethod(lambda image: image.resize((8, 8)))
        >>> outside_steps(Shrinking())
        ('<lambda>',)
    """
    return tuple(dict.fromkeys(_described(step) for step in _transforms(dataset, depth=0)))


def _transforms(dataset: Any, *, depth: int) -> Iterator[Any]:
    if dataset is None or depth > 8:  # a wrapper may well hold itself
        return
    inner = getattr(dataset, "dataset", None)
    joined = getattr(dataset, "datasets", None)
    for part in (inner, *(joined if isinstance(joined, (list, tuple)) else ())):
        yield from _transforms(part, depth=depth + 1)
    if _loads_otherwise(dataset):
        yield dataset.loader
    own: Any = getattr(dataset, "transform", None) or getattr(dataset, "transforms", None)
    if type(own).__name__ == "StandardTransform":  # torchvision's pair of one for images and one for labels
        own = own.transform
    yield from (step for step in _steps(own) if type(step).__name__ not in CONVERSIONS)


def _steps(transform: Any) -> Iterator[Any]:
    """A transform taken apart, if it is a list of others."""
    inner = getattr(transform, "transforms", None)
    if isinstance(transform, (list, tuple)):
        parts: Sequence[Any] = transform
    elif type(transform).__name__ in ("Compose", "Sequential"):
        parts = list(inner) if isinstance(inner, (list, tuple)) else list(transform.children())
    elif callable(transform):
        yield transform
        return
    else:
        return
    for part in parts:
        yield from _steps(part)


def tell_clipping(datasets: Sequence[Any]) -> list[Finding]:
    """The warning for torchvision's folder datasets over files deeper than 8 bits: their loader clips at 255."""
    files = [file for dataset in datasets for file in _files_read_by_torchvision(dataset, depth=0)]
    deep = [str(file) for file in files if _is_deep(file)]
    if not deep:
        return []
    message = (
        f"The dataset's own loader clips images deeper than 8 bits at 255 (e.g. {deep[0]}), which leaves little or "
        "nothing of them. Give the folder itself in place of the dataset: its range of values is measured then."
    )
    return [Finding(kind="clipped", severity="warning", message=message, items=tuple(deep))]


def _files_read_by_torchvision(dataset: Any, *, depth: int) -> Iterator[Any]:
    """A few of the files behind an ImageFolder that opens them by the default, wherever it is wrapped."""
    if dataset is None or depth > 8:
        return
    joined = getattr(dataset, "datasets", None)
    for part in (getattr(dataset, "dataset", None), *(joined if isinstance(joined, (list, tuple)) else ())):
        yield from _files_read_by_torchvision(part, depth=depth + 1)
    samples, loader = getattr(dataset, "samples", None), getattr(dataset, "loader", None)
    if isinstance(samples, list) and getattr(loader, "__name__", "") in _KNOWN_LOADERS:
        spread = samples[:: max(1, len(samples) // _LOOKED_AT)][:_LOOKED_AT]
        yield from (sample[0] for sample in spread if isinstance(sample, (tuple, list)) and len(sample) == 2)


def _loads_otherwise(dataset: Any) -> bool:
    """Whether a loader of a person's own makes other pictures of the files than are in them."""
    samples, loader = getattr(dataset, "samples", None), getattr(dataset, "loader", None)
    if not isinstance(samples, list) or not callable(loader) or getattr(loader, "__name__", "") in _KNOWN_LOADERS:
        return False
    spread = samples[:: max(1, len(samples) // _LOADED)][:_LOADED]
    return any(_differs(loader, sample[0]) for sample in spread if isinstance(sample, (tuple, list)) and sample)


def _differs(loader: Any, file: Any) -> bool:
    try:
        with Image.open(file) as image:
            if image.mode not in ("L", "RGB") or "transparency" in image.info:
                return False
            stored = [image.convert("RGB"), ImageOps.exif_transpose(image).convert("RGB")]
        got = loader(file)
        loaded = got.convert("RGB") if isinstance(got, Image.Image) else as_rgb(got, name=str(file))
    except Exception:  # what is wrong with a file, or comes out of a loader, is told where it is read
        return False
    return not any(_alike(loaded, one) for one in stored)


def _alike(one: Image.Image, other: Image.Image) -> bool:
    """Whether two RGB pictures are the same but for what decoders differ in."""
    if one.size != other.size:
        return False
    first, second = (np.asarray(image, dtype=np.int16) for image in (one, other))
    return float(np.abs(first - second).mean()) < _DECODERS_DIFFER


def _is_deep(file: Any) -> bool:
    try:
        with Image.open(file) as image:
            return image.mode == "F" or image.mode.startswith("I")
    except Exception:  # what is wrong with a file is told where it is read
        return False


_KNOWN_LOADERS = ("default_loader", "pil_loader")

_LOADED = 4
"""Files that a loader is tried on."""

_DECODERS_DIFFER = 2.0
"""Mean difference in grey levels of 255: decoders of JPEG differ by less than one."""

_LOOKED_AT = 8
"""Files whose header is read to notice it."""


def _described(step: Any) -> str:
    if isinstance(step, type) or not hasattr(step, "__name__"):
        text = " ".join(repr(step).split())
        plain = text if text.startswith(type(step).__name__) else type(step).__name__
        return plain if len(plain) <= _LONGEST else f"{type(step).__name__}(...)"
    return str(step.__name__)


def tell_steps(steps: Sequence[str], *, prepared: bool) -> list[Finding]:
    """What follows from them.

    Args:
        steps: Of `outside_steps`.
        prepared: Whether the tensors are taken as they are.
    """
    listed = "; ".join(steps)
    if prepared:
        how = f" ({listed})" if listed else ""
        message = (
            f"The tensors are taken as they are; what was done to them outside{how} is not saved with the model. What "
            "is predicted must be prepared in the same way: predict(tensors, preprocessed=True)."
        )
        return [Finding(kind="prepared", severity="info", message=message, items=tuple(steps))]
    if not steps:
        return []
    message = (
        f"The dataset changes its images before they are seen here: {listed}. That is not saved with the model, and "
        "predict does none of it. Leave these steps out (images are resized and normalised as the checkpoint wants), "
        "or take what you predict through them as well."
    )
    return [Finding(kind="outside_transform", severity="warning", message=message, items=tuple(steps))]
