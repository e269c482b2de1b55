"""Strategies: functions from a decision, or another request, to a plan; one file each, registered by name.

A plan only describes what is trained; `probe` and `finetune` execute it.
"""

from transferkit.strategies.bias_only import bias_only
from transferkit.strategies.dann import dann
from transferkit.strategies.few_layers import few_layers
from transferkit.strategies.fixmatch import fixmatch
from transferkit.strategies.linear_probe import linear_probe
from transferkit.strategies.lora import lora
from transferkit.strategies.lp_ft import lp_ft
from transferkit.strategies.many_layers import many_layers
from transferkit.strategies.norm_only import norm_only
from transferkit.strategies.plan import HEAD, NORMS, STRATEGIES, Adapters, Phase, Plan, PlanRequest, PlanSettings, Rule
from transferkit.strategies.rates import scaled_plan, with_new_head
from transferkit.strategies.reach import DECAYED, NEED_UNLABELLED, TUNABLE, check_unfreeze, with_unfrozen
from transferkit.strategies.surgical import surgical

__all__ = [
    "HEAD",
    "NEED_UNLABELLED",
    "NORMS",
    "STRATEGIES",
    "DECAYED",
    "TUNABLE",
    "Adapters",
    "Phase",
    "Plan",
    "PlanRequest",
    "PlanSettings",
    "Rule",
    "bias_only",
    "check_unfreeze",
    "dann",
    "few_layers",
    "fixmatch",
    "linear_probe",
    "lora",
    "lp_ft",
    "many_layers",
    "norm_only",
    "scaled_plan",
    "surgical",
    "with_new_head",
    "with_unfrozen",
]
