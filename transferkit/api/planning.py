"""`dry_run`: what another verb would do, and its cost."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from transferkit.api.adapting import adapt, check_adapt
from transferkit.api.describing import plan_zeroshot, zeroshot
from transferkit.api.measuring import analyze, rank
from transferkit.api.scarcity import check_fewshot, fewshot
from transferkit.api.tuning import check_tune, tune
from transferkit.core.errors import OptionError, unknown_name
from transferkit.core.paths import expand
from transferkit.options import AdaptOptions, PassOptions, options_from
from transferkit.records import DryRun
from transferkit.scarce.few_shot_options import FewShotOptions
from transferkit.tuning.search_options import TuneOptions
from transferkit.workflow.checks import check_arguments, check_clocks

__all__ = ["dry_run"]


def dry_run(verb: str, arguments: Mapping[str, Any]) -> DryRun:
    """What `adapt`, `analyze`, `rank`, `tune`, `fewshot` or `zeroshot` would do, and what that would cost.

    Nothing is trained, downloaded or written; a few batches are timed, unless an earlier run has timed them here.

    Args:
        verb: "adapt", "analyze", "rank", "tune", "fewshot" or "zeroshot".
        arguments: Name -> value, those of the function; what is missing has its default. `out` also with "analyze" and
            "rank": the folder that the command line would write to.

    Raises:
        OptionError: There is no such verb or argument, or one that it needs is missing.
        TransferkitError: What the function would raise before its work.

    Example:
        >>> plan = dry_run("adapt", {"model": "packaged/tf_efficientnet_lite0", "data": "DIR"})  # doctest: +SKIP
        >>> plan.seconds_low, plan.seconds_high, plan.memory_bytes, plan.disk_bytes_high  # doctest: +SKIP
        (41.7, 148.2, 1718943744, 164626432)
    """
    from transferkit.workflow.dry_run import plan_adapt, plan_analyze, plan_rank

    _check_call(verb, arguments)
    data, out = arguments.get("data"), None if arguments.get("out") is None else expand(arguments["out"])
    if verb == "adapt":
        check_adapt(arguments)
        options = options_from(AdaptOptions, arguments)
        check_clocks(options)
        return plan_adapt(arguments["model"], data, options)
    if verb == "tune":
        check_tune(arguments)
        from transferkit.tuning.dry_run import plan_tune

        return plan_tune(arguments["model"], data, options_from(TuneOptions, arguments))
    if verb == "fewshot":
        check_fewshot(arguments)
        from transferkit.scarce.dry_run import plan_fewshot

        return plan_fewshot(arguments["model"], data, options_from(FewShotOptions, arguments))
    if verb == "zeroshot":
        return plan_zeroshot(arguments)
    check_arguments(arguments, fits=False)
    passes = options_from(PassOptions, arguments)
    if verb == "rank":
        return plan_rank(arguments["models"], data, passes, out=out)
    return plan_analyze(arguments["model"], data, passes, out=out)


def _check_call(verb: str, arguments: Mapping[str, Any]) -> None:
    """Raise unless there is such a verb that takes these arguments."""
    verbs: dict[str, Callable[..., Any]] = {
        "adapt": adapt, "analyze": analyze, "rank": rank, "tune": tune, "fewshot": fewshot,
        "zeroshot": zeroshot,
    }  # fmt: skip
    if verb not in verbs:
        raise OptionError(unknown_name("verb", verb, verbs))
    taken = inspect.signature(verbs[verb]).parameters
    for name in arguments:
        if name not in (*taken, "out"):
            raise OptionError(unknown_name(f"argument of {verb}", name, [*taken, "out"]))
    if needed := [name for name, one in taken.items() if one.default is one.empty and name not in arguments]:
        raise OptionError(f"{verb} needs {' and '.join(needed)}.")
