"""`analyze` and `rank`: what the frozen pass says, nothing trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from transferkit.core.provenance import quote_call
from transferkit.options import MAX_PIXELS, PassOptions, documents, options_from
from transferkit.records import Evidence, Preprocessing, Ranking
from transferkit.workflow.checks import check_pass
from transferkit.workflow.rank import rank_backbones
from transferkit.workflow.session import open_session

__all__ = ["analyze", "rank"]


@documents(PassOptions)
def analyze(
    model: str | nn.Module,
    data: Any,
    *,
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
) -> Evidence:
    """Measure how well each stage of a backbone separates your classes: one frozen pass, nothing trained.

    Args:
        model: As for `load_backbone`.
        data: A folder, a manifest, shards, a dataset, a LightningDataModule, or "builtin/digits".
        {options}

    Raises:
        TransferkitError: One of its kinds, saying what to do.

    Example:
        >>> evidence = analyze("packaged/tf_efficientnet_lite0", "builtin/digits", image_size=32)  # doctest: +SKIP
        >>> evidence.probe("joined").accuracy > evidence.probe("top").accuracy  # doctest: +SKIP
        True
    """
    options = options_from(PassOptions, locals())
    check_pass(options)
    return open_session(model, data, options).measured.evidence


@documents(PassOptions)
def rank(
    models: Sequence[str | nn.Module] | str,
    data: Any,
    *,
    image_size: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
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
) -> Ranking:
    """Rank backbones by the held-back accuracy of a closed-form probe on all their stages joined.

    Beside it stand the other measures of transferability, what each model costs, and a prior that has not seen the
    data. Only the training split is used. What was computed is in the feature bank: the same call again, or
    `adapt` with the winner, runs the backbone over no image twice.

    Args:
        models: Names or modules, as for `load_backbone`; a name with * in it stands for all models of the zoo that it
            matches and whose weights are on this machine ("packaged/*").
        data: As for `analyze`; it is opened and audited once for all.
        {options}
        command: What to quote as the way to run this again; None composes the Python call.

    Returns:
        Best first. A model that cannot be loaded or run is listed as left out, with the reason.

    Raises:
        OptionError: No model is named, or a pattern matches none.
        BackboneError: Not one of the models could be ranked.
        TransferkitError: Another of its kinds, saying what to do.

    Comparable:
        Accuracies between models on the same images. The interval of a rank covers other images of the same kind, but
        neither what fine-tuning would change nor the luck in choosing the training images.

    Example:
        >>> found = rank("packaged/*", "builtin/digits", image_size=96)  # doctest: +SKIP
        >>> found.best.name, found.best.rank_low, found.best.rank_high  # doctest: +SKIP
        ('packaged/tf_efficientnet_lite1', 1, 2)
    """
    given = dict(locals())
    options = options_from(PassOptions, given)
    check_pass(options)
    return rank_backbones(models, data, options, command=command or quote_call(rank, given))
