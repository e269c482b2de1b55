"""Transfer learning that measures before it decides.

import transferkit as tk
result = tk.adapt("packaged/tf_efficientnet_lite0", "path/to/images")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transferkit.core.lazy import attach

if TYPE_CHECKING:
    from transferkit.api import (
        adapt,
        add_class,
        analyze,
        combine,
        decide,
        dry_run,
        fewshot,
        load,
        measure_shift,
        rank,
        tune,
        zeroshot,
    )
    from transferkit.core.errors import TransferkitError
    from transferkit.data.module import TransferDataModule
    from transferkit.finetune import FreezePlan, FreezePlanCallback, TransferModule
    from transferkit.nn.norm import restore_norm, swap_norm, swapped_norms
    from transferkit.nn.preprocessing import Whitening
    from transferkit.options import Recipe
    from transferkit.records import (
        Decision,
        DryRun,
        Evidence,
        FewShotRecord,
        Preprocessing,
        Ranking,
        ShiftRecord,
        TuningRecord,
    )
    from transferkit.result import Ensemble, Predictions, Result, load_ensemble
    from transferkit.workflow.session import load_backbone

__version__ = "0.1.0"

__all__ = [
    "Decision",
    "DryRun",
    "Ensemble",
    "Evidence",
    "FewShotRecord",
    "FreezePlan",
    "FreezePlanCallback",
    "Predictions",
    "Preprocessing",
    "Ranking",
    "Recipe",
    "Result",
    "ShiftRecord",
    "TransferDataModule",
    "TransferModule",
    "TransferkitError",
    "TuningRecord",
    "Whitening",
    "adapt",
    "add_class",
    "analyze",
    "combine",
    "decide",
    "dry_run",
    "fewshot",
    "load",
    "load_backbone",
    "load_ensemble",
    "measure_shift",
    "rank",
    "restore_norm",
    "swap_norm",
    "swapped_norms",
    "tune",
    "zeroshot",
]

_HOMES = {
    "Decision": "records",
    "DryRun": "records",
    "Ensemble": "result",
    "Evidence": "records",
    "FewShotRecord": "records",
    "FreezePlan": "finetune",
    "FreezePlanCallback": "finetune",
    "Predictions": "result",
    "Preprocessing": "records",
    "Ranking": "records",
    "Recipe": "options",
    "Result": "result",
    "ShiftRecord": "records",
    "TransferDataModule": "data.module",
    "TransferModule": "finetune",
    "TransferkitError": "core.errors",
    "TuningRecord": "records",
    "Whitening": "nn.preprocessing",
    "adapt": "api",
    "add_class": "api",
    "analyze": "api",
    "combine": "api",
    "decide": "api",
    "dry_run": "api",
    "fewshot": "api",
    "load": "result",
    "load_backbone": "workflow.session",
    "load_ensemble": "result",
    "measure_shift": "api",
    "rank": "api",
    "restore_norm": "nn.norm",
    "swap_norm": "nn.norm",
    "swapped_norms": "nn.norm",
    "tune": "api",
    "zeroshot": "api",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = attach(__name__, _HOMES)
