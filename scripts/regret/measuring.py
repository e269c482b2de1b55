"""What benchmarks on the tasks of `make_tasks.py` share: their options, the features of a task, and the result."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from regret.paths import MODEL, SIZE
from transferkit.core.provenance import environment
from transferkit.options import PassOptions
from transferkit.workflow.measure import Measurement
from transferkit.workflow.session import open_session

__all__ = ["Chosen", "measure_features", "parse_tasks", "write_result"]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What the command line asks for.

    Args:
        folders: Of the tasks, in order.
        cache: Folder of the feature bank.
        out: File of the result; None prints only.
        seeds: Draws of each cell.
    """

    folders: tuple[Path, ...]
    cache: Path
    out: Path | None
    seeds: int


def parse_tasks(about: str | None, *, tasks: Sequence[str] | None = None, seeds: int = 3) -> Chosen:
    """Read the command line.

    Args:
        about: Shown by --help.
        tasks: Measurement by default; None: all there are.
        seeds: Draws by default.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder made by scripts/make_tasks.py")
    parser.add_argument("--tasks", nargs="*", default=tasks, help="names; default: %(default)s")
    parser.add_argument("--seeds", type=int, default=seeds, help="draws of each cell")
    parser.add_argument("--cache", type=Path, help="folder of the feature bank; default: in --root")
    parser.add_argument("--out", type=Path, help="file of the result")
    options = parser.parse_args()
    names = options.tasks or sorted(path.parent.name for path in options.root.glob("*/task.json"))
    return Chosen(
        folders=tuple(options.root / name for name in names),
        cache=options.cache or options.root / "bank",
        out=options.out,
        seeds=options.seeds,
    )


def measure_features(folder: Path, cache: Path) -> Measurement:
    """A frozen pass of the benchmark's backbone over a task, from the bank where it was made before."""
    options = PassOptions(image_size=SIZE, geometry="crop", views=1, cache=cache, progress=False)
    return open_session(MODEL, folder, options).measured


def write_result(
    script: str, rows: list[dict[str, Any]], summarise: Callable[[list[dict[str, Any]]], Any], out: Path | None
) -> None:
    """Print the summary, and write it with every row and the machine they were measured on."""
    result = {
        "script": script,
        "date": date.today().isoformat(),
        "machine": environment(seed=0, device="cpu"),
        "summary": summarise(rows),
        "rows": rows,
    }
    print(json.dumps(result["summary"], indent=1))
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
