"""`zeroshot`: classes without a single image, from a table of attributes, or from their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from transferkit.core.distributed import is_first
from transferkit.core.errors import OptionError
from transferkit.core.paths import expand
from transferkit.core.progress import announce
from transferkit.core.provenance import describe_settings, environment, quote_call
from transferkit.core.scratch_cache import scratch_cache
from transferkit.core.timing import timed
from transferkit.decision import HeldBack, complete
from transferkit.features import choose_device
from transferkit.options import MAX_PIXELS, AdaptOptions, documents, options_from
from transferkit.records import JOINED, DryRun, Preprocessing
from transferkit.result import Result, check_replaceable
from transferkit.result.run_record import record_run
from transferkit.scarce.attribute_table import match_classes, read_attributes
from transferkit.scarce.prompts import check_prompts, classify_by_prompts
from transferkit.scarce.zero_shot import Described, fit_zero_shot
from transferkit.scarce.zero_shot_options import ZeroShotOptions
from transferkit.workflow.checks import check_arguments
from transferkit.workflow.fit import Outcome
from transferkit.workflow.score import score_splits
from transferkit.workflow.session import Session, open_images, open_session, refuse_targets

__all__ = ["check_zeroshot", "plan_zeroshot", "zeroshot"]


@documents(ZeroShotOptions)
def zeroshot(
    model: str | nn.Module,
    data: Any,
    *,
    attributes: Any = None,
    method: str = "auto",
    prompts: str | Sequence[str] | None = None,
    classes: Sequence[str] = (),
    image_size: int | None = None,
    batch_size: int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    evaluate: bool | str = "auto",
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
) -> Result:
    """A classifier over classes with and without images, from images of some and a description of all.

    With a table of attributes: one linear layer on the frozen features, solved for in closed form. How good it is on
    classes without images is measured by turning classes with images unseen; so is the penalty that keeps it from
    preferring those with images. With prompts for a text-image model: the embeddings of the prompts are the classifier,
    and the images only measure it.

    Args:
        model, data: As for `adapt`; images of the seen classes.
        {options}
        command: What to quote as the way to run this again; None composes the Python call.

    Returns:
        A result as of `adapt`, with more classes; `record.zero_shot` has the held-back figures, None with prompts. Test
        images, which are of seen classes, are scored among all classes; images of unseen ones with `Result.evaluate`.

    Raises:
        DataError: The table is none, or does not fit the classes of the images; all that is wrong is in the message.
        TransferkitError: Another of its kinds.

    Example:
        >>> result = zeroshot("packaged/tf_efficientnet_lite0", "photos", attributes="animals.csv")  # doctest: +SKIP
        >>> result.predict("zebra.jpg").labels, result.record.zero_shot.calibrated.harmonic  # doctest: +SKIP
        (('zebra',), 0.61)
        >>> result = zeroshot("open_clip/ViT-B-32", "photos", checkpoint="clip.safetensors",
        ...                   prompts="a photo of a {}", classes=["zebra"])  # doctest: +SKIP
    """
    given = dict(locals())
    announce(check_zeroshot(given), enabled=progress)
    options = options_from(ZeroShotOptions, given)
    described = _by_prompts if prompts is not None else _by_attributes
    session, fitted = described(model, data, options)
    decision = complete(fitted.choice, session.measured.evidence)
    held_back = HeldBack(accuracy=fitted.accuracy, images=fitted.images, is_network=False)
    with timed(session.seconds, "verify"):
        splits = ("val",) if evaluate is False else ("val", "test")
        answers = score_splits(session, Outcome(fitted.model, (), held_back), splits)
    record = record_run(
        session.data,
        session.measured.evidence,
        decision,
        answers=answers,
        training=None,
        held_back_accuracy=fitted.accuracy,
        seconds=session.seconds,
        environment=environment(seed=seed, device=str(choose_device(device))),
        command=command or quote_call(zeroshot, given),
        settings=describe_settings(zeroshot, given),
        zero_shot=fitted.record,
    )
    result = Result(fitted.model, record)
    if out is not None and is_first():
        result.save(out, overwrite=True)  # whether that is wanted was asked before the work
    return result


def _by_attributes(model: str | nn.Module, data: Any, options: ZeroShotOptions) -> tuple[Session, Described]:
    table = read_attributes(options.attributes)
    opened = _matched(table, data, options)
    given = replace(options, labels=None) if opened is not data else options  # which are in what was opened
    session = open_session(model, opened, given, trains=False, needs_classes="zeroshot")
    return session, fit_zero_shot(session, table, method=options.method)


def _by_prompts(model: str | nn.Module, data: Any, options: ZeroShotOptions) -> tuple[Session, Described]:
    session = open_session(model, data, options, trains=False, needs_classes="zeroshot")
    prompts = check_prompts(options.prompts, options.classes, model=model, checkpoint=options.checkpoint)
    with timed(session.seconds, "encode prompts"):
        return session, classify_by_prompts(session, prompts, options.classes)


def _matched(table: Any, data: Any, options: ZeroShotOptions) -> Any:
    """The images, opened; raises before the frozen pass if the table does not fit their classes."""
    if options.preprocessed:  # whose size decides which backbone is loaded
        return data
    opened = open_images(data, options)
    refuse_targets(opened, "zeroshot")
    match_classes(table, opened.summary.classes)
    return opened


def check_zeroshot(arguments: Mapping[str, Any]) -> str:
    """Whether `zeroshot` can work with these arguments, as far as that is known before any image is opened.

    Args:
        arguments: Name -> value; what is missing has its default.

    Returns:
        A sentence about the finished run that will be replaced; empty if there is none.

    Raises:
        TransferkitError: Something is wrong; all that is wrong is in the message.
    """
    check_arguments(arguments, fits=False)
    options = options_from(ZeroShotOptions, arguments)
    _check_description(options, arguments)
    if options.evaluate not in (True, False, "auto"):
        raise OptionError(f"evaluate must be auto, true or false, got {options.evaluate!r}.")
    if options.out is None or not is_first():
        return ""
    settings = describe_settings(zeroshot, {**vars(options), **arguments})
    return check_replaceable(expand(options.out), settings, overwrite=options.overwrite)


def _check_description(options: ZeroShotOptions, arguments: Mapping[str, Any]) -> None:
    if (options.attributes is None) == (options.prompts is None):
        raise OptionError(
            "zeroshot needs either attributes=FILE, a table with a row per class and a column per attribute; or "
            "prompts='a photo of a {}', with a text-image model (model=open_clip/NAME checkpoint=FILE)."
        )
    if options.attributes is not None:
        read_attributes(options.attributes)
    else:
        model = arguments.get("model")
        check_prompts(options.prompts, options.classes, model=model, checkpoint=options.checkpoint)


def plan_zeroshot(arguments: Mapping[str, Any]) -> DryRun:
    """What `zeroshot` would do with these arguments, and its cost: that of a probe on the same images.

    Args:
        arguments: Name -> value; what is missing has its default.

    Raises:
        TransferkitError: What `zeroshot` would raise before the frozen pass.
    """
    from transferkit.workflow.dry_run import plan_adapt

    check_zeroshot(arguments)
    options = options_from(ZeroShotOptions, arguments)
    data = arguments["data"]
    if options.attributes is not None:
        with scratch_cache(options.cache) as scratch:
            data = _matched(read_attributes(options.attributes), data, replace(options, cache=scratch))
    probe = options_from(AdaptOptions, {**arguments, "strategy": "linear_probe", "stage": JOINED})
    if data is not arguments["data"]:
        probe = replace(probe, labels=None)
    return replace(plan_adapt(arguments["model"], data, probe), verb="zeroshot")
