"""Decision -> plan: each strategy is one file with one function, found by its name.

A plan says what is to be fitted; it does nothing itself.
"""

from transferkit.strategies.linear_probe import linear_probe
from transferkit.strategies.plan import STRATEGIES, Plan

__all__ = ["STRATEGIES", "Plan", "linear_probe"]
