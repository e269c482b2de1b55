"""benchmarks/regret.json and the tables that `bench_regret.py score` prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from regret import carrying_over
from regret.cells import Cell, as_weighed, tuned_everywhere, with_only
from regret.paths import MODEL, SCORES, SCRIPT, SIZE
from regret.scoring import expectation_errors, part
from regret.tables import gains_table, table
from transferkit.core.provenance import environment
from transferkit.decision.weighing import TUNED_SHARES


def write_scores(cells: Sequence[Cell]) -> None:
    """Score every policy on the finished cells, the main backbone in full, the others by transfer to them.

    Each task is evaluated with models fitted on the cells of all backbones without its family.
    """
    own = [cell for cell in cells if cell.model == MODEL]
    weighed, alone = with_only(own, TUNED_SHARES), [replace(cell, tuned={}) for cell in own]
    whole = with_only(own, tuned_everywhere(own))
    tables = {
        "all ways of fine-tuning": part(whole, cells),
        "ways that are weighed": part(weighed, as_weighed(cells)),
        "linear heads alone": part(alone, [replace(cell, tuned={}) for cell in cells]),
    }
    models = sorted({cell.model for cell in cells})
    carried = {model: carrying_over.carry_over(cells, model) for model in models} if len(models) > 1 else {}
    found: dict[str, Any] = {
        "script": SCRIPT,
        "date": date.today().isoformat(),
        "machine": environment(seed=0, device="cpu"),
        "model": f"{MODEL} at {SIZE} px",
        "tasks": sorted({cell.task for cell in cells}),
        **tables,
        "below the probe on held-back images": [
            f"{cell.task} {cell.level} {name}" for cell in own for name in cell.tuned if cell.pilot(name).gain.mean < 0
        ],
        "error of expected accuracies, points": expectation_errors(as_weighed(own)),
        "carried over to a backbone from the others": carried,
    }
    SCORES.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, scored in tables.items():
        print(f"{name}, {scored['cells']} cells:\n\n{table(scored['policies'])}\n")
    print(f"Test accuracy, %:\n\n{gains_table(weighed, TUNED_SHARES)}\n\n{gains_table(whole, whole[0].tuned)}")
    if carried:
        print(f"Transfer to other backbones:\n\n{carrying_over.table(carried)}")
