"""`tune`: a search of hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from transferkit.core.provenance import quote_call
from transferkit.doctor.segment_reading import read_segment
from transferkit.doctor.watching import watch_fits
from transferkit.options import MAX_PIXELS, Recipe, documents, options_from
from transferkit.records import Preprocessing, TuningRecord
from transferkit.tuning.points import check_search
from transferkit.tuning.search_options import TuneOptions
from transferkit.workflow.checks import check_arguments

__all__ = ["check_tune", "tune"]


@documents(TuneOptions)
def tune(
    model: str | nn.Module,
    data: Any,
    *,
    style: str = "auto",
    retest: bool = False,
    space: Mapping[str, Any] | None = None,
    sampler: str = "auto",
    pruner: str = "none",
    warm_start: bool = True,
    trials: int = 30,
    seconds: float | None = None,
    storage: str | None = None,
    study: str = "transferkit",
    workers: int = 1,
    launcher: str = "local",
    strategy: str = "auto",
    stage: str | int | None = None,
    unfreeze: int | str | Sequence[str] | None = None,
    norm: str = "auto",
    image_size: int | None = None,
    batch_size: int | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    head: str = "auto",
    train: Recipe | Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
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
    cache: str | Path | None = None,
    cache_limit: float | None = None,
    device: str = "auto",
    engine: str = "auto",
    progress: bool = True,
    command: str | None = None,
) -> TuningRecord:
    """Search the hyperparameters of fine-tuning by held-back accuracy; the test images are never looked at.

    Trials share the frozen pass, the feature bank and cached activations. A search that was interrupted goes on where
    it stopped if it has a storage; several processes, on several machines, may work on one study.

    Args:
        model, data: As for `adapt`.
        {options}
        command: What to quote as the way to run this again; None composes the Python call.

    Returns:
        All trials or interventions, and the best settings: `adapt(model, data, **found.settings)` trains with them.

    Raises:
        OptionError: Something cannot be searched like this.
        TransferkitError: Another of its kinds.

    Example:
        >>> found = tune("packaged/tf_efficientnet_lite0", "builtin/digits", image_size=64)  # doctest: +SKIP
        >>> result = adapt("packaged/tf_efficientnet_lite0", "builtin/digits", **found.settings)  # doctest: +SKIP
    """
    given = dict(locals())
    check_tune(given)
    from transferkit.tuning.tuner import run_search

    options = options_from(TuneOptions, given)
    return run_search(
        model, data, options, watch=watch_fits, read=read_segment, command=command or quote_call(tune, given)
    )


def check_tune(arguments: Mapping[str, Any]) -> None:
    """Whether `tune` can work with these arguments, as far as that is known before any work.

    Args:
        arguments: Name -> value; what is missing has its default.

    Raises:
        TransferkitError: Something is wrong; all that is wrong is in the message.
    """
    check_arguments(arguments, fits=True)
    check_search(options_from(TuneOptions, arguments))
