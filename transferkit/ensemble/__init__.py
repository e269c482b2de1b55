"""Ensembles: several fits whose predictions are averaged, with weights chosen on held-back images."""

from transferkit.ensemble.combining import combine_runs
from transferkit.ensemble.dry_run import plan_combine
from transferkit.ensemble.heads import average_heads
from transferkit.ensemble.weighing import Weighed, weigh_members

__all__ = ["Weighed", "average_heads", "combine_runs", "plan_combine", "weigh_members"]
