"""What `analyze`, `adapt` and `rank` would do and cost: opened and timed briefly, nothing computed, nothing written."""

from transferkit.workflow.dry_run.adapting import (
    CLOSED_FORM_SECONDS,
    about,
    evidence_in_bank,
    measuring,
    plan_adapt,
    plan_analyze,
    plan_extract,
    views_of,
)
from transferkit.workflow.dry_run.passes import memory_of_features, planned_files
from transferkit.workflow.dry_run.prospect import Prospect, open_prospect
from transferkit.workflow.dry_run.ranking import plan_rank
from transferkit.workflow.dry_run.training import training_of

__all__ = [
    "CLOSED_FORM_SECONDS",
    "Prospect",
    "about",
    "evidence_in_bank",
    "measuring",
    "memory_of_features",
    "open_prospect",
    "plan_adapt",
    "plan_analyze",
    "plan_extract",
    "plan_rank",
    "planned_files",
    "training_of",
    "views_of",
]
