"""Which parameters were trained and which were frozen: the claims of a freeze plan."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from transferkit.records import Claim
from transferkit.report._words import (
    MISSING,
    format_count,
    format_number,
    format_part,
    list_names,
    plural,
)

__all__ = ["Learning", "keeps_statistics", "name_trained", "write_learning"]

HEAD = "head"
"""Stage name of the classifier in claims."""

OPEN_CLAIMS = 12
"""A table of claims up to this length is shown at once; a longer one is folded."""

NAMED = 3
"""Up to so many stages are named one by one in a sentence."""

STATISTICS = {"fixed": "frozen", "updated": "updated", "none": MISSING}


@dataclass(frozen=True, kw_only=True)
class StageCell:
    """One stage in the drawing of a phase; positions in % of the width. `kind`: "all", "part" or "none" is trained."""

    x: float
    width: float
    kind: str
    title: str


@dataclass(frozen=True, kw_only=True)
class PhaseRow:
    """Which stages are trained in a phase, stem -> head."""

    name: str
    cells: tuple[StageCell, ...]
    value: str


@dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """One rule in one stage."""

    rule: str
    stage: str
    parameters: str
    lr: str
    decayed: str
    statistics: str
    frozen: bool


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What was trained.

    Args:
        phases: Rows of the drawing.
        ends: Names of the first and the last stage in it.
        kinds: Kinds of cells that occur in it.
        tables: Name of each phase and its rows.
        claims: Number of rows in all tables.
        folded: Whether there are too many rows to show at once.
    """

    sentence: str
    phases: tuple[PhaseRow, ...]
    ends: tuple[str, str]
    kinds: tuple[str, ...]
    tables: tuple[tuple[str, tuple[ClaimRow, ...]], ...]
    claims: int
    folded: bool


@dataclass(frozen=True)
class _Share:
    """How much of a stage is trained, in parameters."""

    stage: str
    trained: int
    whole: int

    @property
    def kind(self) -> str:
        return "none" if not self.trained else "all" if self.trained == self.whole else "part"


def write_learning(claims: Sequence[Claim]) -> Learning | None:
    """The claims as a sentence, a drawing and tables; None if there are none."""
    if not claims:
        return None
    phases = {name: list(members) for name, members in itertools.groupby(claims, key=lambda claim: claim.phase)}
    rows = tuple(_draw_phase(name, members) for name, members in phases.items())
    stages = [share.stage for share in _shares(claims)]
    found = {cell.kind for row in rows for cell in row.cells}
    return Learning(
        sentence=_describe(claims),
        phases=rows,
        ends=(stages[0], stages[-1]),
        kinds=tuple(kind for kind in ("all", "part", "none") if kind in found),
        tables=tuple((name, tuple(map(_write_claim, members))) for name, members in phases.items()),
        claims=len(claims),
        folded=len(claims) > OPEN_CLAIMS,
    )


def name_trained(claims: Sequence[Claim]) -> str:
    """What is trained in any phase, as a phrase; empty if nothing is.

    Example:
        >>> def claim(stage, lr):
        ...     return Claim(phase="all", rule=stage, stage=stage, tensors=1, parameters=9, lr=lr, decayed=9,
        ...                  statistics="none")
        >>> name_trained([claim("stem", 0), claim("mid", 0.1), claim("top", 0.1), claim("head", 0.1)])
        'the head and the last 2 stages, mid to top'
    """
    shares = _shares(claims)
    trunk = [share for share in shares if share.stage != HEAD]
    trained = [share for share in trunk if share.trained]
    head = any(share.trained for share in shares if share.stage == HEAD)
    if not trained:
        return "the head alone" if head else ""
    where = _name_stages([share.stage for share in trained], [share.stage for share in trunk])
    part = "part of " if any(share.kind == "part" for share in trained) else ""
    return f"{'the head and ' if head else ''}{part}{where}"


def keeps_statistics(claims: Sequence[Claim]) -> bool:
    """Whether any stage has running statistics."""
    return any(claim.statistics != "none" for claim in claims)


