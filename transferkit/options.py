"""The options of a run: each has its name, type, default and sentence here and nowhere else.

Python signatures, Hydra's configuration, `--help`, docstrings, docs/options.md and the checks are made from these
classes or tested against them. Whatever needs torch or a registry to be checked is checked in `workflow/checks.py`.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import partial
from numbers import Integral, Real
from typing import Any, TypeVar

from transferkit.core.errors import OptionError, list_problems, problem_of, unknown_name
from transferkit.core.limits import LAYER_DECAY, N_SPLITS, check_image_size, check_limit

__all__ = [
    "AUGMENTS",
    "AVERAGES",
    "MAX_PIXELS",
    "OPTIMIZERS",
    "SCHEDULES",
    "AdaptOptions",
    "DataOptions",
    "FitOptions",
    "MeasureOptions",
    "PassOptions",
    "Recipe",
    "ReviewOptions",
    "describe_options",
    "documents",
    "options_from",
    "value_problem",
]

MAX_PIXELS = 89_478_485
"""Width times height above which an image is not decoded unless asked for; Pillow's own limit for a warning."""

SEEDS = 2**63

WIDTH = 112
"""Of docstrings, in characters."""

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("constant", "plateau", "linear", "exponential", "cosine")
AVERAGES = ("ema", "swa")
AUGMENTS = ("auto", "none", "light", "medium", "strong")
RATES = ("find", "rule")
AUTO = "auto"

MIN_PATIENCE = 3
"""Epochs without a lower held-back loss that early stopping allows at least: single epochs are noisy."""


def option(default: Any, help: str, *, check: Callable[[Any], object] | None = None) -> Any:
    """A field of an options class.

    A value that may be of several kinds is annotated `Any` and has a check: a union of kinds takes only values of
    exactly one of them from the command line, so that `float | str` refuses 10.

    Args:
        default: Its value unless given.
        help: The sentence that docstrings, --help and docs show.
        check: Raises if a value cannot be; None: its type alone is checked.
    """
    return field(default=default, metadata={"help": help, "check": check})


def describe_options(kind: type, *, names: Iterable[str] | None = None) -> list[tuple[str, str]]:
    """(name, sentence) of each option.

    Args:
        kind: An options class.
        names: Those that are wanted, in that order; None: all, in the order of the class.
    """
    sentences = {one.name: str(one.metadata["help"]) for one in fields(kind)}
    return [(name, sentences[name]) for name in (sentences if names is None else names) if name in sentences]


def documented(kind: type[T]) -> type[T]:
    """An options class with a line for each option in its docstring."""
    kind.__doc__ = f"{inspect.cleandoc(kind.__doc__ or '')}\n\nArgs:\n{_as_lines(describe_options(kind))}\n"
    return kind


def documents(kind: type) -> Callable[[F], F]:
    """A decorator: where a function's docstring says `{options}`, there is a line for each option that it takes."""

    def filled(function: F) -> F:
        names = inspect.signature(function).parameters
        lines = _as_lines(describe_options(kind, names=names))
        function.__doc__ = inspect.cleandoc(function.__doc__ or "").replace("    {options}", lines)
        return function

    return filled


def _as_lines(described: Iterable[tuple[str, str]]) -> str:
    wrap = textwrap.TextWrapper(width=WIDTH, initial_indent="    ", subsequent_indent="        ")
    return "\n".join(wrap.fill(f"{name}: {text}") for name, text in described)


