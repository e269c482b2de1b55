"""Numbers and names as text: 97.4 %, 1,402 images, 3.2 s, "a linear classifier on frozen features"."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from transferkit.records import JOINED, SELECTED, TOP, BackboneSpec

__all__ = [
    "as_typed",
    "capitalise",
    "format_count",
    "format_measure",
    "format_measure_gain",
    "format_measure_range",
    "format_number",
    "format_part",
    "format_percent",
    "format_range",
    "format_seconds",
    "list_facts",
    "list_names",
    "name_split",
    "name_stage",
    "name_strategy",
    "order_splits",
    "plural",
    "quote",
    "shorten",
]

GAP = "\u202f"
"""Narrow no-break space: keeps a number and its unit on one line."""

MISSING = "\u2013"

MILLION = 1_000_000

STRATEGIES = {
    "linear_probe": "a linear classifier on frozen features",
    "few_layers": "fine-tuning of a few layers",
    "many_layers": "fine-tuning of many layers",
    "lp_ft": "a linear classifier first, then fine-tuning",
    "norm_only": "fine-tuning of the normalisation layers only",
    "bias_only": "fine-tuning of the biases only",
    "fixmatch": "fine-tuning with confident labels for unlabelled images (FixMatch)",
    "dann": "fine-tuning towards the domain of unlabelled images (DANN)",
    "surgical": "fine-tuning of selected layers (surgical)",
    "lora": "low-rank updates to frozen weights (LoRA)",
}

SPLITS = {"train": "training", "val": "validation", "test": "test"}


def format_percent(share: float, *, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage; only exactly 1 is 100 %, only exactly 0 is 0 %.

    Example:
        >>> [format_percent(share).replace(GAP, " ") for share in (0.9742, 1.0, 0.99996, 0.0, 0.00001)]
        ['97.4 %', '100 %', '> 99.9 %', '0 %', '< 0.1 %']
    """
    if not math.isfinite(share):
        return MISSING
    if share in (0, 1):
        return f"{share:.0%}".replace("%", f"{GAP}%")
    step = 10.0**-digits
    value = round(100 * share, digits)
    if value >= 100:
        return f">{GAP}{100 - step:.{digits}f}{GAP}%"
    if value <= 0:
        return f"<{GAP}{step:.{digits}f}{GAP}%"
    return f"{value:.{digits}f}{GAP}%"


def format_range(low: float, high: float) -> str:
    """An interval of shares as percentages.

    Example:
        >>> format_range(0.9634, 0.981).replace(GAP, " ")
        '96.3 – 98.1 %'
    """
    return f"{100 * low:.1f}{GAP}{MISSING}{GAP}{100 * high:.1f}{GAP}%"


def format_measure(value: float, measure: str) -> str:
    """A score: a share as a percentage, R2 as a number.

    Example:
        >>> format_measure(0.81234, "R2"), format_measure(0.5, "accuracy").replace(GAP, " ")
        ('0.812', '50.0 %')
    """
    if measure != "R2":
        return format_percent(value)
    return f"{value:.3f}" if math.isfinite(value) else MISSING


def format_measure_range(low: float, high: float, measure: str) -> str:
    """An interval of scores."""
    return format_range(low, high) if measure != "R2" else f"{low:.3f}{GAP}{MISSING}{GAP}{high:.3f}"


def format_measure_gain(gain: float, error: float, measure: str) -> str:
    """A difference of two scores with its standard error, shares in points."""
    return f"{gain:+.3f} ± {error:.3f}" if measure == "R2" else f"{100 * gain:+.1f} ± {100 * error:.1f}"


def format_count(count: int) -> str:
    """A count with thousands separated.

    Example:
        >>> format_count(1402)
        '1,402'
    """
    return f"{count:,}"


def format_part(part: int, whole: int) -> str:
    """A count out of a larger one, in millions if they still differ when rounded.

    Example:
        >>> format_part(1_210_570, 3_383_834), format_part(12_810, 3_383_834), format_part(3_380_000, 3_383_834)
        ('1.2 of 3.4 million', '12,810 of 3.4 million', '3,380,000 of 3,383,834')
    """
    if whole < MILLION:
        return f"{format_count(part)} of {format_count(whole)}"
    short, total = f"{part / MILLION:,.1f}", f"{whole / MILLION:,.1f}"
    if part < MILLION:
        return f"{format_count(part)} of {total} million"
    if short == total and part != whole:
        return f"{format_count(part)} of {format_count(whole)}"
    return f"{short} of {total} million"


EVERYDAY = 1e9
"""Numbers from here on, as the loss of a network that diverges, are written in powers of ten."""


