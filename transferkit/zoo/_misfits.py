"""Messages for weights files that do not fit, or that contain several networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from transferkit.zoo._blueprint import Blueprint
from transferkit.zoo._file_kinds import is_safetensors
from transferkit.zoo._matching import Match, Misfit, count_classes, other_heads
from transferkit.zoo._weights_file import WRAPPED, Part, loads_plainly

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
OTHER_TOKENS = 6  # class and register tokens that may precede the patch grid
MOST = 0.9
STATISTICS = ("running_mean", "running_var")
ADAPTERS = ("lora_", ".base_layer.")
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
    """Lines on the content of the file and how much of the trunk it covers."""
    state, trunk = match.part.state, blueprint.trunk or blueprint.head
    examples = ", ".join(f"{key} ({_size(tensor.shape)})" for key, tensor in list(state.items())[:EXAMPLES])
    under = f" under {match.part.under!r}" if match.part.where else ""
    others = [part.under or "the top level" for part in parts if part is not match.part]
    beside = f" (others are under {', '.join(others[:SHOWN])})" if others else ""
    named = sum(match.find(name) is not None for name in trunk)
    where = f"behind the best prefix, {match.prefix!r}," if match.prefix else "without a prefix"
    return [
        f"found: {_tensors(len(state))}{under}{beside}, such as {examples}",
        f"{where} they cover {named} of the {len(trunk)} tensors of the trunk by name, {match.covered(trunk)} by name "
        "and shape",
    ]


def describe_passed_over(best: Match, others: Sequence[Match]) -> str:
    """Which of several networks was loaded; "" if there is only one."""
    if not others:
        return ""
    return f"from {best.describe()}, not from {', '.join(match.describe() for match in others[:SHOWN])}"


def describe_left_out(match: Match, blueprint: Blueprint) -> str:
    """What the file has instead of the classifier, if that was left out."""
    if count_classes(match, blueprint) or not blueprint.head:
        return ""
    heads = tuple(match.name(path) for path in blueprint.head_paths)
    if left := [key for key in match.part.state if key.startswith(heads)]:
        return f"without its classifier ({', '.join(left[:SHOWN])}), which is of another type"
    others = tuple(f"{match.prefix}{top}." for top in other_heads(match, blueprint))
    left = [key for key in match.part.state if others and key.startswith(others)]
    return f"without the layers on top of it ({', '.join(left[:SHOWN])})" if left else ""


def find_remedy(match: Match, misfit: Misfit, blueprint: Blueprint, file: Path) -> str:
    """The next step if no other architecture fits."""
    if (stem := _find_odd_stem(misfit)) is not None:
        return _rewire_stem(match, stem, file)
    if (positions := _find_odd_positions(misfit)) is not None:
        return _resample(match, positions, file)
    if misfit.missing and all(name.endswith(STATISTICS) for name in misfit.missing):
        return (
            "The file lacks the running statistics of batch normalisation, because it was saved from parameters() or "
            "named_parameters(). Save model.state_dict(), which includes them."
        )
    if any(word in key for key in match.part.state for word in ADAPTERS):
        return (
            "The file contains adapters (LoRA) in addition to or instead of the weights that they modify. Merge them "
            "first with peft's model.merge_and_unload(), and save the state_dict() of the model that it returns."
        )
    tops = {name.partition(".")[0] for name in misfit.unexpected}
    if not (misfit.missing or misfit.shapes or tops & blueprint.tops):
        return _leave_out(match, misfit, file)
    if not match.covered(blueprint.trunk) and count_classes(match, blueprint):
        return "The file contains only a classifier, without the network below it. Pass the complete network's weights."
    if match.covered(blueprint.trunk) >= MOST * len(blueprint.trunk):
        return (
            f"{CHECK_THE_NAME} If the network was modified before training, build it the same way, and pass that "
            f"module instead of its name: transferkit.adapt(module, DATA, checkpoint={str(file)!r}, "
            "preprocessing=...)."
        )
    return CHECK_THE_NAME


def _find_odd_positions(misfit: Misfit) -> tuple[str, int, int, int] | None:
    """Name, other tokens, side and expected side of a position embedding, if only the size of its grid differs."""
    if misfit.missing or misfit.unexpected or len(misfit.shapes) != 1:
        return None
    ((name, got, wanted),) = misfit.shapes
    if not (len(got) == len(wanted) == 3 and got[0] == wanted[0] == 1 and got[2] == wanted[2]):
        return None
    for others in range(min(got[1], wanted[1], OTHER_TOKENS)):
        side, wanted_side = math.isqrt(got[1] - others), math.isqrt(wanted[1] - others)
        if side**2 == got[1] - others and wanted_side**2 == wanted[1] - others:
            return name, others, side, wanted_side
    return None


def _resample(match: Match, positions: tuple[str, int, int, int], file: Path) -> str:
    name, others, side, wanted = positions
    key, new = match.name(name), str(file.with_name(f"{file.stem}-{wanted}x{wanted}.pth"))
    return (
        f"Everything else fits: the network was trained at another image size, {side} x {side} patches instead of "
        f"{wanted} x {wanted}. Resample its position embedding, and save it to a new file:\nimport torch\n"
        f"from timm.layers import resample_abs_pos_embed\n{_reading(match.part, file)}\n"
        f"grid = dict(new_size=[{wanted}, {wanted}], num_prefix_tokens={others})\n"
        f"weights[{key!r}] = resample_abs_pos_embed(weights[{key!r}], **grid)\n"
        f"torch.save(weights, {new!r})\nThen pass checkpoint={new}."
    )


def _leave_out(match: Match, misfit: Misfit, file: Path) -> str:
    """How to save a file without the tensors that the architecture lacks."""
    tops = sorted({f"{match.prefix}{name.partition('.')[0]}" for name in misfit.unexpected})
    starts = tuple(f"{top}." for top in tops)
    new = str(file.with_name(f"{file.stem}-trunk.pth"))
    return (
        f"The file contains the complete network, and more: {', '.join(tops[:SHOWN])}. If that is part of the network, "
        "it is another architecture. If it is only on top of it, or normalises the pixels (then pass that "
        f"normalisation as preprocessing=), save the file without it:\nimport torch\n{_reading(match.part, file)}\n"
        f"kept = {{key: weights[key] for key in weights if not (key + '.').startswith({starts!r})}}\n"
        f"torch.save(kept, {new!r})\nThen pass checkpoint={new}."
    )


def _find_odd_stem(misfit: Misfit) -> str | None:
    """Name of the first layer, if only its number of input channels differs."""
    if misfit.missing or misfit.unexpected or len(misfit.shapes) != 1:
        return None
    ((name, got, wanted),) = misfit.shapes
    alike = len(got) == len(wanted) == 4 and (got[0], *got[2:]) == (wanted[0], *wanted[2:])
    return name if alike and wanted[1] == COLOURS else None


def _rewire_stem(match: Match, stem: str, file: Path) -> str:
    """How to convert a first layer to three input channels; equal grey channels then give the same output as one."""
    tensor, key = match.find(stem), match.name(stem)
    assert tensor is not None
    channels = int(tensor.shape[1])
    reads = "1 channel" if channels == 1 else f"{channels} channels"
    problem = f"Its first layer, {key}, takes {reads}, but images have {COLOURS} here (red, green and blue)."
    if 1 < channels < COLOURS:
        return f"{problem} Choose weights that were trained on colour images."
    if channels == 1:
        change = f"weights[{key!r}].repeat(1, {COLOURS}, 1, 1) / {COLOURS}"
        step = "For grey images, repeat its weights for all three and save it to"
    else:
        change = f"weights[{key!r}][:, :{COLOURS}]"
        step = "If its first three are red, green and blue, keep these and save it to"
    new = str(file.with_name(f"{file.stem}-rgb.pth"))
    return (
        f"{problem} {step} a new file:\nimport torch\n{_reading(match.part, file)}\nweights[{key!r}] = {change}\n"
        f"torch.save(weights, {new!r})\nThen pass checkpoint={new}."
    )


def describe_rivals(best: Match, rivals: Sequence[Match], file: Path) -> str:
    """The message for a file with several networks among which the user must choose."""
    names = ", ".join(match.describe() for match in (best, *rivals)[:SHOWN])
    new = str(file.with_name(f"{file.stem}-one.pth"))
    kept = f"{{key: tensor for key, tensor in weights.items() if key.startswith({best.prefix!r})}}"
    return (
        f"{file.name} contains {len(rivals) + 1} networks that fit, with different weights: {names}. Save the one that "
        f"you want, here the first:\nimport torch\n{_reading(best.part, file)}\ntorch.save({kept}, {new!r})\n"
        f"Then pass checkpoint={new}."
    )


def _reading(part: Part, file: Path) -> str:
    """Python that reads a state dict of the file as `weights`, under the names used here."""
    inside = "".join(f"[{key!r}]" for key in part.where)
    lines = (
        ["from safetensors.torch import load_file", f"weights = load_file({str(file)!r})"]
        if is_safetensors(file)
        else [f"weights = torch.load({str(file)!r}, map_location='cpu', weights_only={loads_plainly(file)}){inside}"]
    )
    if part.wrapped:
        lines = ["import re", *lines, f"weights = {{re.sub({WRAPPED!r}, '', key): weights[key] for key in weights}}"]
    return "\n".join(lines)
