"""The tables of docs/peers.md, in Markdown; where ours is worse is printed like where it is better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peers.outcomes import SMALL, Comparison, Final, Place, compare, failures, finals
from peers.roster import OURS, ROSTER

REASON = 300
"""Characters of an error that a table shows."""


def named(found: Mapping[Place, Mapping[str, Final]]) -> list[str]:
    """Contestants that finished somewhere, in the roster's order."""
    return [name for name in ROSTER if any(name in one for one in found.values())]


def legend(names: Sequence[str], versions: Mapping[str, Mapping[str, str]]) -> str:
    """Name, description and versions of each contestant."""
    lines = ["| name | contestant | versions |", "|-|-|-|"]
    for name in names:
        listed = ", ".join(f"{key} {value}" for key, value in versions[name].items() if key not in ("arguments",))
        lines.append(f"| {name} | {ROSTER[name].label} | {listed} |")
    return "\n".join(lines)


def accuracy_table(found: Mapping[Place, Mapping[str, Final]]) -> str:
    """Every task: accuracy of each contestant and its seconds; the most accurate in bold."""
    names = named(found)
    lines = [f"| task | training images | {' | '.join(names)} |", "|-|-|" + "-|" * len(names)]
    for place, one in found.items():
        best = max((f"{100 * final.accuracy:.1f}" for final in one.values()), key=float, default="")
        cells = [_cell(one.get(name), best) for name in names]
        lines.append(f"| {place.label} | {place.train} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(final: Final | None, best: str) -> str:
    if final is None:
        return "none"
    accuracy = f"{100 * final.accuracy:.1f}"
    return f"{f'**{accuracy}**' if accuracy == best else accuracy}, {seconds(final.seconds)}"


def seconds(value: float) -> str:
    """Seconds with two digits or more.

    Example:
        >>> seconds(3.14159), seconds(31.4), seconds(314.15)
        ('3.1 s', '31 s', '314 s')
    """
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """One of ours against every peer."""
    lines = [
        "| peer | tasks | points ahead | 95 % interval | less accurate on | times as fast | 95 % interval "
        "| since process start | slower on | as accurate in a third of its time |",
        "|-|-|-|-|-|-|-|-|-|-|",
    ]
    lines += [
        f"| {one.peer} | {one.places} | {one.points:+.1f} | {_span(one.points_interval, '+.1f')} "
        f"| {len(one.losses)} of {one.places} | {one.speed:.2g} | {_span(one.speed_interval, '.2g')} "
        f"| {one.speed_since_start:.2g} | {one.slower} of {one.places} | {one.early} of {one.places} |"
        for one in comparisons
    ]
    return "\n".join(lines)


def _span(interval: tuple[float, float] | None, form: str) -> str:
    return "none" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"


def loss_table(comparisons: Sequence[Comparison]) -> str:
    """Every task on which a peer was more accurate, the largest difference first."""
    rows = sorted((points, one.ours, one.peer, place) for one in comparisons for place, points in one.losses.items())
    lines = ["| ours | peer | task | points |", "|-|-|-|-|"]
    lines += [f"| {ours} | {peer} | {place} | {points:+.1f} |" for points, ours, peer, place in rows]
    return "\n".join(lines) if rows else "None."


def failure_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Every run that failed, with the reason."""
    lines = ["| contestant | task | reason |", "|-|-|-|"]
    for name, place, reason in failures(records):
        # A bar would end the cell, a line break the row.
        plain = " ".join(reason.split()).replace("|", "\\|")[:REASON]
        lines.append(f"| {name} | {place} | {plain} |")
    return "\n".join(lines) if len(lines) > 2 else "None."


def groups(found: Mapping[Place, Mapping[str, Final]]) -> Iterator[tuple[str, dict[Place, Mapping[str, Final]]]]:
    """Small tasks and larger ones, those groups that have any."""
    parts = {
        f"Up to {SMALL} training images": {place: one for place, one in found.items() if place.train <= SMALL},
        f"More than {SMALL} training images": {place: one for place, one in found.items() if place.train > SMALL},
    }
    yield from ((name, part) for name, part in parts.items() if part)


def comparisons_of(found: Mapping[Place, Mapping[str, Final]]) -> dict[str, list[Comparison]]:
    """Ours -> its comparison with every peer that shares a task with it."""
    peers = [name for name in named(found) if name not in OURS]
    listed = {name: [compare(found, name, peer) for peer in peers] for name in named(found) if name in OURS}
    return {name: [one for one in all_ if one is not None] for name, all_ in listed.items()}


def all_tables(records: Sequence[Mapping[str, Any]]) -> str:
    """Every table, with headings."""
    found = finals(records)
    parts = [f"## Every task\n\n{accuracy_table(found)}"]
    losses = []
    for heading, part in groups(found):
        parts.append(f"## {heading}")
        for name, listed in comparisons_of(part).items():
            losses += listed
            parts.append(f"`{name}` ({ROSTER[name].label}) against each peer:\n\n{comparison_table(listed)}")
    parts.append(f"## Where a peer is more accurate\n\n{loss_table(losses)}")
    parts.append(f"## Runs that failed\n\n{failure_table(records)}")
    return "\n\n".join(parts)
