"""What `analyze`, `adapt` and `rank` would do and cost: opened and timed briefly, nothing computed, nothing written."""

from transferkit.workflow.dry_run.adapting import plan_adapt, plan_analyze
from transferkit.workflow.dry_run.prospect import Prospect, open_prospect
from transferkit.workflow.dry_run.ranking import plan_rank
from transferkit.workflow.dry_run.scratch import scratch_cache

__all__ = [
    "Prospect",
    "open_prospect",
    "plan_adapt",
    "plan_analyze",
    "plan_rank",
    "scratch_cache",
]