def format_number(value: float) -> str:
    """Three significant digits, never in powers of ten for everyday sizes.

    Example:
        >>> [format_number(value) for value in (0.12345, 2.0, 1234.5, 0.00001, 1e30, float("inf"))]
        ['0.123', '2', '1,234', '1e-05', '1e+30', 'infinite']
    """
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "infinite"
    return f"{value:,.0f}" if 1000 <= abs(value) < EVERYDAY else f"{value:.3g}"


def format_seconds(seconds: float) -> str:
    """A duration, to about two digits.

    Example:
        >>> [format_seconds(s).replace(GAP, " ") for s in (0.003, 0.04, 3.21, 47.3, 725, 7500)]
        ['< 0.01 s', '0.04 s', '3.2 s', '47 s', '12 min 5 s', '2 h 5 min']
    """
    if not math.isfinite(seconds) or seconds < 0:
        return MISSING
    if seconds == 0:
        return f"0{GAP}s"
    if seconds < 0.005:
        return f"<{GAP}0.01{GAP}s"
    if seconds < 0.095:
        return f"{seconds:.2f}{GAP}s"
    if seconds < 9.95:
        return f"{seconds:.1f}{GAP}s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole}{GAP}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}{GAP}min" + (f" {rest}{GAP}s" if rest else "")
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{format_count(hours)}{GAP}h" + (f" {minutes}{GAP}min" if minutes else "")


def quote(name: str) -> str:
    """A class name inside a sentence.

    Example:
        >>> quote("5")
        '“5”'
    """
    return f"“{name}”"


def plural(count: int, one: str, many: str = "") -> str:
    """A count with its noun.

    Example:
        >>> plural(1, "class", "classes"), plural(1402, "image")
        ('1 class', '1,402 images')
    """
    return f"{format_count(count)} {one if count == 1 else many or one + 's'}"


def list_names(names: Sequence[str]) -> str:
    """Names in a sentence.

    Example:
        >>> list_names(["stem"]), list_names(["stem", "blocks.0", "top"])
        ('stem', 'stem, blocks.0 and top')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def shorten(name: str, *, length: int) -> str:
    """A name cut to `length` characters in the middle, because similar names often differ only at the end.

    Example:
        >>> shorten("Chesapeake Bay retriever", length=10)
        'Chesa…ever'
    """
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[len(name) - tail :]}"


def name_split(split: str) -> str:
    """A split in words."""
    return SPLITS.get(split, split)


def order_splits(splits: Iterable[str]) -> list[str]:
    """Splits in the order training, validation, test, then unknown ones.

    Example:
        >>> order_splits(["test", "extra", "train"])
        ['train', 'test', 'extra']
    """
    present = list(splits)
    return [name for name in SPLITS if name in present] + [name for name in present if name not in SPLITS]


def capitalise(phrase: str) -> str:
    """A phrase with its first letter in upper case, the others as they are."""
    return phrase[:1].upper() + phrase[1:]


def name_strategy(strategy: str, measure: str = "accuracy") -> str:
    """A strategy in words; an unknown one by its own name. Labels and numbers have no classifier, but a model.

    Example:
        >>> name_strategy("whitened_probe")
        'whitened probe'
    """
    named = STRATEGIES.get(strategy, strategy.replace("_", " "))
    return named if measure == "accuracy" else named.replace("classifier", "model")


def name_stage(stage: str, backbone: BackboneSpec) -> str:
    """A stage in words, with its position between stem and top."""
    if stage == JOINED:
        return "all stages joined"
    if stage == SELECTED:
        return "the selected features of all stages"
    if stage == TOP:
        return "the top stage"
    names = [spec.name for spec in backbone.stages]
    place = f" ({names.index(stage) + 1}\u00a0of\u00a0{len(names)})" if stage in names else ""
    return f"stage {stage}{place}"


def list_facts(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as flat (name, text) pairs, in their order.

    Example:
        >>> list(list_facts({"seed": 0, "versions": {"torch": "2.4"}, "gpus": []}))
        [('seed', '0'), ('versions torch', '2.4'), ('gpus', 'none')]
    """
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from list_facts(value, f"{name} ")
        elif isinstance(value, list | tuple | set | frozenset):
            yield name, ", ".join(str(part) for part in value) or "none"
        else:
            yield name, _text(value)


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def as_typed(command: str) -> str:
    """A command or call as it is typed into a fresh shell or Python: a call gets its import.

    Example:
        >>> print(as_typed("transferkit.adapt('m', 'd', seed=0)"))
        import transferkit
        transferkit.adapt('m', 'd', seed=0)
    """
    return f"import transferkit\n{command}" if command.startswith("transferkit.") else command
