"""`adapt` and `decide`: the road from a backbone and images to a trained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from transferkit.core.distributed import is_first
from transferkit.core.errors import OptionError
from transferkit.core.paths import expand
from transferkit.core.progress import announce
from transferkit.core.provenance import describe_settings, environment, quote_call
from transferkit.core.renaming import renamed
from transferkit.core.timing import timed
from transferkit.decision import complete, conclude
from transferkit.doctor.monitor_reading import diagnose_training
from transferkit.doctor.watching import watch_fits
from transferkit.ensemble import average_heads
from transferkit.features import choose_device
from transferkit.options import MAX_PIXELS, AdaptOptions, Recipe, documents, options_from
from transferkit.records import Decision, Evidence, Preprocessing
from transferkit.result import Ensemble, Result, check_replaceable
from transferkit.result.run_record import record_run
from transferkit.scarce.unlabelled import use_unlabelled
from transferkit.workflow.checks import check_arguments, check_clocks, check_fit
from transferkit.workflow.decide import check_stages, choose_strategy, conditions_for, decide_session
from transferkit.workflow.fit import fit_decision, plan_decision
from transferkit.workflow.label_review import likely_label_errors
from transferkit.workflow.score import score_splits
from transferkit.workflow.session import open_session
from transferkit.workflow.training_folder import clear_checkpoints

__all__ = ["adapt", "check_adapt", "decide"]


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
    unlabelled: Any = None,
    teacher: Result | Ensemble | str | Path | None = None,
    ensemble: str = "none",
    train: Recipe | Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    resume: bool | str = "auto",
    overwrite: bool = False,
    evaluate: bool | str = "auto",
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
        needs_classes=_needing_classes(options),
    )
    watch = watch_fits(options.recipe.monitor)
    decided = decide_session(session, options, watch=watch)
    fitted = fit_decision(decided.session, decided.decision, options, begun=decided.begun, watch=watch)
    if options.ensemble != "none":
        fitted = average_heads(decided.session, fitted, head=options.head)
    session, training = decided.session, fitted.training
    if unlabelled is not None:
        fitted = use_unlabelled(session, plan_decision(session, decided.decision), fitted, unlabelled, teacher=teacher)
    if training is not None:
        classes = len(session.data.summary.classes) if session.data.targets is None else None
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
        held_back_scores=fitted.scores,
        seconds=session.seconds,
        environment=environment(seed=seed, device=str(choose_device(device))),
        command=command or quote_call(adapt, given),
        settings=describe_settings(adapt, given),
    )
    result = Result(fitted.model, record, held_back_scores=fitted.scores)
    if out is not None and is_first():
        result.save(out, overwrite=True)  # whether that is wanted was asked before the work
        clear_checkpoints(expand(out))
    return result


def _needing_classes(options: AdaptOptions) -> str:
    """The option that takes one class per image, if one is used."""
    if options.ensemble != "none":
        return f"ensemble={options.ensemble}"
    return "" if options.unlabelled is None else "unlabelled="


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
