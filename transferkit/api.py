"""The road from a backbone and images to a trained model, readable in one screen."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax
from torch import nn

from transferkit.core.distributed import broadcast, connect, is_first, local_rank_and_world_size
from transferkit.core.errors import CheckpointError, OptionError, list_problems, problem_of, unknown_name
from transferkit.core.paths import check_folder, expand
from transferkit.core.progress import announce
from transferkit.core.provenance import WORKING_FOLDER, describe_settings, environment, quote_call
from transferkit.core.renaming import renamed
from transferkit.data import MAX_PIXELS, check_data_path
from transferkit.decision import MODES, Conditions, choose, complete, conclude, settle_norm
from transferkit.features import choose_device
from transferkit.finetune import Recipe, count_processes
from transferkit.measure import assess
from transferkit.nn import Backbone, TransferModel, logits_of
from transferkit.nn.norm import BY_BATCH, NORM_KINDS
from transferkit.probe import HEADS
from transferkit.records import (
    Alternative,
    Choice,
    Decision,
    Evidence,
    HeldOut,
    Preprocessing,
    RunRecord,
)
from transferkit.result import Predictions, Result, check_replaceable, load
from transferkit.result.evaluation import pick_mistakes, pick_samples, sketch
from transferkit.strategies import NORMS, STRATEGIES, check_unfreeze
from transferkit.workflow.decide import ask, conditions_for, give
from transferkit.workflow.finetune_run import FineTuneOptions, FineTuneRun
from transferkit.workflow.fit import Outcome, fit_decision, plan_decision
from transferkit.workflow.measure import timed
from transferkit.workflow.norm_swap import measure_swapped
from transferkit.workflow.search import Trial, search
from transferkit.workflow.session import Options, Session, load_backbone, open_session

__all__ = ["Predictions", "Result", "adapt", "analyze", "decide", "load", "load_backbone"]

ADAPT_MODES = (*MODES, "search")


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
    progress: bool = True,
) -> Evidence:
    """Measure how well each stage of a backbone tells your classes apart: one frozen pass, nothing trained.

    Args:
        model, checkpoint, pretrained, preprocessing, image_size: As for `load_backbone`.
        data: A folder, a manifest, a dataset, a LightningDataModule, or "builtin/digits".
        batch_size: Images at once in the pass; None fits it to the machine.
        seed: Draws the splits and the k-NN sample.
        root: Folder that a manifest's paths start from.
        columns: "path", "label", "split", "group" -> what a manifest calls it, where it differs.
        max_pixels: Width times height above which an image is not decoded.
        val, test: Shares of the training images to hold back where the data has no such split. For `test`, None is 0.2
            where there are no splits at all, and nothing where there are.
        strict: Images that cannot be used are an error instead of being set aside.
        preprocessed: The dataset's float tensors are taken as they are.
        geometry: How a single view shows a picture, which is what networks are trained on: "crop" (the checkpoint's
            own), "full" (the largest centre square), "squash" (all of it, squeezed), "pad" (all of it, with borders),
            "zoom" (the middle, closer), "wide" (all of it, smaller, with borders all round). "auto" compares the first
            four on held-back images and keeps the crop unless another is clearly better.
        views: Geometries whose features, and whose predictions, are averaged: "crop+squash+zoom", with "+mirror" for
            the mirror image of each as well. 1: the geometry alone. "auto": crop, squash, zoom and wide, their mirror
            images where a test on held-back images finds mirroring safe, as far as their passes take no more than 60
            seconds. A view costs a pass over the images, and one with every prediction.
        pooling: "avg" or "avg+max" of each stage's grid.
        class_weight: "none"; "balanced": every class weighs the same; "auto": balanced if one has twice the images of
            another.
        similarity: How near the data is to what the backbone was trained on, in [0, 1], if you know better than what is
            measured.
        source: Images like those the backbone was trained on, if you have some; anything that `data` can be.
        cache: Folder of the feature bank; None takes `$TRANSFERKIT_CACHE` or the user's cache folder.
        cache_limit: Gigabytes the bank may take; None takes 10.
        device: "auto", "cpu", "cuda", ...
        progress: Show bars on a terminal.

    Raises:
        TransferkitError: One of its kinds, saying what to do.

    Example:
        >>> evidence = analyze("packaged/tf_efficientnet_lite0", "builtin/digits", image_size=32)  # doctest: +SKIP
        >>> evidence.probe("joined").accuracy > evidence.probe("top").accuracy  # doctest: +SKIP
        True
    """
    options = Options(
        image_size=image_size,
        batch_size=batch_size,
        seed=seed,
        checkpoint=checkpoint,
        pretrained=pretrained,
        preprocessing=preprocessing,
        root=root,
        columns=columns,
        max_pixels=max_pixels,
        val=val,
        test=test,
        strict=strict,
        preprocessed=preprocessed,
        geometry=geometry,
        views=views,
        pooling=pooling,
        class_weight=class_weight,
        similarity=similarity,
        source=source,
        cache=cache,
        cache_limit=cache_limit,
        device=device,
        progress=progress,
    )
    return open_session(model, data, options).measured.evidence


@renamed
def decide(
    evidence: Evidence,
    *,
    strategy: str = "auto",
    stage: str | int | None = None,
    unfreeze: int | str | Sequence[str] | None = None,
    mode: str = "evidence",
    norm: str = "auto",
    batch_size: int | None = None,
    budget: float | None = None,
    train: Recipe | Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> Decision:
    """What `adapt` would do with the same arguments: strategy, stage, learning rate, normalisation, and why.

    Only what training alone can tell is missing: a learning rate found by trying, a swap of normalisation that the
    features refuse, and what held-back images say of the fitted model.

    Args:
        evidence: What `analyze` measured.
        strategy, stage, unfreeze, norm, budget, train, trainer, device: As for `adapt`.
        mode: "evidence" or "rule". The rule needs `evidence.similarity`.
        batch_size: Images per optimizer step, unless `train` says it; None fits it to their number.

    Raises:
        OptionError: An option is unknown, or does not go with another.

    Example:
        >>> evidence = analyze("packaged/tf_efficientnet_lite0", "builtin/digits", image_size=32)  # doctest: +SKIP
        >>> decide(evidence, strategy="lp_ft", train={"lr": 1e-4}).lr  # doctest: +SKIP
        0.0001
    """
    recipe = train if isinstance(train, Recipe) else Recipe.named(train or {})
    if mode == "search":
        raise OptionError("mode=search trains, which needs the images: use adapt. decide knows mode=evidence and rule.")
    _check_options(strategy=strategy, stage=stage, mode=mode, norm=norm)
    _check_combinations(strategy=strategy, unfreeze=unfreeze, mode=mode, norm=norm, budget=budget, recipe=recipe)
    chosen = choose_device(device)
    conditions = conditions_for(
        evidence,
        recipe,
        norm=norm,
        batch_size=batch_size,
        processes=count_processes(chosen, trainer or {}),
        on_gpus=chosen.type == "cuda",
    )
    if strategy == "auto":
        choice = choose(evidence, mode=mode, budget=_left(budget, evidence))
    else:
        choice = give(evidence, strategy=strategy, stage=stage, unfreeze=unfreeze)
    return complete(choice, evidence, conditions)


@renamed
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
    budget: float | None = None,
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
    progress: bool = True,
    command: str | None = None,
) -> Result:
    """Measure, decide, train, verify: a classifier for your images from a pretrained backbone.

    Args:
        model, data: As for `analyze`, and so are all arguments not named here.
        strategy: "auto" decides; a name ("linear_probe", "few_layers", "lp_ft", ...) is done without asking.
        stage: With a named strategy: the stage to read, a name or an index; None or "joined" reads all of them,
            "selected" those of their features that tell the classes apart.
        unfreeze: With "few_layers", "many_layers" or "surgical": the stages to train, by their names, or a whole
            number k for the last k of those up to the last that is read; None leaves them to the strategy.
        mode: How "auto" decides: "evidence" (measured), "search" (measured, then fine-tuning is tried on held-back
            images before it is chosen) or "rule" (the textbook's matrix).
        norm: What becomes of batch normalisation while a network is fine-tuned: "frozen" or "keep" (it goes on
            measuring its statistics), or a kind in `transferkit.nn.norm.NORM_KINDS` ("group", "renorm", ...) to swap it
            for, which is refused where the features lose by it; "auto" decides.
        budget: Seconds that may go into what comes after the first frozen pass: further views, which take half of it at
            most, then for "evidence" a limit on the cost of the strategy, for "search" on that of all trials as well.
            None sets no limit. Where a strategy is named, or the
            rule decides, nothing is chosen by its cost, and a budget is refused.
        out: Folder for model, result and report; None writes nothing (`Result.save` does it later).
        head: "ridge", "logistic", their "average", or "auto": the average, unless one is clearly better held back.
        train: How networks are fine-tuned: a `Recipe`, or some of its values by name, {"epochs": 10}. Its `lr` is that
            of the backbone's last stage, its `lr_scale` the same as a share of the original rate. Refused with
            "linear_probe", which is solved for.
        trainer: Options for Lightning's trainer: {"precision": "bf16-mixed"}.
        resume: "auto" (or True): a run that was killed in `out` is resumed, and ends with the same
            weights; False starts afresh.
        overwrite: Whether a finished run of other settings that lies in `out` may be replaced; one of the same settings
            always is.
        evaluate: Whether the test images are scored, once, at the end; "auto" does. False leaves that to
            `Result.evaluate`: whoever compares several runs does so by `RunRecord.held_back_accuracy`.
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
    recipe, out = _recipe(train), None if out is None else expand(out)
    given["train"] = _said(recipe)
    processes = count_processes(choose_device(device), trainer or {})
    if budget is not None:
        _check_clocks(processes)
    options = Options(
        image_size=image_size,
        batch_size=batch_size,
        seed=seed,
        checkpoint=checkpoint,
        pretrained=pretrained,
        preprocessing=preprocessing,
        root=root,
        columns=columns,
        max_pixels=max_pixels,
        val=val,
        test=test,
        strict=strict,
        preprocessed=preprocessed,
        geometry=geometry,
        views=views,
        pooling=pooling,
        class_weight=class_weight,
        similarity=similarity,
        source=source,
        cache=cache,
        cache_limit=cache_limit,
        device=device,
        progress=progress,
        budget=budget,
    )
    asked = None if strategy == "auto" else partial(_ask_backbone, strategy=strategy, stage=stage, unfreeze=unfreeze)
    session = open_session(model, data, options, check=asked)
    seconds = session.seconds
    training = FineTuneOptions(recipe=recipe, trainer=trainer or {}, folder=out, resume=resume is not False)
    evidence = session.measured.evidence
    conditions = conditions_for(
        evidence,
        recipe,
        norm=norm,
        batch_size=batch_size,
        processes=processes,
        on_gpus=choose_device(device).type == "cuda",
    )
    # What cannot be is said before any trial; a run that never fine-tunes has nothing to be refused.
    kind = "frozen" if strategy == "linear_probe" else settle_norm(evidence, conditions)[0]
    trials = _Trials(session, options, head, training, conditions, norm=kind if kind in NORMS else "frozen")
    if budget is not None:
        connect(choose_device(device))  # each has a clock of its own, and they must decide alike
    left = _left(budget, evidence)
    with timed(seconds, "decide"):
        if strategy != "auto":
            choice = give(evidence, strategy=strategy, stage=stage, unfreeze=unfreeze)
        elif mode == "search":
            choice = search(evidence, trials.begin, budget=left, progress=progress)
        else:
            choice = broadcast(choose(evidence, mode=mode, budget=left))
        decision = complete(choice, evidence, conditions)
        session, decision = _swapped(session, decision, options)
    begun = trials.begun.get(decision.strategy) if decision.norm == trials.norm else None
    fitted = fit_decision(session, decision, options, head=head, training=training, begun=begun)
    decision = conclude(
        decision,
        session.measured.evidence,
        fitted.held_back,
        lr_factor=1.0 if fitted.training is None else fitted.training.lr_factor,
        reasons=fitted.reasons,
    )
    with timed(seconds, "verify"):
        held_out = _answers(fitted, session, device, ("val",) if evaluate is False else ("val", "test"))
        folds = {split: session.data.folds.take(session.data.indices(split)) for split in held_out}
        metrics = {split: assess(answers, folds[split]) for split, answers in held_out.items()}
    with timed(seconds, "report pictures"):
        shown = held_out.get("test") or held_out.get("val")
        samples = pick_samples(session.data, seed)
        mistakes = pick_mistakes(session.data, shown, session.data.summary.classes)
    record = RunRecord(
        evidence=session.measured.evidence,
        decision=decision,
        metrics=metrics,
        seconds={**seconds, "total": sum(seconds.values())},
        environment={**environment(seed=seed, device=str(choose_device(device))), WORKING_FOLDER: os.getcwd()},
        command=command or quote_call(adapt, given),
        training=fitted.training,
        held_out=shown,
        samples=samples,
        mistakes=mistakes,
        settings=describe_settings(adapt, given),
        held_back_accuracy=fitted.held_back.accuracy,
        trained_on=sketch(session.data),
    )
    result = Result(fitted.model, record)
    if out is not None and is_first():
        result.save(out, overwrite=True)  # whether that is wanted was asked before the work
        training.clear()
    return result


def _recipe(train: Recipe | Mapping[str, Any] | None) -> Recipe:
    return train if isinstance(train, Recipe) else Recipe.named(train or {})


def _said(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in recipe.said}


def check_adapt(arguments: Mapping[str, Any]) -> str:
    """Whether `adapt` can work with these arguments, as far as that is known before any work.

    Args:
        arguments: Name -> value; what is missing is as usual.

    Returns:
        What is to be said of a finished run that will be replaced; empty if there is none.

    Raises:
        TransferkitError: Something is wrong; all that is wrong is in the message.
    """
    usual = {name: parameter.default for name, parameter in inspect.signature(adapt).parameters.items()}
    given = {**usual, **arguments}
    check_arguments(given)
    if given["out"] is None or not is_first():
        return ""
    settings = describe_settings(adapt, {**given, "train": _said(_recipe(given["train"]))})
    return check_replaceable(expand(given["out"]), settings, overwrite=given["overwrite"])


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """What can be known to be wrong before any work, all at once.

    Args:
        arguments: Name -> value, of `adapt` or `analyze`.

    Raises:
        TransferkitError: Something is.
    """
    checks = (_check_how, _check_fitting, _check_trainer, _check_places)
    problems = [error for error in (problem_of(partial(check, arguments)) for check in checks) if error is not None]
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise OptionError(list_problems("These settings cannot work:", map(str, problems)))


def check_backbone(
    model: str,
    *,
    image_size: int | None,
    strategy: str,
    stage: str | int | None,
    unfreeze: int | str | Sequence[str] | None,
) -> None:
    """Whether there is such a backbone with the stages that are asked for; its weights are not loaded.

    Args:
        model, image_size, strategy, stage, unfreeze: As for `adapt`.

    Raises:
        TransferkitError: There is not.
    """
    backbone = _without_weights(model, image_size)
    if strategy != "auto":
        _ask_backbone(backbone, strategy=strategy, stage=stage, unfreeze=unfreeze)


@lru_cache(maxsize=1)
def _without_weights(model: str, image_size: int | None) -> Backbone:
    return load_backbone(model, image_size=image_size, pretrained=False)


def _check_how(arguments: Mapping[str, Any]) -> None:
    usual = {name: parameter.default for name, parameter in inspect.signature(analyze).parameters.items()}
    given = {**usual, **arguments}
    names = {field.name for field in dataclasses.fields(Options)} & given.keys()
    options: dict[str, Any] = {name: given[name] for name in names}
    Options(**options)


def _check_fitting(arguments: Mapping[str, Any]) -> None:
    """The arguments of `adapt` that `analyze` has not."""
    if "strategy" not in arguments:
        return
    asked = {name: arguments[name] for name in ("strategy", "stage", "mode", "norm", "head", "resume", "evaluate")}
    _check_options(**asked)
    combined = {name: arguments[name] for name in ("strategy", "unfreeze", "mode", "norm", "budget")}
    _check_combinations(**combined, recipe=_recipe(arguments["train"]))


def _check_trainer(arguments: Mapping[str, Any]) -> None:
    if arguments.get("trainer"):
        count_processes(choose_device(arguments["device"]), arguments["trainer"])


def _check_places(arguments: Mapping[str, Any]) -> None:
    """Paths that are to be read, and the one to be written to."""
    if arguments.get("out") is not None:
        check_folder(expand(arguments["out"]))
    for data in (arguments["data"], arguments["source"]):
        check_data_path(data)
    checkpoint = arguments["checkpoint"]
    if checkpoint is not None and not expand(checkpoint).exists():
        raise CheckpointError(f"There is no file {str(checkpoint)!r}. checkpoint= takes the path of one weights file.")


def _check_options(
    *,
    strategy: str,
    stage: str | int | None,
    mode: str,
    norm: str,
    head: str = "auto",
    resume: bool | str = "auto",
    evaluate: bool | str = "auto",
) -> None:
    """What can be known to be wrong before any work."""
    if resume not in (True, False, "auto"):
        raise OptionError(f"resume must be auto or false, got {resume!r}.")
    if evaluate not in (True, False, "auto"):
        raise OptionError(f"evaluate must be auto, true or false, got {evaluate!r}.")
    if mode not in ADAPT_MODES:
        raise OptionError(unknown_name("mode", mode, ADAPT_MODES))
    if strategy != "auto" and strategy not in STRATEGIES:
        raise OptionError(unknown_name("strategy", strategy, ["auto", *STRATEGIES]))
    if strategy == "auto" and stage is not None:
        raise OptionError("A stage can be named only with a strategy: strategy=linear_probe stage=... .")
    if norm not in ("auto", *NORMS, *NORM_KINDS):
        raise OptionError(unknown_name("normalisation", norm, ["auto", *NORMS, *NORM_KINDS]))
    if norm in BY_BATCH:
        raise OptionError(
            f"With norm={norm} an answer depends on the other images of its batch: features could not be kept, nor "
            "pictures be named one by one. In a loop of your own, transferkit.swap_norm does it."
        )
    if head not in HEADS:
        raise OptionError(unknown_name("head", head, HEADS))


def _check_combinations(
    *,
    strategy: str,
    unfreeze: int | str | Sequence[str] | None,
    mode: str,
    norm: str,
    budget: float | None,
    recipe: Recipe,
) -> None:
    """What would be passed over in silence is refused, before any work too."""
    check_unfreeze(strategy, unfreeze)
    if strategy == "linear_probe" and recipe.said:
        said = ", ".join(f"train.{name}={getattr(recipe, name)}" for name in recipe.said)
        raise OptionError(
            f"strategy=linear_probe is solved for in closed form, so {said} would do nothing. Leave it out, or take a "
            "strategy that learns by gradient, such as strategy=lp_ft."
        )
    if strategy == "linear_probe" and norm in NORMS:
        raise OptionError(
            f"norm={norm} is about statistics while a network learns, and with strategy=linear_probe it does not. "
            "Leave norm out, or name a kind to swap in, such as norm=recalibrated."
        )
    if strategy != "auto" and mode != "evidence":
        raise OptionError(
            f"mode={mode} is a way of choosing a strategy, and strategy={strategy} leaves nothing to choose. Leave "
            "mode out, or take strategy=auto."
        )
    if budget is not None and not budget > 0:
        raise OptionError(f"budget must be > 0 seconds, got {budget!r}; leave it out for no limit.")
    if budget is not None and (strategy != "auto" or mode == "rule"):
        chosen = f"strategy={strategy}" if strategy != "auto" else "mode=rule"
        raise OptionError(
            f"budget is a limit on what is chosen by its cost, and {chosen} leaves no such choice. Leave budget out, "
            "or let strategy=auto with mode=evidence or mode=search choose."
        )


def _check_clocks(processes: int) -> None:
    """Whether all processes that decide by the clock are there when it is decided."""
    if processes > 1 and local_rank_and_world_size()[1] == 1:
        raise OptionError(
            "A budget is a matter of the clock, and the processes that trainer.devices starts would each decide by "
            "their own. Start them together (torchrun --nproc-per-node=2 -m transferkit.cli adapt ...), or leave "
            "budget out."
        )


def _left(budget: float | None, evidence: Evidence) -> float | None:
    """What further views have left of a budget, in seconds, as people read it; half of it is not theirs to take."""
    if budget is None or evidence.views is None or evidence.views.seconds == 0:
        return budget
    return float(f"{budget - min(evidence.views.seconds, budget / 2):.3g}")


def _swapped(session: Session, decision: Decision, options: Options) -> tuple[Session, Decision]:
    """The session to go on with, its normalisation swapped if that is decided and harmless; and the decision."""
    if decision.strategy == "linear_probe" or decision.norm in NORMS:
        return session, decision
    session, outcome = measure_swapped(session, options, decision.norm)
    # Where the swap was refused: statistics of random weights are worth no freezing, those of trained ones are.
    kind = session.backbone.spec.norm or ("frozen" if session.backbone.spec.pretrained else "keep")
    return session, dataclasses.replace(decision, norm=kind, reasons=(*decision.reasons, outcome))


@dataclasses.dataclass(frozen=True)
class _Trials:
    """Ways of fine-tuning that were begun while it was decided, by their names; the chosen one goes on from there.

    Args:
        conditions: How training is asked to go.
        norm: "keep" or "frozen"; a swap comes after the decision.
    """

    session: Session
    options: Options
    head: str
    training: FineTuneOptions
    conditions: Conditions
    norm: str
    begun: dict[str, FineTuneRun] = dataclasses.field(default_factory=dict)

    def begin(self, option: Alternative) -> Trial:
        """Run its folds."""
        evidence = self.session.measured.evidence
        choice = give(evidence, strategy=option.strategy, stage=option.stage)
        decision = complete(choice, evidence, self.conditions)
        plan = plan_decision(self.session, dataclasses.replace(decision, norm=self.norm))
        tuning = self.begun[option.strategy] = FineTuneRun(self.session, plan, self.options, self.head, self.training)
        verdict = tuning.judged.verdict
        return Trial(verdict.kept, verdict.candidates[0], tuning.held_back)


def _ask_backbone(
    backbone: Backbone, *, strategy: str, stage: str | int | None, unfreeze: int | str | Sequence[str] | None
) -> Choice:
    """What was asked for; an error if the backbone cannot do it."""
    return ask(backbone.spec, strategy=strategy, stage=stage, unfreeze=unfreeze)


def _answers(fitted: Outcome, session: Session, device: str, splits: Sequence[str]) -> dict[str, HeldOut]:
    """Split name -> the model's probabilities there."""
    answers = {}
    for split in splits:
        indices = session.data.indices(split)
        if not len(indices):
            continue
        answers[split] = HeldOut(
            split=split,
            labels=session.data.labels[indices],
            probabilities=softmax(_scores(fitted, session, indices, device), axis=1),
            items=tuple(session.data.items[index] for index in indices),
        )
    return answers


def _scores(fitted: Outcome, session: Session, indices: npt.NDArray[np.int64], device: str) -> npt.NDArray[np.float32]:
    """(N, K) logits: from the features at hand where the backbone is as it was, else by running the model."""
    model = fitted.model
    if isinstance(model, TransferModel) and fitted.is_probe:
        weight, bias = (tensor.detach().numpy() for tensor in (model.linear.weight, model.linear.bias))
        table = session.measured.table.take(indices)
        _, columns = table.select(model.stages)
        return np.concatenate([chunk @ weight.T + bias for chunk in table.chunks(columns)])
    preprocessing = model.preprocessing
    pictures = (session.data.pixels(int(index), preprocessing) for index in indices)
    scores = logits_of(model, pictures, device=choose_device(device)).numpy()
    model.to("cpu")
    return scores
