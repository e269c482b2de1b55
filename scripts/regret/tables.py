"""The tables of docs/regret.md, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from regret.cells import Cell
from transferkit.records import SELECTED


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """In Markdown, as docs/regret.md shows it."""
    lines = [
        "| policy | mean regret | 95 % interval | worst task | against best constant | 95 % interval | share of time |",
        "|-|-|-|-|-|-|-|",
    ]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["mean"]):
        low, high = row["interval"]
        less_low, less_high = row["less best constant, interval"]
        task, worst = row["worst task"]
        lines.append(
            f"| {name} | {row['mean']:.2f} | {low:.2f} to {high:.2f} | {worst:.1f} ({task}) "
            f"| {row['less best constant']:+.2f} | {less_low:+.2f} to {less_high:+.2f} "
            f"| {100 * row['share of exhaustive time']:.0f} % |"
        )
    return "\n".join(lines)


def gains_table(cells: Sequence[Cell], ways: Iterable[str]) -> str:
    """Accuracy of the best probe and of each fine-tuning strategy; farthest from the source first."""
    levels, shown = sorted({cell.level for cell in cells}), ", ".join(["probe", *ways])
    lines = [
        f"| task | similarity | {' | '.join(f'{level} per class: {shown}' for level in levels)} |",
        "|-|-|" + "-|" * len(levels),
    ]
    tasks: dict[str, list[Cell]] = {}
    for cell in cells:
        tasks.setdefault(cell.task, []).append(cell)
    near = {
        task: statistics.fmean(cell.evidence.similarity or 0.0 for cell in inside) for task, inside in tasks.items()
    }
    for task in sorted(tasks, key=near.__getitem__):
        found = {cell.level: gains_of(cell, ways) for cell in tasks[task]}
        lines.append(f"| {task} | {near[task]:.2f} | {' | '.join(found.get(level, '') for level in levels)} |")
    return "\n".join(lines)


def gains_of(cell: Cell, ways: Iterable[str]) -> str:
    tuned = ", ".join(f"{100 * cell.tuned[name]['test']:.1f}" for name in ways)
    return f"{100 * cell.strategies[cell.kept(SELECTED)]['test']:.1f}: {tuned}"
