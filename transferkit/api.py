"""The road from a backbone and images to a trained model, readable in one screen."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from transferkit.core.distributed import is_first
from transferkit.core.errors import OptionError, unknown_name
from transferkit.core.paths import expand
from transferkit.core.progress import announce
from transferkit.core.provenance import describe_settings, environment, quote_call
from transferkit.core.renaming import renamed
from transferkit.core.timing import timed
from transferkit.decision import complete, conclude
from transferkit.doctor.monitor_reading import diagnose_training
from transferkit.doctor.segment_reading import read_segment
from transferkit.doctor.watching import watch_fits
from transferkit.features import choose_device
from transferkit.options import MAX_PIXELS, AdaptOptions, PassOptions, Recipe, documents, options_from
from transferkit.records import Decision, DryRun, Evidence, Preprocessing, Ranking, TuningRecord
from transferkit.result import Predictions, Result, check_replaceable, load
from transferkit.result.run_record import record_run
from transferkit.tuning.points import check_search
from transferkit.tuning.search_options import TuneOptions
from transferkit.workflow.checks import check_arguments, check_clocks, check_fit, check_pass
from transferkit.workflow.decide import check_stages, choose_strategy, conditions_for, decide_session
from transferkit.workflow.fit import fit_decision
from transferkit.workflow.label_review import likely_label_errors
from transferkit.workflow.rank import rank_backbones
from transferkit.workflow.score import score_splits
from transferkit.workflow.session import load_backbone, open_session
from transferkit.workflow.training_folder import clear_checkpoints

__all__ = [
    "Predictions",
    "Result",
    "adapt",
    "analyze",
    "check_adapt",
    "decide",
    "dry_run",
    "load",
    "load_backbone",
    "rank",
    "tune",
]


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


@renamed
@documents(AdaptOptions)
def decide(
    evidence: Evidence,
    *,
    strategy: str = "auto",
    stage: str | int | None = None,
    unfreeze: int | str | Sequence[str] | None = None,
    mode: str = "evidence",
    norm: str = "auto",
    batch_size: int | None = None,
    budget: float | str | None = None,
    train: Recipe | Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    device: str = "auto",
    engine: str = "auto",
) -> Decision:
    """What `adapt` would do with the same arguments: strategy, stage, learning rate, normalisation, and why.

    Only what training alone can show is missing: a learning rate found by trying, a swap of normalisation that makes
    features worse, and the accuracy of the fitted model on held-back images.

    Args:
        evidence: What `analyze` measured; `mode="rule"` needs its `similarity`.
        {options}

    Raises:
        OptionError: An option is unknown, contradicts another, or needs the images (`mode="search"`).

    Example:
        >>> evidence = analyze("packaged/tf_efficientnet_lite0", "builtin/digits", image_size=32)  # doctest: +SKIP
        >>> decide(evidence, strategy="lp_ft", train={"lr": 1e-4}).lr  # doctest: +SKIP
        0.0001
    """
    options = options_from(AdaptOptions, locals())
    if mode == "search":
        raise OptionError("mode=search trains, which needs the images: use adapt. decide knows mode=evidence and rule.")
    check_fit(options)
    return complete(choose_strategy(evidence, options), evidence, conditions_for(evidence, options))


@renamed
@documents(AdaptOptions)
def adapt(
    model: str | nn.Module,
    data: Any,
    *,
    strategy: str = "auto",
    stage: str | int | None = None,
    unfreeze: int | str | Sequence[str] | None = None,
    mode: str = "evidence",
    norm: str = "auto",
    image_size: int | None = None,
    batch_size: int | None = None,
    budget: float | str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    head: str = "auto",
    train: Recipe | Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    resume: bool | str = "auto",
    overwrite: bool = False,
    evaluate: bool | str = "auto",
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
    class_weight: str = "none",
    similarity: float | None = None,
    source: Any = None,
    cache: str | Path | None = None,
    cache_limit: float | None = None,
    device: str = "auto",
    engine: str = "auto",
    progress: bool = True,
    command: str | None = None,
) -> Result:
    """Measure, decide, train, verify: a classifier for your images from a pretrained backbone.

    Args:
        model, data: As for `analyze`.
        {options}
        command: What to quote in the report as the way to run this again; None composes the Python call.

    Returns:
        The model and all that is known about it. Nothing in it was chosen on the test split.

    Raises:
        TransferkitError: One of its kinds, saying what to do.

    Example:
        >>> result = adapt("packaged/tf_efficientnet_lite0", "builtin/digits", image_size=96)  # doctest: +SKIP
        >>> result.metrics["test"].accuracy > 0.97  # doctest: +SKIP
        True
    """
    given = dict(locals())
    announce(check_adapt(given), enabled=progress)
    options = options_from(AdaptOptions, given)
    check_clocks(options)
    session = open_session(
        model,
        data,
        options,
        budget=options.budget_seconds,
        trains=strategy != "linear_probe",
        check=lambda backbone: check_stages(backbone, options),
    )
    watch = watch_fits(options.recipe.monitor)
    decided = decide_session(session, options, watch=watch)
    fitted = fit_decision(decided.session, decided.decision, options, begun=decided.begun, watch=watch)
    session, training = decided.session, fitted.training
    if training is not None:
        classes = len(session.data.summary.classes)
        training = diagnose_training(training, classes=classes, folder="" if out is None else str(expand(out)))
    decision = conclude(
        decided.decision,
        session.measured.evidence,
        fitted.held_back,
        lr_factor=1.0 if training is None else training.lr_factor,
        reasons=fitted.reasons,
    )
    with timed(session.seconds, "verify"):
        answers = score_splits(session, fitted, ("val",) if evaluate is False else ("val", "test"))
    given["train"] = options.recipe.changed
    record = record_run(
        session.data,
        session.measured.evidence,
        decision,
        answers=answers,
        training=training,
        label_errors=likely_label_errors(session),
        held_back_accuracy=fitted.held_back.accuracy,
        seconds=session.seconds,
        environment=environment(seed=seed, device=str(choose_device(device))),
        command=command or quote_call(adapt, given),
        settings=describe_settings(adapt, given),
    )
    result = Result(fitted.model, record)
    if out is not None and is_first():
        result.save(out, overwrite=True)  # whether that is wanted was asked before the work
        clear_checkpoints(expand(out))
    return result


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


def dry_run(verb: str, arguments: Mapping[str, Any]) -> DryRun:
    """What `adapt`, `analyze`, `rank` or `tune` would do with these arguments, and what that would cost.

    Nothing is trained, downloaded or written; a few batches are timed, unless an earlier run has timed them here.

    Args:
        verb: "adapt", "analyze", "rank" or "tune".
        arguments: Name -> value, those of the function; what is missing has its default. `out` also with "analyze" and
            "rank": the folder that the command line would write to.

    Raises:
        OptionError: There is no such verb or argument, or one that it needs is missing.
        TransferkitError: What the function would raise before its work.

    Example:
        >>> plan = dry_run("adapt", {"model": "packaged/tf_efficientnet_lite0", "data": "DIR"})  # doctest: +SKIP
        >>> plan.seconds_low, plan.seconds_high, plan.memory_bytes, plan.disk_bytes_high  # doctest: +SKIP
        (41.7, 148.2, 1718943744, 164626432)
    """
    from transferkit.workflow.dry_run import plan_adapt, plan_analyze, plan_rank

    _check_call(verb, arguments)
    data, out = arguments.get("data"), None if arguments.get("out") is None else expand(arguments["out"])
    if verb == "adapt":
        check_adapt(arguments)
        options = options_from(AdaptOptions, arguments)
        check_clocks(options)
        return plan_adapt(arguments["model"], data, options)
    if verb == "tune":
        check_tune(arguments)
        from transferkit.tuning.dry_run import plan_tune

        return plan_tune(arguments["model"], data, options_from(TuneOptions, arguments))
    check_arguments(arguments, fits=False)
    passes = options_from(PassOptions, arguments)
    if verb == "rank":
        return plan_rank(arguments["models"], data, passes, out=out)
    return plan_analyze(arguments["model"], data, passes, out=out)


def _check_call(verb: str, arguments: Mapping[str, Any]) -> None:
    """Raise unless there is such a verb that takes these arguments."""
    verbs: dict[str, Callable[..., Any]] = {"adapt": adapt, "analyze": analyze, "rank": rank, "tune": tune}
    if verb not in verbs:
        raise OptionError(unknown_name("verb", verb, verbs))
    taken = inspect.signature(verbs[verb]).parameters
    for name in arguments:
        if name not in (*taken, "out"):
            raise OptionError(unknown_name(f"argument of {verb}", name, [*taken, "out"]))
    if needed := [name for name, one in taken.items() if one.default is one.empty and name not in arguments]:
        raise OptionError(f"{verb} needs {' and '.join(needed)}.")


def check_adapt(arguments: Mapping[str, Any]) -> str:
    """Whether `adapt` can work with these arguments, as far as that is known before any work.

    Args:
        arguments: Name -> value; what is missing has its default.

    Returns:
        A sentence about the finished run that will be replaced; empty if there is none.

    Raises:
        TransferkitError: Something is wrong; all that is wrong is in the message.
    """
    check_arguments(arguments, fits=True)
    options = options_from(AdaptOptions, arguments)
    if options.out is None or not is_first():
        return ""
    settings = describe_settings(adapt, {**vars(options), **arguments, "train": options.recipe.changed})
    return check_replaceable(expand(options.out), settings, overwrite=options.overwrite)


def check_tune(arguments: Mapping[str, Any]) -> None:
    """Whether `tune` can work with these arguments, as far as that is known before any work.

    Args:
        arguments: Name -> value; what is missing has its default.

    Raises:
        TransferkitError: Something is wrong; all that is wrong is in the message.
    """
    check_arguments(arguments, fits=True)
    check_search(options_from(TuneOptions, arguments))