def value_problem(one: Field[Any], value: object, *, name: str = "") -> str | None:
    """What is wrong with a value of an option; None if nothing is.

    Args:
        one: The option's field. Of its type, only numbers, flags and single names are checked.
        value: As it was given; NumPy's numbers are numbers.
        name: What messages call it; "" for the field's own name.

    Example:
        >>> value_problem(next(one for one in fields(PassOptions) if one.name == "seed"), "x")
        "seed must be a whole number, got 'x'."
    """
    if check := one.metadata.get("check"):
        error = problem_of(partial(check, value))
        return None if error is None else str(error)
    name, parts = name or one.name, str(one.type).split(" | ")
    if value is None and "None" in parts:
        return None
    kind = " | ".join(part for part in parts if part != "None")
    is_flag = type(value).__name__ in ("bool", "bool_")  # NumPy's too, which is not imported for it
    if kind == "bool" and not is_flag:
        return f"{name} must be true{', false or left out' if 'None' in parts else ' or false'}, got {value!r}."
    if kind == "int" and (is_flag or not isinstance(value, Integral)):
        return f"{name} must be a whole number, got {value!r}."
    if kind == "float" and (is_flag or not isinstance(value, Real)):
        return f"{name} must be a number, got {value!r}."
    if kind == "str" and (value is None or isinstance(value, (list, tuple, Mapping))):
        return f"{name} must be a single name, got {value!r}."
    return None


def _check_values(options: Any) -> None:
    """Raise all that `value_problem` finds, at once."""
    found = (value_problem(one, getattr(options, one.name)) for one in fields(options))
    if problems := [problem for problem in found if problem is not None]:
        raise OptionError(" ".join(problems))


def _check_rate(value: object) -> None:
    if value is None or (isinstance(value, str) and value in RATES):
        return
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise OptionError(f"lr must be > 0, 'find', 'rule' or left out, got {value!r}.")


