"""Transfer learning that measures before it decides.

import transferkit as tk
result = tk.adapt("packaged/tf_efficientnet_lite0", "path/to/images")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transferkit.core.lazy import attach

if TYPE_CHECKING:
    from transferkit.api import adapt, analyze, decide, load
    from transferkit.core.errors import TransferkitError
    from transferkit.data.module import TransferDataModule
    from transferkit.look import load_backbone
    from transferkit.nn.norm import restore_norm, swap_norm, swapped_norms
    from transferkit.ranking import rank
    from transferkit.records import Decision, Evidence, Preprocessing, Ranking
    from transferkit.result import Predictions, Result
    from transferkit.train import FreezePlan, FreezePlanCallback, Recipe, TransferModule

__version__ = "0.1.0"

__all__ = [
    "Decision",
    "Evidence",
    "FreezePlan",
    "FreezePlanCallback",
    "Predictions",
    "Preprocessing",
    "Ranking",
    "Recipe",
    "Result",
    "TransferDataModule",
    "TransferModule",
    "TransferkitError",
    "adapt",
    "analyze",
    "decide",
    "load",
    "load_backbone",
    "rank",
    "restore_norm",
    "swap_norm",
    "swapped_norms",
]

_HOMES = {
    "Decision": "records",
    "Evidence": "records",
    "FreezePlan": "train",
    "FreezePlanCallback": "train",
    "Predictions": "result",
    "Preprocessing": "records",
    "Ranking": "records",
    "Recipe": "train",
    "Result": "result",
    "TransferDataModule": "data.module",
    "TransferModule": "train",
    "TransferkitError": "core.errors",
    "adapt": "api",
    "analyze": "api",
    "decide": "api",
    "load": "result",
    "load_backbone": "look",
    "rank": "ranking",
    "restore_norm": "nn.norm",
    "swap_norm": "nn.norm",
    "swapped_norms": "nn.norm",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = attach(__name__, _HOMES)
