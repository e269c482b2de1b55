"""Labels that are probably wrong, found without training anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from transferkit.core.limits import check_limit
from transferkit.core.provenance import quote_call
from transferkit.options import MAX_PIXELS, PassOptions, documents, options_from
from transferkit.records import LabelReview, Preprocessing

__all__ = ["review_labels"]


@documents(PassOptions)
def review_labels(
    model: str | nn.Module,
    data: Any,
    *,
    limit: int = 1000,
    image_size: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    pretrained: bool = True,
    preprocessing: Preprocessing | None = None,
    root: str | Path | None = None,
    columns: Mapping[str, Any] | None = None,
    task: str = "auto",
    labels: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
    val: float = 0.0,
    test: float | None = None,
    strict: bool = False,
    preprocessed: bool = False,
    geometry: str = "auto",
    views: str | int | Sequence[str] = "auto",
    pooling: str = "avg+max",
    class_weight: str = "none",
    similarity: float | None = None,
    source: Any = None,
    cache: str | Path | None = None,
    cache_limit: float | None = None,
    device: str = "auto",
    engine: str = "auto",
    progress: bool = True,
    command: str | None = None,
) -> LabelReview:
    """Training and validation images that look more like another class than like their own, worst first.

    It costs what `analyze` does and a second: a closed-form probe gives every image the scores of a fit without it.
    Test images are neither run nor listed.

    Args:
        model, data: As for `analyze`.
        limit: Images to list at most, >= 1.
        {options}
        command: What to quote as the way to do this again; None composes the Python call.

    Returns:
        The list with thumbnails; its `to_csv()`, with the column `corrected` filled in, is what `labels=` takes.

    Raises:
        TransferkitError: One of its kinds, saying what to do.

    Example:
        >>> review = review_labels("packaged/tf_efficientnet_lite0", "DIR", image_size=96)  # doctest: +SKIP
        >>> review.sentences[0]  # doctest: +SKIP
        '12 of 347 images look more like another class than like their own, ...; 9 of these are likely label errors.'
    """
    given = dict(locals())
    from transferkit.workflow.checks import check_pass  # here, so that the checks of a loop of your own stay light
    from transferkit.workflow.label_review import review_session
    from transferkit.workflow.session import open_session

    check_limit(limit)
    options = options_from(PassOptions, given)
    check_pass(options)
    command = command or quote_call(review_labels, given, home="transferkit.doctor")
    return review_session(
        open_session(model, data, options, needs_classes="doctor labels"), limit=limit, command=command
    )
