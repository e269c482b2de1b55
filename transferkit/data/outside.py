"""A dataset's own transforms: they are not saved with the model, so findings list them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from transferkit.data.arrays import as_rgb
from transferkit.records import Finding

__all__ = ["clipping_findings", "outside_steps", "step_findings"]

CONVERSIONS = frozenset(
    {"ToTensor", "PILToTensor", "ToImage", "ToPILImage", "ToDtype", "ConvertImageDtype", "ToPureTensor", "Identity"}
)
"""Transforms that change only the type of an image, not its content."""

_LONGEST = 120


def outside_steps(dataset: Any) -> tuple[str, ...]:
    """Descriptions of a dataset's own transforms that change its pictures, also inside subsets and concatenations.

    Finds only those in `.transform`, `.transforms` or `.loader`, as in torchvision; a loader is tested on a few files.

    Example:
        >>> class Shrinking:
        ...     transform = staticmethod(lambda image: image.resize((8, 8)))
        >>> outside_steps(Shrinking())
        ('<lambda>',)
    """
    return tuple(dict.fromkeys(_described(step) for step in _transforms(dataset, depth=0)))


def _transforms(dataset: Any, *, depth: int) -> Iterator[Any]:
    if dataset is None or depth > 8:  # a wrapper may contain itself
        return
    inner = getattr(dataset, "dataset", None)
    joined = getattr(dataset, "datasets", None)
    for part in (inner, *(joined if isinstance(joined, (list, tuple)) else ())):
        yield from _transforms(part, depth=depth + 1)
    if _loads_otherwise(dataset):
        yield dataset.loader
    own: Any = getattr(dataset, "transform", None) or getattr(dataset, "transforms", None)
    if type(own).__name__ == "StandardTransform":  # torchvision's pair of transforms, for images and labels
        own = own.transform
    yield from (step for step in _steps(own) if type(step).__name__ not in CONVERSIONS)


def _steps(transform: Any) -> Iterator[Any]:
    """The steps of a transform that is composed of others, else the transform itself."""
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


def clipping_findings(datasets: Sequence[Any]) -> list[Finding]:
    """The warning for torchvision's folder datasets with files deeper than 8 bits: their loader clips at 255."""
    files = [file for dataset in datasets for file in _files_read_by_torchvision(dataset, depth=0)]
    deep = [str(file) for file in files if _is_deep(file)]
    if not deep:
        return []
    message = (
        f"The dataset's own loader clips images deeper than 8 bits at 255 (e.g. {deep[0]}), which destroys most "
        "of their content. Pass the folder instead of the dataset: its range of values is then measured."
    )
    return [Finding(kind="clipped", severity="warning", message=message, items=tuple(deep))]


def _files_read_by_torchvision(dataset: Any, *, depth: int) -> Iterator[Any]:
    """A few of the files of an ImageFolder with the default loader, also inside wrappers."""
    if dataset is None or depth > 8:
        return
    joined = getattr(dataset, "datasets", None)
    for part in (getattr(dataset, "dataset", None), *(joined if isinstance(joined, (list, tuple)) else ())):
        yield from _files_read_by_torchvision(part, depth=depth + 1)
    samples, loader = getattr(dataset, "samples", None), getattr(dataset, "loader", None)
    if isinstance(samples, list) and getattr(loader, "__name__", "") in _KNOWN_LOADERS:
        spread = samples[:: max(1, len(samples) // _HEADERS_READ)][:_HEADERS_READ]
        yield from (sample[0] for sample in spread if isinstance(sample, (tuple, list)) and len(sample) == 2)


def _loads_otherwise(dataset: Any) -> bool:
    """Whether a custom loader returns pictures that differ from the files' content."""
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
    except Exception:  # faults of a file or a loader are reported when it is read
        return False
    return not any(_alike(loaded, one) for one in stored)


def _alike(one: Image.Image, other: Image.Image) -> bool:
    """Whether two RGB pictures are equal up to differences between decoders."""
    if one.size != other.size:
        return False
    first, second = (np.asarray(image, dtype=np.int16) for image in (one, other))
    return float(np.abs(first - second).mean()) < _DECODERS_DIFFER


def _is_deep(file: Any) -> bool:
    try:
        with Image.open(file) as image:
            return image.mode == "F" or image.mode.startswith("I")
    except Exception:  # faults of a file are reported when it is read
        return False


_KNOWN_LOADERS = ("default_loader", "pil_loader")

_LOADED = 4
"""Number of files that a loader is tested on."""

_DECODERS_DIFFER = 2.0
"""Mean difference in grey levels out of 255: JPEG decoders differ by less than one."""

_HEADERS_READ = 8
"""Number of files whose header is checked for depth."""


def _described(step: Any) -> str:
    if isinstance(step, type) or not hasattr(step, "__name__"):
        text = " ".join(repr(step).split())
        plain = text if text.startswith(type(step).__name__) else type(step).__name__
        return plain if len(plain) <= _LONGEST else f"{type(step).__name__}(...)"
    return str(step.__name__)


def step_findings(steps: Sequence[str], *, prepared: bool) -> list[Finding]:
    """Findings about a dataset's own transforms.

    Args:
        steps: From `outside_steps`.
        prepared: Whether the tensors are used unchanged.
    """
    listed = "; ".join(steps)
    if prepared:
        how = f" ({listed})" if listed else ""
        message = (
            f"The tensors are used unchanged; their preprocessing{how} is not saved with the model. Preprocess new "
            "images in the same way: predict(tensors, preprocessed=True)."
        )
        return [Finding(kind="prepared", severity="info", message=message, items=tuple(steps))]
    if not steps:
        return []
    message = (
        f"The dataset applies its own transforms: {listed}. They are not saved with the model, and predict does not "
        "apply them. Remove these steps (images are resized and normalised for the checkpoint), or apply them to the "
        "images you predict as well."
    )
    return [Finding(kind="outside_transform", severity="warning", message=message, items=tuple(steps))]
