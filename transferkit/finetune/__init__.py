"""Fine-tuning of a plan with a Lightning trainer. Modules that need Lightning are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transferkit.core.lazy import attach
from transferkit.finetune.recipe import count_steps, fit_recipe
from transferkit.finetune.trainer_options import count_processes

if TYPE_CHECKING:
    from transferkit.finetune.blending import BlendRamp
    from transferkit.finetune.callbacks import FreezePlanCallback
    from transferkit.finetune.cross_validation import FineTuned, Judged, fine_tune, judge_folds
    from transferkit.finetune.cut_batch import CutBatch
    from transferkit.finetune.feeds import CutFeed
    from transferkit.finetune.freeze import FreezePlan, claims_table
    from transferkit.finetune.module import TransferModule
    from transferkit.finetune.runner import Runner
    from transferkit.finetune.task import FineTuneTask

__all__ = [
    "BlendRamp",
    "CutBatch",
    "CutFeed",
    "FineTuneTask",
    "FineTuned",
    "FreezePlan",
    "FreezePlanCallback",
    "Judged",
    "Runner",
    "TransferModule",
    "claims_table",
    "count_processes",
    "fine_tune",
    "count_steps",
    "fit_recipe",
    "judge_folds",
]

_HOMES = {
    "BlendRamp": "blending",
    "CutBatch": "cut_batch",
    "CutFeed": "feeds",
    "FineTuned": "cross_validation",
    "FreezePlan": "freeze",
    "FreezePlanCallback": "callbacks",
    "Judged": "cross_validation",
    "Runner": "runner",
    "FineTuneTask": "task",
    "TransferModule": "module",
    "claims_table": "freeze",
    "fine_tune": "cross_validation",
    "judge_folds": "cross_validation",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = attach(__name__, _HOMES)
