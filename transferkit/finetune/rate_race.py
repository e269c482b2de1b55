"""Which learning rates a run is trained at: a race of two over the first epochs, or a range test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from transferkit.core.distributed import broadcast, connect
from transferkit.decision import MIN_COMPARED_IMAGES
from transferkit.finetune.fold_runs import JUDGED_AT_ONCE, FoldRun, count_held_back, held_back_losses, run_fold
from transferkit.finetune.range_test import RangeTest, find_rate
from transferkit.finetune.runner import Runner
from transferkit.finetune.task import FineTuneTask
from transferkit.nn import is_out_of_memory
from transferkit.records import Fold
from transferkit.strategies import scaled_plan

__all__ = ["find_factor", "race_rates", "with_rates"]

FASTER = 3.0
"""Factor on the decision's rates that is tried as well. On 160 drawings (counting objects) `lp_ft` had 51 % test
accuracy at a tenth of the original rate and 75 % at three times that; on 580 letters in 29 typefaces 57 %, and it
diverged at three times that: no fixed rule fits both."""

CHECKS = ((1 / 3, 1.5), (1 / 2, 1.3), (2 / 3, 0.0))
"""(Share of the epochs, factor): a rate is dropped if its held-back loss is higher than that many times the other's.
The last check always decides. High rates catch up late: in one run on digits with faded ink the higher one was behind
after half of 14 epochs, and had half the loss at the end (0.28 against 0.58; test accuracy 92 against 81 %)."""

SEPARATED = 1e-3
"""Loss below which rates are not compared: all images are classified correctly, and lower values are meaningless."""


def with_rates(task: FineTuneTask, factor: float) -> FineTuneTask:
    """The task with all rates multiplied."""
    return task if factor == 1 else replace(task, plan=scaled_plan(task.plan, factor))


def race_rates(task: FineTuneTask, folds: Sequence[Fold], runner: Runner) -> tuple[float, list[FoldRun]]:
    """The better factor on the rates, and the folds that were compared, trained at it to the end.

    Both rates are trained up to the checks in `CHECKS`; the better one is then trained to the end.
    """
    faster = with_rates(task, FASTER)
    slow: list[FoldRun] = []
    fast: list[FoldRun] = []
    with runner.resumable() as runner:
        for number, fold in enumerate(folds):
            if slow and not runner.deadline.allows(slow[-1].seconds + fast[-1].seconds):
                break
            one, other, epochs = _race(task, faster, fold, runner, f"fold-{number}")
            slow.append(one)
            fast.append(other)
            slowly, quickly = broadcast((_lowest_loss(slow, epochs), _lowest_loss(fast, epochs)))
            if count_held_back(slow) >= MIN_COMPARED_IMAGES and max(slowly, quickly) > SEPARATED:
                break
        factor, ahead, suffix = (FASTER, fast, "-faster") if quickly < slowly else (1.0, slow, "")
        runner.notes.append(_describe(factor, slowly, quickly, images=count_held_back(slow), epochs=epochs))
        chosen = with_rates(task, factor)
        return factor, [
            run_fold(chosen, run.fold, runner, f"fold-{number}{suffix}", probe=run.probe)
            for number, run in enumerate(ahead)
        ]


def _race(
    task: FineTuneTask, faster: FineTuneTask, fold: Fold, runner: Runner, name: str
) -> tuple[FoldRun, FoldRun, int]:
    """Both rates on one fold, and the epochs after which they were compared."""
    probe = None
    checks = {math.ceil(share * (task.recipe.epochs or 1)): clear for share, clear in CHECKS}
    for epochs, clear in checks.items():
        slow = run_fold(task, fold, runner, name, epochs=epochs, probe=probe)
        probe = slow.probe
        fast = run_fold(faster, fold, runner, f"{name}-faster", epochs=epochs, probe=probe)
        lower, higher = sorted(broadcast((_lowest_loss([slow], epochs), _lowest_loss([fast], epochs))))
        if higher > clear * lower:
            break
    return slow, fast, epochs


def _lowest_loss(runs: Sequence[FoldRun], epochs: int) -> float:
    """Within the first epochs: a run that is resumed may have more."""
    return float(held_back_losses(runs)[:epochs].min())


def _describe(factor: float, slowly: float, quickly: float, *, images: int, epochs: int) -> str:
    times, within = f"{FASTER:g} times ", f"{epochs} epochs" if epochs > 1 else "1 epoch"
    return (
        f"Learning rates are {times if factor > 1 else ''}those of the decision: after {within} the lowest loss on the "
        f"first {images} held-back images was {slowly:.3g} at the decision's rates and {quickly:.3g} at {times}these."
    )


def find_factor(task: FineTuneTask, fold: Fold, runner: Runner) -> float:
    """The factor on the rates from a range test.

    Not stored in the run's folder: a resumed run repeats the test with the same result.
    """
    connect(runner.device)
    found = broadcast(_range_test(task, fold, runner.device))
    runner.notes.append(found.why)
    return found.factor


def _range_test(task: FineTuneTask, fold: Fold, device: torch.device) -> RangeTest:
    """Range test, with smaller batches if memory runs out: rates stable for these are stable for larger ones."""
    module, size = task.network(fold.train), task.recipe.batch_size or JUDGED_AT_ONCE
    while True:
        try:
            return find_rate(module, task.batches(fold.train, size), seed=task.seed, device=device)
        except RuntimeError as error:
            if size < 4 or not is_out_of_memory(error):  # normalisation needs two images
                raise
        size //= 2
        torch.cuda.empty_cache()