def _check_trainer(value: object) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise OptionError(f"trainer must be options by name, such as {{'precision': 'bf16-mixed'}}, got {value!r}.")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How images are opened, audited and split."""

    root: Any = option(None, "Folder that a manifest's relative paths start from; None: the manifest's own.")
    columns: Any = option(
        None, 'Maps "path", "label", "split", "group" to the names of a manifest\'s columns, where they differ.'
    )
    max_pixels: int = option(MAX_PIXELS, "Width times height above which an image is set aside instead of decoded.")
    val: float = option(0.0, "Share of the training images to hold out for validation, if there is no such split.")
    test: float | None = option(
        None, "Share to hold out for the test; None: 0.2 of data without any split, nothing otherwise."
    )
    strict: bool = option(False, "Unusable images are an error instead of being set aside.")


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """How the backbone is opened, and what is measured with it."""

    image_size: int | None = option(
        None, "Side of the input in pixels, smaller is faster; None: the checkpoint's own.", check=check_image_size
    )
    checkpoint: Any = option(
        None, "Weights file for that architecture, or the folder of a finished run, instead of the published weights."
    )
    pretrained: bool = option(True, "False: random weights.")
    geometry: Any = option(
        "auto",
        "How a single view shows an image: crop (the checkpoint's own), full (the largest centre square), squash (all "
        "of it, squeezed), pad (all of it, with borders), zoom (the middle, closer), wide (all of it, smaller, with "
        "borders all round). auto compares the first four on held-back images and keeps crop unless another is clearly "
        "better; rank uses crop.",
    )
    views: Any = option(
        "auto",
        "Geometries whose features and predictions are averaged, such as crop+squash+zoom; +mirror adds the mirror "
        "image of each. 1: the geometry alone. auto: crop, squash, zoom and wide, their mirror images where held-back "
        "images show that mirroring is safe, as far as the passes take no more than 60 s; rank uses one view. Each "
        "view costs a pass over the images, and one at every prediction.",
    )
    pooling: str = option("avg+max", "Pooling of each stage's grid: avg or avg+max.")
    class_weight: str = option(
        "none",
        "none, balanced (every class weighs the same) or auto (balanced if one class has twice the images of another).",
    )
    similarity: float | None = option(
        None, "Similarity of the data to the backbone's source data in [0, 1]; None: measured."
    )
    labels: Any = option(None, "Corrected labels: the table of `transferkit doctor labels`, edited (docs/doctor.md).")
    source: Any = option(None, "Images like those the backbone was trained on, in any form that data can have.")
    batch_size: int | None = option(
        None,
        "Images per batch of the frozen pass, and per step unless train sets it; None: fitted.",
    )
    cache: Any = option(None, "Folder of the feature bank; None: $TRANSFERKIT_CACHE or the user's cache folder.")
    cache_limit: float | None = option(None, "Gigabytes that the feature bank may use; None: 10.")
    device: Any = option("auto", "auto, cpu, cuda, cuda:1, mps.")
    engine: str = option(
        "auto",
        "What computes features: torch, onnxruntime, openvino, compile, eager (torch without simplifying the network). "
        "auto takes the fastest that is installed where there is much to compute, and torch otherwise; each is checked "
        "against the network itself on some of the images first.",
    )
    seed: int = option(0, "Seed of splits, folds, augmentation and training.")
    progress: bool = option(True, "Show progress bars on a terminal.")


@dataclass(frozen=True, kw_only=True)
class PassOptions(MeasureOptions, DataOptions):
    """How backbone and images are opened and measured: what `analyze`, `adapt` and `rank` share."""

    preprocessing: Any = option(None, "How images are prepared for a module of your own: a `Preprocessing`.")
    preprocessed: bool = option(False, "The dataset's float tensors are normalised already and used unchanged.")

    def __post_init__(self) -> None:
        _check_values(self)
        if not 0 <= self.seed < SEEDS:
            raise OptionError(f"seed must be in [0, 2^63), got {self.seed!r}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise OptionError(
                f"batch_size must be >= 1, got {self.batch_size!r}; leave it out to fit it to the machine."
            )
        if self.similarity is not None and not 0 <= self.similarity <= 1:
            raise OptionError(f"similarity must be in [0, 1], got {self.similarity!r}.")


@documented
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is fine-tuned."""

    epochs: int | None = option(None, "Passes over the training images, >= 1; None fits them to their number.")
    batch_size: int | None = option(
        None, "Images per optimizer step, of all processes together, >= 1; None: by their number."
    )
    optimizer: str = option("adamw", "adamw, or sgd with Nesterov momentum.")
    momentum: float = option(0.9, "Momentum of sgd, and of adamw's mean gradient (beta 1), in [0, 1).")
    lr: Any = option(
        None,
        "Learning rate of the last stage; rule takes the decision's, find runs a range test first. None tries three "
        "times the decision's as well, on the images held back first, unless lr_scale is given.",
        check=_check_rate,
    )
    lr_scale: float | None = option(
        None,
        "The same as a share of the rate that the backbone was trained at, > 0, instead of the rule's 0.1; that rate "
        "alone is tried. Not together with lr.",
    )
    layer_decay: float = option(LAYER_DECAY, "Rate of each stage relative to the one above it, in (0, 1].")
    weight_decay: float = option(0.01, "Weight decay, >= 0; not of norms and biases.")
    schedule: str = option("cosine", "cosine, linear, exponential, constant or plateau.")
    warmup: float = option(0.1, "Share of each phase in which rates rise, in [0, 1).")
    minimum: float = option(0.01, "What rates fall to, as a share of their highest, in [0, 1].")
    patience: int | None = option(
        None,
        "Epochs without a lower held-back loss before training stops; None: a third, at least 3.",
    )
    label_smoothing: float = option(0.0, "Label smoothing, in [0, 1).")
    dropout: float = option(0.0, "Share of the head's input left out at random, in [0, 1).")
    augment: str = option("auto", "auto (by the number of images), none, light, medium or strong.")
    flip: bool | None = option(None, "Whether images may be mirrored; None measures whether that confuses classes.")
    start_size: float = option(
        1.0, "Progressive image size: share of the side in the first epoch, in (0, 1]; 1 is off."
    )
    mixup: float = option(0.0, "Mixup: strength of mixing images in pairs, >= 0; 0 is off.")
    cutmix: float = option(0.0, "CutMix: strength of mixing images in pairs, >= 0; 0 is off.")
    # Where the best epoch lies in the middle of the schedule, rates are high and single weights noisy: on 200 noisy
    # pictures of clothes `few_layers` stopped there had a test accuracy of 58 to 67 %, its average of 67 to 69 %.
    average: str = option(
        "ema", "ema, swa or none: the average of the weights along the run that is evaluated and kept."
    )
    l2_sp: float = option(
        0.0, "L2-SP: strength of the pull towards the pretrained weights, >= 0; 0 is off, weight decay acts then."
    )
    views: int = option(
        4,
        "Augmented versions of each image to cache where the first stages are frozen; 0 caches none of them and runs "
        "the whole network on fresh ones.",
    )
    folds: int | None = option(
        None, "Times that a share of the images is held back to choose epochs and blend; None: by their number."
    )
    refit: bool | None = option(
        None,
        "Whether the network is trained once more, on all images; false averages the folds' networks, which are run "
        "together. None: false for two folds or a validation split.",
    )
    clip: float = option(1.0, "Norm that gradients are clipped to, >= 0; 0 leaves them as they are.")
    monitor: int = option(20, "Steps between two whose updates, gradients and units are monitored; 0 monitors none.")

    def __post_init__(self) -> None:
        found = (value_problem(one, getattr(self, one.name)) for one in fields(self))
        problems = [problem for problem in found if problem is not None]
        problems = problems or [message for right, message in self._conditions() if not right]
        if problems:
            raise OptionError(list_problems("Invalid training options:", problems))

    def _conditions(self) -> list[tuple[bool, str]]:
        named = (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("average", self.average, ("none", *AVERAGES)),
            ("augmentation", self.augment, AUGMENTS),
        )
        shares = ("warmup", "label_smoothing", "dropout", "momentum")
        amounts = ("weight_decay", "mixup", "cutmix", "l2_sp", "clip")
        counts = ("epochs", "batch_size", "patience")
        scale = self.lr_scale is None or 0 < self.lr_scale < math.inf
        return [
            *((value in known, unknown_name(name, value, known)) for name, value, known in named),
            *((0 <= getattr(self, n) < 1, f"{n} must be in [0, 1), got {getattr(self, n)!r}.") for n in shares),
            *((getattr(self, n) >= 0, f"{n} must be >= 0, got {getattr(self, n)!r}.") for n in amounts),
            *((_at_least_one(getattr(self, n)), f"{n} must be >= 1, got {getattr(self, n)!r}.") for n in counts),
            (0 < self.start_size <= 1, f"start_size must be in (0, 1], got {self.start_size!r}."),
            (0 < self.layer_decay <= 1, f"layer_decay must be in (0, 1], got {self.layer_decay!r}."),
            (0 <= self.minimum <= 1, f"minimum must be in [0, 1], got {self.minimum!r}."),
            (self.schedule != "exponential" or self.minimum > 0, "schedule=exponential needs a minimum above 0."),
            (self.folds is None or 1 <= self.folds <= N_SPLITS, f"folds must be 1 to {N_SPLITS}, got {self.folds!r}."),
            (self.monitor >= 0, f"monitor must be >= 0, got {self.monitor!r}."),
            (self.views >= 0, f"views must be >= 0, got {self.views!r}."),
            (scale, f"lr_scale must be finite and > 0, or left out, got {self.lr_scale!r}."),
            (
                self.lr is None or self.lr_scale is None,
                f"lr={self.lr} and lr_scale={self.lr_scale} both say how fast the last stage learns: leave one of them "
                "out.",
            ),
        ]

    @classmethod
    def named(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe with these values, the others at their defaults.

        Raises:
            OptionError: If there is no such value; the closest are offered.
        """
        known = [one.name for one in fields(cls)]
        for name in values:
            if name not in known:
                raise OptionError(unknown_name("training option", name, known))
        return cls(**values)

    @property
    def tries_rates(self) -> bool:
        """Whether no learning rate was given, so that more than the rule's rate is tried."""
        return self.lr is None and self.lr_scale is None

    @property
    def changed(self) -> dict[str, Any]:
        """Name -> value of the options that are not at their defaults."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {one.name: values[one.name] for one in fields(self) if values[one.name] != one.default}

    @property
    def allowed_patience(self) -> int:
        """Epochs without a lower held-back loss that early stopping allows."""
        return self.patience if self.patience is not None else max(MIN_PATIENCE, round((self.epochs or 0) / 3))


def _at_least_one(value: int | None) -> bool:
    return value is None or value >= 1


def _check_budget(value: object) -> None:
    if value is None or value == AUTO:
        return
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise OptionError(
            f"budget must be > 0 seconds, or auto, got {value!r}. Leave it out for no limit; budget=60 is a minute."
        )


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What is chosen, how it is trained, and where it goes."""

    strategy: str = option(
        "auto",
        "auto decides; a name is done as asked: linear_probe, few_layers (the last stages), many_layers, lp_ft (most, "
        "from a solved head), surgical, norm_only, bias_only, lora.",
    )
    stage: Any = option(
        None,
        "With a named strategy: the stage that the head reads, a name or an index. joined reads all stages, selected "
        "their useful features; None: the best probe measured, or the last.",
    )
    unfreeze: Any = option(
        None,
        "With lp_ft, few_layers, many_layers or surgical: the stages to train, by name, or a number K for the last K; "
        "None: the strategy's default.",
    )
    mode: str = option(
        "evidence",
        "How auto decides: evidence (measured), search (fine-tuning is tried on held-back images before it is chosen), "
        "rule (the textbook's matrix of data size and similarity).",
    )
    norm: str = option(
        "auto",
        "Batch normalisation during fine-tuning: frozen, keep (statistics go on being measured), or the kind to swap "
        "it for (group, renorm, ...), which is refused where features get worse; auto decides.",
    )
    budget: Any = option(
        None,
        "Seconds for everything after the first frozen pass: further views (half of it at most), then the fit, in "
        "mode=search all trials; training ends at an epoch if it must. auto: twice the time must gain a point; None: "
        "no limit.",
        check=_check_budget,
    )
    head: str = option(
        "auto", "ridge, logistic, average (of the two), or auto: the average unless one is clearly better held back."
    )
    train: Recipe | None = option(
        None, "How networks are fine-tuned: a `Recipe`, or some of its values by name, {'epochs': 10}."
    )
    trainer: Any = option(None, "Options of Lightning's trainer: {'precision': 'bf16-mixed'}.", check=_check_trainer)
    out: Any = option(None, "Folder for model, result and report; None writes nothing (`Result.save` does it later).")
    resume: Any = option("auto", "auto: an interrupted run in out is resumed, to the same weights; false starts over.")
    overwrite: bool = option(False, "Replace a finished run of other settings in out; one of the same always is.")
    evaluate: Any = option(
        "auto",
        "auto: the test images are scored once, at the end (not in a sweep); false leaves that to `Result.evaluate` or "
        "transferkit evaluate.",
    )

    def __post_init__(self) -> None:
        _check_values(self)

    @property
    def budget_seconds(self) -> float | None:
        """The budget as a limit; None if there is none."""
        return None if self.budget is None or self.budget == AUTO else float(self.budget)

    @property
    def recipe(self) -> Recipe:
        """How networks are fine-tuned, all defaults filled in."""
        return Recipe() if self.train is None else self.train


@dataclass(frozen=True, kw_only=True)
class AdaptOptions(FitOptions, PassOptions):
    """All options of `adapt`; those of `analyze`, `decide` and `rank` are among them."""

    def __post_init__(self) -> None:
        PassOptions.__post_init__(self)  # which looks at all fields


@dataclass(frozen=True, kw_only=True)
class ReviewOptions:
    """How much `doctor labels` and `doctor images` list; no other verb takes these."""

    limit: int = option(
        1000, "Doubtful labels, or pairs of copies and outliers, to list at most, the worst first.", check=check_limit
    )


def options_from(kind: type[T], arguments: Mapping[str, Any]) -> T:
    """The options among a function's arguments.

    Args:
        kind: Which options.
        arguments: Name -> value; what is missing has its default, what is no option of that kind is left out.

    Raises:
        OptionError: A value has the wrong type or is out of its range.
    """
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    given = {name: value for name, value in arguments.items() if name in known}
    train = given.get("train")
    if isinstance(train, Mapping):
        given["train"] = Recipe.named(train)
    elif train is not None and not isinstance(train, Recipe):
        raise OptionError(f"train must be a Recipe or its values by name, such as {{'epochs': 10}}, got {train!r}.")
    return kind(**given)
