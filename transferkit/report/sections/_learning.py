"""What learnt and what stayed as it was: the claims of a freeze plan."""

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

__all__ = ["Learning", "keeps_statistics", "name_learnt", "write_learning"]

HEAD = "head"
"""What claims call the classifier."""

OPEN_CLAIMS = 12
"""A table of claims up to this length is shown at once; a longer one is folded."""

NAMED = 3
"""Stages that a sentence names one by one."""

STATISTICS = {"fixed": "stay as they were", "updated": "updated", "none": MISSING}


@dataclass(frozen=True, kw_only=True)
class StageCell:
    """One stage in the drawing of a phase; positions in % of the width. `kind` is "all", "part" or "none" of it."""

    x: float
    width: float
    kind: str
    title: str


@dataclass(frozen=True, kw_only=True)
class PhaseRow:
    """Which stages learn in a phase, stem -> head."""

    name: str
    cells: tuple[StageCell, ...]
    value: str


@dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """One rule in one stage."""

    rule: str
    stage: str
    numbers: str
    lr: str
    decayed: str
    statistics: str
    frozen: bool


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What learnt.

    Args:
        phases: The drawing.
        ends: Names of the first and the last stage in it.
        kinds: Those of its cells that occur.
        tables: Name of each phase and its rows.
        claims: Rows in all.
        folded: Whether they are too many to be shown at once.
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
    """How much of a stage learns."""

    stage: str
    learnt: int
    whole: int

    @property
    def kind(self) -> str:
        return "none" if not self.learnt else "all" if self.learnt == self.whole else "part"


def write_learning(claims: Sequence[Claim]) -> Learning | None:
    """The claims in a sentence, a drawing and a table; None without any."""
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


def name_learnt(claims: Sequence[Claim]) -> str:
    """What learns in any phase, as a phrase; empty if nothing does.

    Example:
        >>> def claim(stage, lr):
        ...     return Claim(phase="all", rule=stage, stage=stage, tensors=1, parameters=9, lr=lr, decayed=9,
        ...                  statistics="none")
        >>> name_learnt([claim("stem", 0), claim("mid", 0.1), claim("top", 0.1), claim("head", 0.1)])
        'the head and the last 2 stages, mid to top'
    """
    shares = _shares(claims)
    trunk = [share for share in shares if share.stage != HEAD]
    learning = [share for share in trunk if share.learnt]
    head = any(share.learnt for share in shares if share.stage == HEAD)
    if not learning:
        return "the head alone" if head else ""
    where = _name_stages([share.stage for share in learning], [share.stage for share in trunk])
    part = "a part of " if any(share.kind == "part" for share in learning) else ""
    return f"{'the head and ' if head else ''}{part}{where}"


def keeps_statistics(claims: Sequence[Claim]) -> bool:
    """Whether there are running statistics anywhere."""
    return any(claim.statistics != "none" for claim in claims)


def _name_stages(learning: Sequence[str], known: Sequence[str]) -> str:
    if len(learning) == len(known):
        return f"all {len(known)} stages" if len(known) > 1 else f"stage {known[0]}"
    if len(learning) == 1:
        return f"stage {learning[0]}"
    first = known.index(learning[0])
    if list(known[first : first + len(learning)]) == list(learning):
        place = "the last " if learning[-1] == known[-1] else ""
        return f"{place}{len(learning)} stages, {learning[0]} to {learning[-1]}"
    if len(learning) <= NAMED:
        return f"stages {list_names(learning)}"
    return f"{len(learning)} of the {len(known)} stages"


def _shares(claims: Sequence[Claim]) -> list[_Share]:
    """Stem -> head. What learns in several phases counts once; were they different parts of a stage, the largest."""
    phases = list(dict.fromkeys(claim.phase for claim in claims))
    shares = []
    for stage in dict.fromkeys(claim.stage for claim in claims):
        members = [[claim for claim in claims if claim.stage == stage and claim.phase == phase] for phase in phases]
        learnt = max(sum(claim.parameters for claim in of_phase if claim.lr > 0) for of_phase in members)
        whole = max(sum(claim.parameters for claim in of_phase) for of_phase in members)
        shares.append(_Share(stage, learnt, whole))
    return shares


def _describe(claims: Sequence[Claim]) -> str:
    shares = _shares(claims)
    learnt, whole = sum(share.learnt for share in shares), sum(share.whole for share in shares)
    updated = {claim.stage for claim in claims if claim.statistics == "updated"}
    fixed = {claim.stage for claim in claims if claim.statistics == "fixed"} - updated
    learning = {share.stage for share in shares if share.learnt}
    if learnt == whole:
        text = f"All {format_part(whole, whole).rpartition(' of ')[2]} parameters are trained."
    else:
        rest = "the rest, its running statistics included" if fixed - learning else "the rest"
        text = f"Trained: {format_part(learnt, whole)} parameters ({name_learnt(claims)}); frozen: {rest}."
    if updated:
        return f"{text} In the stages that are trained, running statistics of normalisation are updated."
    if fixed & learning:
        return f"{text} Running statistics of normalisation are frozen in all stages."
    return text


def _draw_phase(name: str, claims: Sequence[Claim]) -> PhaseRow:
    shares = _shares(claims)
    width = 100 / len(shares)
    cells = tuple(
        StageCell(x=round(n * width, 3), width=round(width, 3), kind=share.kind, title=_describe_share(share, claims))
        for n, share in enumerate(shares)
    )
    learnt, whole = sum(share.learnt for share in shares), sum(share.whole for share in shares)
    return PhaseRow(name=name, cells=cells, value=format_part(learnt, whole))


def _describe_share(share: _Share, claims: Sequence[Claim]) -> str:
    if not share.learnt:
        return f"{share.stage}: {plural(share.whole, 'parameter')}, frozen"
    rates = sorted({claim.lr for claim in claims if claim.stage == share.stage and claim.lr > 0}, reverse=True)
    at = list_names([format_number(rate) for rate in rates])
    return f"{share.stage}: {format_part(share.learnt, share.whole)} parameters are trained, at {at}"


def _write_claim(claim: Claim) -> ClaimRow:
    frozen = claim.lr == 0
    return ClaimRow(
        rule=claim.rule,
        stage=claim.stage,
        numbers=format_count(claim.parameters),
        lr="frozen" if frozen else format_number(claim.lr),
        decayed=MISSING if frozen else _describe_decay(claim),
        statistics=STATISTICS.get(claim.statistics, claim.statistics),
        frozen=frozen,
    )


def _describe_decay(claim: Claim) -> str:
    if claim.decayed == claim.parameters:
        return "on all"
    return f"on {format_count(claim.decayed)}" if claim.decayed else "on none"
