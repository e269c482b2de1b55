"""Regret of each policy for choosing a strategy, on tasks that anyone can generate.

    python scripts/make_tasks.py --out tasks [--hand-signs hand_signs.tar]
    python scripts/bench_regret.py run --tasks tasks        # every strategy on every task: half an hour on two cores
    python scripts/bench_regret.py tune --tasks tasks       # fine-tuning in every cell's first draw: hours
    python scripts/bench_regret.py score                    # the tables, from benchmarks/regret/; minutes
    python scripts/bench_regret.py calibrate                # expected and test accuracies: benchmarks/promises.json
    python scripts/bench_regret.py limits                   # bounds: benchmarks/regret_limits.json
    python scripts/bench_regret.py learn                    # rewrites transferkit/knowledge/gain_model.json

    python scripts/bench_regret.py run --tasks tasks --model resnet50_half       # another backbone, in the same way
    python scripts/bench_regret.py tune --tasks tasks --model resnet50_half --levels 20

`run` resumes if interrupted: one file per task, rewritten after each cell. A cell is a task at one number of
images per class and one draw of them; in it every strategy is fitted and tested on the task's own test images, and the
evidence is that of `transferkit analyze`. Strategies are a linear head, ridge or logistic, on each stage, on all
stages joined, and on the selected features of all; and, in the first draw of each level, fine-tuning strategies, each
with the model that `adapt` returns: the network, its average with the probe, or the probe.

Policies are scored on tasks that they were not fitted on: coefficients and the best constant strategy are chosen
without the task, its corrupted copies and its originals. Regret is the test accuracy of the best strategy of a cell
minus that of the chosen one, in points; the best is found on the test images themselves, so part of every regret is due
to chance and no policy can avoid it. Means are over tasks; within a task over its cells. `score` prints three tables:
cells with all fine-tuning strategies that were run on every task, cells with those that `adapt` considers, with these
alone, and all cells among linear heads alone. With several backbones, another table shows how well models fitted on the
others transfer to each of them.

`calibrate` compares every expected accuracy, before and after the fit, with the test accuracy, and counts how often its
interval covered it. `limits` compares the choice between probe and fine-tuning with one that knows the true gains, with
further covariates, and with a larger menu. The modules are in `regret/`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from regret.cells import families_of, read_cells
from regret.fine_tuning import tune
from regret.learning import write_knowledge
from regret.limits import write_limits
from regret.paths import CELLS, MODEL
from regret.promises import write_promises
from regret.running import run
from regret.writing import write_scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run", help="fit every strategy on every task; resumes if interrupted")
    tuning = verbs.add_parser("tune", help="fine-tune in the first draw of every cell that was run")
    tuning.add_argument("--strategies", default="lp_ft,few_layers", help="comma-separated")
    tuning.add_argument("--levels", default="20,100,5,1000", help="images per class at most, in this order")
    for verb in (running, tuning):
        verb.add_argument("--tasks", type=Path, required=True, help="folder made by scripts/make_tasks.py")
        verb.add_argument("--only", help="names of tasks, comma-separated")
        verb.add_argument("--cache", help="folder of the feature bank")
        verb.add_argument("--model", default=MODEL, help="a name that transferkit knows, or one of regret_backbones.py")
    verbs.add_parser("score", help="score every policy on the finished cells, write benchmarks/regret.json")
    verbs.add_parser("calibrate", help="expected against test accuracies, write benchmarks/promises.json")
    verbs.add_parser("limits", help="what better evidence could gain, write benchmarks/regret_limits.json")
    verbs.add_parser("learn", help="rewrite the gain model that ships with the package")
    options = parser.parse_args()
    if options.verb == "tune":
        levels = [int(level) for level in options.levels.split(",")]
        tune(options.tasks, options.cache, options.only, options.strategies.split(","), levels, options.model)
        return
    if options.verb == "run":
        run(options.tasks, options.cache, options.only, options.model)
        return
    cells = read_cells()
    if len(families_of(cells)) < 2:
        parser.error(f"{CELLS} contains too few tasks. Run `run` first.")
    written = {"learn": write_knowledge, "calibrate": write_promises, "score": write_scores, "limits": write_limits}
    written[options.verb](cells)


if __name__ == "__main__":
    main()
