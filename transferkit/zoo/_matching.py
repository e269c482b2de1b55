"""Finding the tensors of an architecture in a weights file, under any prefix, and checking that none is missing."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from transferkit.zoo._blueprint import COUNTER, Blueprint
from transferkit.zoo._weights_file import Part, preference

__all__ = ["Match", "Misfit", "count_classes", "find_misfit", "find_places", "is_same", "other_heads", "rank_of"]

LEFT_OUT = re.compile(
    r"(?:.*_)?(?:fc|fcs|head|heads|classifier|classifiers|clf|cls|linear|lin|dense|logits|output|mlp|proj|projection|"
    r"projector|predictor|prediction|queue|loss|criterion|prototypes|aux\w*|AuxLogits)(?:_?\d+|_ptr|_head|_layer)?|"
    r"decoder\w*|last_linear|last_layer|final\w*|mask_token|n_averaged|logit_scale|logit_bias"
)
"""Modules on top of a trunk, or used only in its training, that may be ignored. Any other module must have a
counterpart: a network without a register token or a normalisation layer of the file would be a different network."""

NUMBER = re.compile(r"(?<![^.])\d+(?=\.)")
"""A number between dots: an index in an `nn.Sequential`."""

BLEND = re.compile(r"members\.(\d+)\.")
"""Key of an averaged model from `adapt`: the trained network is member 0, the frozen probe member 1."""


@dataclass(frozen=True)
class Misfit:
    """Differences between a file and a network; false if there are none.

    Args:
        missing, unexpected: Names of tensors.
        shapes: Name, shape in the file, shape in the network.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    shapes: tuple[tuple[str, torch.Size, torch.Size], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)


@dataclass(frozen=True)
class Match:
    """A possible location of a network in a file.

    Args:
        part: The state dict.
        prefix: Prefix of the network's names in the file.
        numbers: Child of the network -> its number, if the file numbers them (`nn.Sequential(*net.children())`).
    """

    part: Part
    prefix: str
    numbers: Mapping[str, str] = field(default_factory=dict)

    def name(self, own: str) -> str:
        """Name in the file of the network's tensor `own`."""
        child, dot, rest = own.partition(".")
        return f"{self.prefix}{self.numbers.get(child, child)}{dot}{rest}"

    def find(self, own: str) -> torch.Tensor | None:
        """The network's tensor `own` in the file, if present."""
        return self.part.state.get(self.name(own))

    def covered(self, names: Mapping[str, torch.Size]) -> int:
        """Number of the network's tensors that the file has with the right shape."""
        found = ((self.find(name), shape) for name, shape in names.items())
        return sum(tensor is not None and tensor.shape == shape for tensor, shape in found)

    @property
    def address(self) -> str:
        """The keys and the prefix that lead to the network, dotted."""
        return ".".join((*map(str, self.part.where), self.prefix))

    def describe(self) -> str:
        """The same for display."""
        under = self.part.under
        return " ".join(repr(word) for word in (under, self.prefix) if word) or "no prefix"


def find_places(parts: Sequence[Part], blueprint: Blueprint) -> list[Match]:
    """All locations that contain tensors of the network, the likeliest first."""
    wanted = blueprint.trunk or blueprint.head
    places = [Match(part, prefix) for part in parts for prefix in _prefixes(part.state, wanted)]
    if not any(match.covered(wanted) == len(wanted) for match in places):
        numbered = [match for part in parts for match in _numbered(part, blueprint)]
        places += [match for match in numbered if match.covered(wanted)]
    places = places or [Match(part, "") for part in parts]
    return sorted(places, key=lambda at: (-at.covered(wanted), *rank_of(at, blueprint), len(at.prefix)))


def _prefixes(state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Size]) -> list[str]:
    """The prefixes under which most of the wanted names are found."""
    named: Counter[str] = Counter()
    for key in state:
        start = 0
        while start >= 0:
            if key[start:] in wanted:
                named[key[:start]] += 1
            start = key.find(".", start) + 1 or -1
    most = max(named.values(), default=0)
    return [prefix for prefix, count in named.items() if 2 * count > most]


