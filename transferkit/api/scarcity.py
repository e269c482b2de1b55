"""`fewshot` and `add_class`: what can be had from a few labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from transferkit.core.provenance import quote_call
from transferkit.options import MAX_PIXELS, documents, options_from
from transferkit.records import FewShotRecord, Preprocessing
from transferkit.result import Result
from transferkit.scarce.few_shot_options import FewShotOptions
from transferkit.workflow.checks import check_arguments

__all__ = ["add_class", "check_fewshot", "fewshot"]


@documents(FewShotOptions)
def fewshot(
    model: str | nn.Module,
    data: Any,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    episodes: int = 600,
    method: str | Sequence[str] = "auto",
    prior: Any = None,
    imbalance: float | None = None,
    transductive: bool = False,
    image_size: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    pretrained: bool = True,
    preprocessing: Preprocessing | None = None,
    root: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    labels: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
    val: float = 0.0,
    test: float | None = None,
    strict: bool = False,
    preprocessed: bool = False,
    geometry: str = "auto",
    views: str | int | Sequence[str] = "auto",
    pooling: str = "avg+max",
    cache: str | Path | None = None,
    cache_limit: float | None = None,
    device: str = "auto",
    engine: str = "auto",
    progress: bool = True,
    command: str | None = None,
) -> FewShotRecord:
    """Measure what a few labelled images per class are worth: many small tasks drawn from your images, no training.

    Test images are not used. `views="auto"` averages crop, squash, zoom and wide.

    Args:
        model: As for `load_backbone`.
        data: As for `analyze`.
        {options}
        command: What to quote as the way to run this again; None composes the Python call.

    Returns:
        Accuracy of each method with its 95 % interval over episodes.

    Raises:
        DataError: Too few classes have enough images for such episodes.
        TransferkitError: Another of its kinds, saying what to do.

    Example:
        >>> found = fewshot("packaged/tf_efficientnet_lite0", "builtin/digits", image_size=96)  # doctest: +SKIP
        >>> found.best.method, round(found.best.accuracy, 3)  # doctest: +SKIP
        ('nearest_mean', 0.618)
    """
    given = dict(locals())
    check_fewshot(given)
    from transferkit.scarce.few_shot import measure_few_shot

    options = options_from(FewShotOptions, given)
    return measure_few_shot(model, data, options, command=command or quote_call(fewshot, given))


def check_fewshot(arguments: Mapping[str, Any]) -> None:
    """Whether `fewshot` can work with these arguments, as far as that is known before any work.

    Args:
        arguments: Name -> value; what is missing has its default.

    Raises:
        TransferkitError: Something is wrong; all that is wrong is in the message.
    """
    check_arguments(arguments, fits=False)
    options_from(FewShotOptions, arguments)


def add_class(
    result: Result,
    name: str,
    images: Any,
    *,
    old_images: Any = None,
    cache: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """A finished run with one more class, learnt from one image or more; nothing is trained.

    The classifier gets one more row; the others stay as they are. Images around the new ones are made up by the spread
    of the other classes, and the row is fitted to tell these from the other classes' images. That needs images of the
    other classes: the run's own training images where they are still where they were, or `old_images`.

    Args:
        result: A finished run.
        name: Of the new class.
        images: Of it, as for `Result.predict`; what cannot be read is an error.
        old_images: Images of the other classes, as `data` for `adapt`, if the run's own are gone; their labels must be
            known classes.
        cache: Folder of the feature bank; None is the default one.
        device: "auto", "cpu", "cuda", ...
        seed: Of the images that are made up.
        progress: Show bars on a terminal.

    Returns:
        A new `Result`; `record.added` says what the class costs the others. Metrics are those on the old classes'
        held-out images, with the new class as a further answer.

    Raises:
        OptionError: There is such a class already, or the name is empty.
        DataError: An image cannot be read, or there are no images of the other classes.

    Example:
        >>> bigger = add_class(load("runs/x"), "okapi", "okapi.jpg")  # doctest: +SKIP
        >>> bigger.record.added[-1].sentence  # doctest: +SKIP
    """
    from transferkit.scarce.adding import add_class as add

    return add(result, name, images, old_images=old_images, cache=cache, device=device, seed=seed, progress=progress)
