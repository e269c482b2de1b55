"""The options of a run: each has its name, type, default and sentence here and nowhere else.

Python signatures, Hydra's configuration, `--help`, docstrings, docs/options.md and the checks are made from these
classes or tested against them. Whatever needs torch or a registry to be checked is checked in `workflow/checks.py`.
"""

from transferkit.options.fields import describe_options, documents, option, value_problem
from transferkit.options.fitting import AdaptOptions, FitOptions, ReviewOptions, options_from
from transferkit.options.passes import MAX_PIXELS, DataOptions, MeasureOptions, PassOptions
from transferkit.options.recipe import AUGMENTS, AVERAGES, OPTIMIZERS, SCHEDULES, Recipe

__all__ = [
    "AUGMENTS",
    "AVERAGES",
    "MAX_PIXELS",
    "OPTIMIZERS",
    "SCHEDULES",
    "AdaptOptions",
    "DataOptions",
    "FitOptions",
    "MeasureOptions",
    "PassOptions",
    "Recipe",
    "ReviewOptions",
    "describe_options",
    "documents",
    "option",
    "options_from",
    "value_problem",
]