def _name_stages(trained: Sequence[str], known: Sequence[str]) -> str:
    if len(trained) == len(known):
        return f"all {len(known)} stages" if len(known) > 1 else f"stage {known[0]}"
    if len(trained) == 1:
        return f"stage {trained[0]}"
    first = known.index(trained[0])
    if list(known[first : first + len(trained)]) == list(trained):
        place = "the last " if trained[-1] == known[-1] else ""
        return f"{place}{len(trained)} stages, {trained[0]} to {trained[-1]}"
    if len(trained) <= NAMED:
        return f"stages {list_names(trained)}"
    return f"{len(trained)} of the {len(known)} stages"


def _shares(claims: Sequence[Claim]) -> list[_Share]:
    """Stem -> head. A stage trained in several phases counts once, with the largest part that was trained at a time."""
    phases = list(dict.fromkeys(claim.phase for claim in claims))
    shares = []
    for stage in dict.fromkeys(claim.stage for claim in claims):
        members = [[claim for claim in claims if claim.stage == stage and claim.phase == phase] for phase in phases]
        trained = max(sum(claim.parameters for claim in of_phase if claim.lr > 0) for of_phase in members)
        whole = max(sum(claim.parameters for claim in of_phase) for of_phase in members)
        shares.append(_Share(stage, trained, whole))
    return shares


def _describe(claims: Sequence[Claim]) -> str:
    shares = _shares(claims)
    trained, whole = sum(share.trained for share in shares), sum(share.whole for share in shares)
    updated = {claim.stage for claim in claims if claim.statistics == "updated"}
    fixed = {claim.stage for claim in claims if claim.statistics == "fixed"} - updated
    stages = {share.stage for share in shares if share.trained}
    if trained == whole:
        text = f"All {format_part(whole, whole).rpartition(' of ')[2]} parameters are trained."
    else:
        elsewhere = bool(fixed - stages) and not fixed & stages
        rest = "the rest, with its normalisation statistics" if elsewhere else "the rest"
        text = f"Trained: {format_part(trained, whole)} parameters ({name_trained(claims)}); frozen: {rest}."
    if updated:
        return f"{text} Normalisation statistics are updated in the trained stages."
    if fixed & stages:
        return f"{text} Normalisation statistics are frozen in all stages."
    return text


def _draw_phase(name: str, claims: Sequence[Claim]) -> PhaseRow:
    shares = _shares(claims)
    width = 100 / len(shares)
    cells = tuple(
        StageCell(x=round(n * width, 3), width=round(width, 3), kind=share.kind, title=_describe_share(share, claims))
        for n, share in enumerate(shares)
    )
    trained, whole = sum(share.trained for share in shares), sum(share.whole for share in shares)
    return PhaseRow(name=name, cells=cells, value=format_part(trained, whole))


def _describe_share(share: _Share, claims: Sequence[Claim]) -> str:
    if not share.trained:
        return f"{share.stage}: {plural(share.whole, 'parameter')}, frozen"
    rates = sorted({claim.lr for claim in claims if claim.stage == share.stage and claim.lr > 0}, reverse=True)
    at = list_names([format_number(rate) for rate in rates])
    return f"{share.stage}: {format_part(share.trained, share.whole)} parameters trained at {at}"


def _write_claim(claim: Claim) -> ClaimRow:
    frozen = claim.lr == 0
    return ClaimRow(
        rule=claim.rule,
        stage=claim.stage,
        parameters=format_count(claim.parameters),
        lr="frozen" if frozen else format_number(claim.lr),
        decayed=MISSING if frozen else _describe_decay(claim),
        statistics=STATISTICS.get(claim.statistics, claim.statistics),
        frozen=frozen,
    )


def _describe_decay(claim: Claim) -> str:
    if claim.decayed == claim.parameters:
        return "on all"
    return f"on {format_count(claim.decayed)}" if claim.decayed else "on none"