def _numbered(part: Part, blueprint: Blueprint) -> Iterator[Match]:
    """Locations where the network's children may be numbered in order; some may have been left out by the script."""
    children = [child for child in blueprint.children if child in blueprint.tops]
    numbers: dict[str, set[int]] = defaultdict(set)
    for key in part.state:
        for found in NUMBER.finditer(key):
            numbers[key[: found.start()]].add(int(found[0]))
    for prefix, found_numbers in numbers.items():
        if len(found_numbers) >= len(children) > 0:
            yield Match(part, prefix, dict(zip(children, map(str, sorted(found_numbers)), strict=False)))


def rank_of(match: Match, blueprint: Blueprint) -> tuple[int, int, int, int]:
    """Preference of a match, lower is better: averages, a classifier that fits, common containers."""
    rank, place = preference(match.address)
    member = BLEND.search(match.address)
    return rank, -bool(count_classes(match, blueprint)), place, int(member[1]) if member else 0


def is_same(one: Match, other: Match, blueprint: Blueprint) -> bool:
    """Whether two matches contain the same trunk."""
    pairs = ((one.find(name), other.find(name)) for name in blueprint.trunk)
    return all(mine is not None and theirs is not None and torch.equal(mine, theirs) for mine, theirs in pairs)


def find_misfit(match: Match, blueprint: Blueprint) -> Misfit:
    """The trunk's tensors that the file lacks, and the file's tensors that suggest another architecture."""
    found = {name: match.find(name) for name in blueprint.trunk}
    missing = [name for name, tensor in found.items() if tensor is None]
    if not blueprint.trunk and not count_classes(match, blueprint):
        missing = list(blueprint.head)  # the network is only a classifier
    return Misfit(
        missing=tuple(missing),
        unexpected=tuple(_unexpected(match, blueprint)),
        shapes=tuple(
            (name, tensor.shape, blueprint.trunk[name])
            for name, tensor in found.items()
            if tensor is not None and tensor.shape != blueprint.trunk[name]
        ),
    )


def _unexpected(match: Match, blueprint: Blueprint) -> Iterator[str]:
    """Names of tensors under the prefix that belong neither to the network nor to a classifier or its training."""
    known = {match.name(name) for name in (*blueprint.trunk, *blueprint.head)}
    heads = tuple(match.name(path) for path in blueprint.head_paths)
    tops = {match.name(top).removeprefix(match.prefix) for top in blueprint.tops}
    readers = other_heads(match, blueprint)
    last = max((int(top) for top in tops if top.isdigit()), default=0)
    for key in match.part.state:
        if key in known or not key.startswith(match.prefix) or key.startswith(heads) or key.endswith(COUNTER):
            continue
        own = key.removeprefix(match.prefix)
        top = own.partition(".")[0]
        behind = bool(match.numbers) and top.isdigit() and int(top) > last  # in an nn.Sequential, after the trunk
        if top in tops or not (behind or LEFT_OUT.fullmatch(top) or top in readers):
            yield own


def other_heads(match: Match, blueprint: Blueprint) -> set[str]:
    """Modules next to the trunk that take its features as input, as its classifier does: linear layers of any name."""
    wide = {shape[1] for shape in blueprint.head.values() if len(shape) > 1}
    tensors: dict[str, list[torch.Tensor]] = defaultdict(list)
    for key, tensor in match.part.state.items():
        top, dot, _ = key.removeprefix(match.prefix).partition(".")
        if dot and key.startswith(match.prefix):
            tensors[top].append(tensor)
    known = {match.name(top).removeprefix(match.prefix) for top in (*blueprint.tops, *_tops(blueprint.head))}
    return {
        top
        for top, found in tensors.items()
        if top not in known
        and all(tensor.ndim <= 2 for tensor in found)
        and any(tensor.ndim == 2 and tensor.shape[1] in wide for tensor in found)
    }


def _tops(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def count_classes(match: Match, blueprint: Blueprint) -> int:
    """Outputs of the classifier in the file; 0 if there is none of the network's type."""
    counts = set()
    for name, shape in blueprint.head.items():
        tensor = match.find(name)
        own = shape[1:] if name in blueprint.counted else shape
        if tensor is None or tensor.ndim != len(shape) or tensor.shape[len(shape) - len(own) :] != own:
            return 0
        if name in blueprint.counted:
            counts.add(tensor.shape[0])
    return counts.pop() if len(counts) == 1 else 0
