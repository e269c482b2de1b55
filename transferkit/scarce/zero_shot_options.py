"""The options of `zeroshot`, beside those of the frozen pass: name, type, default and sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transferkit.core.errors import OptionError, unknown_name
from transferkit.options import PassOptions, option

__all__ = ["ZERO_SHOT_METHODS", "DescriptionOptions", "ZeroShotOptions"]

ZERO_SHOT_METHODS = ("auto", "eszsl", "dap")


def _check_method(value: object) -> None:
    if value not in ZERO_SHOT_METHODS:
        raise OptionError(unknown_name("method", value, ZERO_SHOT_METHODS))


@dataclass(frozen=True, kw_only=True)
class DescriptionOptions:
    """What classes are described by, and how images are fitted to it."""

    attributes: Any = option(
        None,
        "Table (CSV, TSV, Parquet) with a row per class, of those without images too: the class's name, then a column "
        "per attribute (numbers, or true and false).",
    )
    method: str = option(
        "auto",
        "eszsl (features to attributes to classes in one ridge regression), dap (each attribute alone), or auto: the "
        "better one on classes turned unseen.",
        check=_check_method,
    )
    prompts: Any = option(
        None, "Instead of attributes, with an open_clip model: a sentence such as 'a photo of a {}', or a list of them."
    )
    classes: Any = option((), "With prompts: names of classes beside those that the images have.")


@dataclass(frozen=True, kw_only=True)
class ZeroShotOptions(DescriptionOptions, PassOptions):
    """All options of `zeroshot`."""

    out: Any = option(None, "Folder for model, result and report; None writes nothing (`Result.save` does it later).")
    overwrite: bool = option(False, "Replace a finished run of other settings in out; one of the same always is.")
    evaluate: Any = option(
        "auto", "auto: the test images are scored once, at the end (not in a sweep); false leaves that to later."
    )

    def __post_init__(self) -> None:
        PassOptions.__post_init__(self)  # which looks at all fields
