"""Plan -> trained model: a head in closed form, or a network fine-tuned by a Lightning trainer.

What needs Lightning is imported when it is first asked for: a closed form does without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from transferkit.core.lazy import attach
from transferkit.train.closed_form import Fitted, fit_closed_form
from transferkit.train.heads import HEADS, HeadFit, choose_head, fit_heads
from transferkit.train.recipe import Recipe
from transferkit.train.trainer_options import count_processes
from transferkit.train.weighting import CLASS_WEIGHTS, class_weights

if TYPE_CHECKING:
    from transferkit.train.blending import BlendRamp
    from transferkit.train.callbacks import FreezePlanCallback
    from transferkit.train.feeds import CutFeed
    from transferkit.train.freeze import FreezePlan, claims_table
    from transferkit.train.module import CutBatch, TransferModule
    from transferkit.train.run import Runner
    from transferkit.train.tuning import FineTuned, Judged, Task, fine_tune, judge_folds

__all__ = [
    "CLASS_WEIGHTS",
    "HEADS",
    "BlendRamp",
    "CutBatch",
    "CutFeed",
    "FineTuned",
    "Fitted",
    "FreezePlan",
    "FreezePlanCallback",
    "HeadFit",
    "Judged",
    "Recipe",
    "Runner",
    "Task",
    "TransferModule",
    "choose_head",
    "claims_table",
    "class_weights",
    "count_processes",
    "fine_tune",
    "fit_closed_form",
    "fit_heads",
    "judge_folds",
]

_HOMES = {
    "BlendRamp": "blending",
    "CutBatch": "module",
    "CutFeed": "feeds",
    "FineTuned": "tuning",
    "FreezePlan": "freeze",
    "FreezePlanCallback": "callbacks",
    "Judged": "tuning",
    "Runner": "run",
    "Task": "tuning",
    "TransferModule": "module",
    "claims_table": "freeze",
    "fine_tune": "tuning",
    "judge_folds": "tuning",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = attach(__name__, _HOMES)
