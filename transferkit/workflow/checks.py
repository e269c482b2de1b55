"""What can be known to be wrong with the options before any work: all of it is said at once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from glob import has_magic
from pathlib import Path
from typing import Any

from transferkit.core.distributed import local_rank_and_world_size
from transferkit.core.errors import CheckpointError, OptionError, list_problems, problem_of, unknown_name
from transferkit.core.paths import check_folder, expand
from transferkit.data import check_data_path, read_corrections
from transferkit.decision import MODES
from transferkit.features import check_engine, choose_device
from transferkit.finetune import count_processes
from transferkit.nn import POOLINGS, Backbone
from transferkit.nn.norm import BY_BATCH, NORM_KINDS
from transferkit.options import AdaptOptions, FitOptions, PassOptions, options_from
from transferkit.probe import CLASS_WEIGHTS, HEADS
from transferkit.strategies import DECAYED, NEED_UNLABELLED, NORMS, STRATEGIES, check_unfreeze
from transferkit.workflow.decide import check_stages
from transferkit.workflow.session import load_backbone
from transferkit.workflow.views import ask_views, refuse_for_tensors

__all__ = ["check_arguments", "check_backbone", "check_clocks", "check_fit", "check_pass"]

ADAPT_MODES = (*MODES, "search")


def check_arguments(arguments: Mapping[str, Any], *, fits: bool) -> None:
    """Whether a verb can work with these arguments, as far as that is known before any work.

    Args:
        arguments: Name -> value; what is missing has its default.
        fits: Whether the verb fits a model, as `adapt` does; else it only measures.

    Raises:
        TransferkitError: Something is wrong; all that is wrong is in the message.
    """
    checks = [partial(_check_measuring, arguments), partial(_check_paths, arguments)]
    if fits:
        checks[1:1] = [partial(_check_fitting, arguments), partial(_check_trainer, arguments)]
    problems = [error for error in map(problem_of, checks) if error is not None]
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise OptionError(list_problems("These settings cannot work:", map(str, problems)))


def _check_measuring(arguments: Mapping[str, Any]) -> None:
    check_pass(options_from(PassOptions, arguments))


def _check_fitting(arguments: Mapping[str, Any]) -> None:
    options = options_from(FitOptions, arguments)
    check_fit(options)
    if options.strategy in NEED_UNLABELLED:
        _check_unlabelled(options)


def _check_trainer(arguments: Mapping[str, Any]) -> None:
    trainer = arguments.get("trainer")
    if isinstance(trainer, Mapping):  # what it is otherwise, is refused with the other options
        processes = count_processes(choose_device(arguments.get("device", "auto")), trainer)
        if processes > 1 and arguments.get("strategy") in NEED_UNLABELLED:
            raise OptionError(
                f"strategy={arguments['strategy']} trains in one process, and trainer asks for {processes}. Set "
                "trainer.devices=1, or use strategy=lp_ft."
            )


def _check_paths(arguments: Mapping[str, Any]) -> None:
    """Paths that are read, and the one that is written to."""
    if arguments.get("out") is not None:
        check_folder(expand(arguments["out"]))
    for name in ("data", "source"):
        check_data_path(arguments.get(name))
    unlabelled = arguments.get("unlabelled")
    if isinstance(unlabelled, (str, Path)) and not (expand(unlabelled).exists() or has_magic(str(unlabelled))):
        raise OptionError(f"There is no {str(unlabelled)!r}. unlabelled= takes a folder of images, or a pattern.")
    teacher = arguments.get("teacher")
    if teacher is not None and unlabelled is None:
        raise OptionError("teacher= answers for unlabelled images, and there are none. Add unlabelled=DIR.")
    if isinstance(teacher, (str, Path)) and not expand(teacher).is_dir():
        raise OptionError(f"There is no folder {str(teacher)!r}. teacher= takes that of a finished run or ensemble.")
    if arguments.get("labels") is not None:
        read_corrections(arguments["labels"])
    checkpoint = arguments.get("checkpoint")
    if checkpoint is not None and not (str(checkpoint) and expand(checkpoint).exists()):
        raise CheckpointError(f"There is no file {str(checkpoint)!r}. checkpoint= takes the path of one weights file.")


def check_pass(options: PassOptions) -> None:
    """Whether images can be opened and measured like this.

    Raises:
        OptionError: A name is unknown, or two options contradict each other.
    """
    for name, value, known in (
        ("pooling", options.pooling, POOLINGS),
        ("class_weight", options.class_weight, CLASS_WEIGHTS),
    ):
        if value not in known:
            raise OptionError(unknown_name(name, value, known))
    choose_device(options.device)
    check_engine(options.engine)
    asked = ask_views(options.geometry, options.views)
    if options.preprocessed:
        refuse_for_tensors(asked)


def check_fit(options: FitOptions) -> None:
    """Whether a model can be chosen and fitted like this.

    Raises:
        OptionError: A name is unknown, or an option would be ignored beside another.
    """
    _check_names(options)
    if options.ensemble != "none" and options.unlabelled is not None:
        raise OptionError("ensemble= and unlabelled= each make another head of the same probe. Use one of them.")
    check_unfreeze(options.strategy, options.unfreeze)
    if options.strategy == "linear_probe":
        _check_probe(options)
    elif options.strategy not in ("auto", *DECAYED) and "layer_decay" in options.recipe.changed:
        raise OptionError(
            f"train.layer_decay has no effect with strategy={options.strategy}, which trains all its stages at one "
            f"rate. Leave it out, or use {', '.join(DECAYED)}."
        )
    if options.strategy != "auto" and options.mode != "evidence":
        raise OptionError(
            f"mode={options.mode} is a way of choosing a strategy, and strategy={options.strategy} leaves nothing to "
            "choose. Leave mode out, or take strategy=auto."
        )
    _check_budget(options)


def _check_names(options: FitOptions) -> None:
    strategy, norm = options.strategy, options.norm
    if options.resume not in (True, False, "auto"):
        raise OptionError(f"resume must be auto or false, got {options.resume!r}.")
    if options.evaluate not in (True, False, "auto"):
        raise OptionError(f"evaluate must be auto, true or false, got {options.evaluate!r}.")
    if options.mode not in ADAPT_MODES:
        raise OptionError(unknown_name("mode", options.mode, ADAPT_MODES))
    if strategy != "auto" and strategy not in STRATEGIES:
        raise OptionError(unknown_name("strategy", strategy, ["auto", *STRATEGIES]))
    if strategy == "auto" and options.stage is not None:
        raise OptionError("A stage can be named only with a strategy: strategy=linear_probe stage=... .")
    if norm not in ("auto", *NORMS, *NORM_KINDS):
        raise OptionError(unknown_name("normalisation", norm, ["auto", *NORMS, *NORM_KINDS]))
    if norm in BY_BATCH:
        raise OptionError(
            f"With norm={norm} a prediction depends on the other images of its batch: features could not be cached, "
            "and single images could not be classified. In a loop of your own, transferkit.swap_norm does it."
        )
    if options.head not in HEADS:
        raise OptionError(unknown_name("head", options.head, HEADS))


def _check_probe(options: FitOptions) -> None:
    if changed := options.recipe.changed:
        said = ", ".join(f"train.{name}={value}" for name, value in changed.items())
        raise OptionError(
            f"strategy=linear_probe is solved for in closed form, so {said} would do nothing. Leave it out, or take a "
            "strategy that learns by gradient, such as strategy=lp_ft."
        )
    if options.norm in NORMS:
        raise OptionError(
            f"norm={options.norm} is about statistics while a network is trained, and with strategy=linear_probe it is "
            "not. Leave norm out, or name a kind to swap in, such as norm=recalibrated."
        )


def _check_unlabelled(options: FitOptions) -> None:
    if options.unlabelled is None:
        raise OptionError(
            f"strategy={options.strategy} trains on unlabelled images too, and there are none: adapt takes a folder of "
            "them as unlabelled=DIR. Without any, use strategy=lp_ft."
        )
    if options.recipe.start_size < 1:
        raise OptionError(f"strategy={options.strategy} trains at one image size. Leave out train.start_size.")


def _check_budget(options: FitOptions) -> None:
    if options.budget != "auto" or (options.strategy == "auto" and options.mode == "evidence"):
        return
    given = f"strategy={options.strategy}" if options.strategy != "auto" else f"mode={options.mode}"
    raise OptionError(
        f"budget=auto weighs expected accuracy against seconds, and {given} does not choose that way. Give seconds, "
        "such as budget=60, or leave budget out."
    )


def check_clocks(options: AdaptOptions) -> None:
    """Whether all processes are running when a budget is decided by the clock.

    Raises:
        OptionError: Some would be started later, and decide by clocks of their own.
    """
    processes = count_processes(choose_device(options.device), options.trainer or {})
    if options.budget_seconds is not None and processes > 1 and local_rank_and_world_size()[1] == 1:
        raise OptionError(
            "A budget is a matter of the clock, and the processes that trainer.devices starts would each decide by "
            "their own. Start them together (torchrun --nproc-per-node=2 -m transferkit.cli adapt ...), or leave "
            "budget out."
        )


def check_backbone(model: str, options: AdaptOptions) -> None:
    """Whether there is such a backbone with the stages that are asked for; its weights are not loaded.

    Raises:
        TransferkitError: There is not.
    """
    check_stages(_without_weights(model, options.image_size), options)


@lru_cache(maxsize=1)
def _without_weights(model: str, image_size: int | None) -> Backbone:
    return load_backbone(model, image_size=image_size, pretrained=False)
