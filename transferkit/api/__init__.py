"""The verbs, each a flat signature and the road in a few lines: what `transferkit` and its command line call."""

from transferkit.api.adapting import adapt, check_adapt, decide
from transferkit.api.combining import combine, plan_combine
from transferkit.api.describing import check_zeroshot, zeroshot
from transferkit.api.measuring import analyze, rank
from transferkit.api.planning import dry_run
from transferkit.api.scarcity import add_class, check_fewshot, fewshot
from transferkit.api.shifting import measure_shift
from transferkit.api.tuning import check_tune, tune
from transferkit.result import Ensemble, Predictions, Result, load, load_ensemble
from transferkit.workflow.session import load_backbone

__all__ = [
    "Ensemble",
    "Predictions",
    "Result",
    "adapt",
    "add_class",
    "analyze",
    "check_adapt",
    "check_fewshot",
    "check_tune",
    "check_zeroshot",
    "combine",
    "decide",
    "dry_run",
    "fewshot",
    "load",
    "load_backbone",
    "load_ensemble",
    "measure_shift",
    "plan_combine",
    "rank",
    "tune",
    "zeroshot",
]
