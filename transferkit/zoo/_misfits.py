"""What is said of a weights file that does not fit, or that leaves a choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transferkit.zoo._blueprint import Blueprint
from transferkit.zoo._matching import Match, Misfit, count_classes
from transferkit.zoo._weights_file import WRAPPED, Part

__all__ = [
    "CHECK_THE_NAME",
    "describe_found",
    "describe_left_out",
    "describe_passed_over",
    "describe_rivals",
    "find_remedy",
    "list_misfit",
]

SHOWN = 5
EXAMPLES = 3
COLOURS = 3
CHECK_THE_NAME = "Check the model name: the file must come from the same architecture."


def list_misfit(misfit: Misfit) -> list[str]:
    """A line for each way in which the file does not fit."""
    shapes = [f"{name} {_size(got)} instead of {_size(wanted)}" for name, got, wanted in misfit.shapes]
    kinds = {"missing": misfit.missing, "unexpected": misfit.unexpected, "of another shape": shapes}
    return [_listed(kind, entries) for kind, entries in kinds.items() if entries]


def _listed(kind: str, entries: Sequence[str]) -> str:
    more = ", ..." if len(entries) > SHOWN else ""
    return f"{_tensors(len(entries))} {'is' if len(entries) == 1 else 'are'} {kind}: {', '.join(entries[:SHOWN])}{more}"


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"


def _size(shape: Sequence[int]) -> str:
    return "x".join(str(side) for side in shape) or "a number"


def describe_found(match: Match, blueprint: Blueprint, parts: Sequence[Part]) -> list[str]:
    """Lines that say what is in the file and how much of the trunk that is."""
    state, trunk = match.part.state, blueprint.trunk or blueprint.head
    examples = ", ".join(f"{key} ({_size(tensor.shape)})" for key, tensor in list(state.items())[:EXAMPLES])
    under = f" under {'.'.join(match.part.where)!r}" if match.part.where else ""
    others = [".".join(part.where) or "the top level" for part in parts if part is not match.part]
    beside = f" (others are under {', '.join(others[:SHOWN])})" if others else ""
    named = sum(match.find(name) is not None for name in trunk)
    where = f"behind the best prefix, {match.prefix!r}," if match.prefix else "without a prefix"
    return [
        f"found: {_tensors(len(state))}{under}{beside}, such as {examples}",
        f"{where} they cover {named} of the {len(trunk)} tensors of the trunk by name, {match.covered(trunk)} by name "
        "and shape",
    ]


def describe_passed_over(best: Match, others: Sequence[Match]) -> str:
    """Which of several networks was taken; "" if there was one."""
    if not others:
        return ""
    return f"from {best.describe()}, not from {', '.join(match.describe() for match in others[:SHOWN])}"


def describe_left_out(match: Match, blueprint: Blueprint) -> str:
    """What the file has in the place of the classifier, if that was left out."""
    if count_classes(match, blueprint) or not blueprint.head:
        return ""
    heads = tuple(match.name(path) for path in blueprint.head_paths)
    left = [key for key in match.part.state if key.startswith(heads)]
    return f"without its classifier ({', '.join(left[:SHOWN])}), which is of another form" if left else ""


def find_remedy(match: Match, misfit: Misfit, file: Path) -> str:
    """The next step, where no other architecture fits."""
    stem = _find_odd_stem(misfit)
    return CHECK_THE_NAME if stem is None else _rewire_stem(match, stem, file)


def _find_odd_stem(misfit: Misfit) -> str | None:
    """Name of the one layer that differs, if only in the number of channels of the images that it reads."""
    if misfit.missing or misfit.unexpected or len(misfit.shapes) != 1:
        return None
    ((name, got, wanted),) = misfit.shapes
    alike = len(got) == len(wanted) == 4 and (got[0], *got[2:]) == (wanted[0], *wanted[2:])
    return name if alike and wanted[1] == COLOURS else None


def _rewire_stem(match: Match, stem: str, file: Path) -> str:
    """How to make a first layer read three channels. Equal grey channels then give what one channel gave."""
    tensor, key = match.find(stem), match.name(stem)
    assert tensor is not None
    channels = int(tensor.shape[1])
    reads = "1 channel" if channels == 1 else f"{channels} channels"
    said = f"Its first layer, {key}, reads {reads}, but images have {COLOURS} here (red, green and blue)."
    if 1 < channels < COLOURS:
        return f"{said} Choose weights that were trained on colour images."
    if channels == 1:
        change = f"weights[{key!r}].repeat(1, {COLOURS}, 1, 1) / {COLOURS}"
        if_so = "For grey images, spread it over the three and save"
    else:
        change = f"weights[{key!r}][:, :{COLOURS}]"
        if_so = "If its first three are red, green and blue, keep these and save"
    new = str(file.with_name(f"{file.stem}-rgb.pth"))
    return (
        f"{said} {if_so} the file anew:\nimport torch\n{_reading(match.part, file)}\nweights[{key!r}] = {change}\n"
        f"torch.save(weights, {new!r})\nThen pass checkpoint={new}."
    )


def describe_rivals(best: Match, rivals: Sequence[Match], file: Path) -> str:
    """The message where a file leaves a choice that only a person can make."""
    names = ", ".join(match.describe() for match in (best, *rivals)[:SHOWN])
    new = str(file.with_name(f"{file.stem}-one.pth"))
    kept = f"{{key: tensor for key, tensor in weights.items() if key.startswith({best.prefix!r})}}"
    return (
        f"{file.name} holds {len(rivals) + 1} networks that fit, with different weights: {names}. Save the one that "
        f"you want, here the first:\nimport torch\n{_reading(best.part, file)}\ntorch.save({kept}, {new!r})\n"
        f"Then pass checkpoint={new}."
    )


def _reading(part: Part, file: Path) -> str:
    """Python that reads a state dict of the file as `weights`, under the names used here."""
    inside = "".join(f"[{key!r}]" for key in part.where)
    lines = (
        ["from safetensors.torch import load_file", f"weights = load_file({str(file)!r})"]
        if file.suffix == ".safetensors"
        else [f"weights = torch.load({str(file)!r}, map_location='cpu', weights_only=True){inside}"]
    )
    if part.wrapped:
        lines = ["import re", *lines, f"weights = {{re.sub({WRAPPED!r}, '', key): weights[key] for key in weights}}"]
    return "\n".join(lines)
