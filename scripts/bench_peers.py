"""Accuracy against seconds, beside other tools: same machine, same weights, same images.

    python scripts/make_tasks.py --out tasks
    python scripts/bench_peers.py setup                        # an environment per group of peers, about 6 GB each
    python scripts/bench_peers.py run --root tasks --tasks stamps:20 textures --seeds 0 1
    python scripts/bench_peers.py table                        # docs/peers.md, docs/peers.svg

`--tasks stamps:20` is the task `stamps` with 20 training images per class, the first draw of the regret benchmark's
cell; without a number it has all of them. All test images are used. Contestants run one after another, in an order that
is reversed from one task to the next; each is a process in an environment of its own (scripts/peers/contestants/). A
result is written as soon as it is there and never measured again, unless versions, a contestant's file, or (ours) the
package have changed. A contestant that cannot run is a result as well: the reason is kept and printed.

Seconds do not include scoring the test images. `search`, which takes several times as long as the others, runs only if
it is named: `--contestants probe search fastai_14`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from peers.backbone import write_weights
from peers.environments import set_up
from peers.page import read, write_page
from peers.results import Results
from peers.roster import choose
from peers.running import Setting, run_all
from peers.tables import all_tables
from peers.tasks import prepare
from regret.paths import MODEL, ROOT, SIZE

from transferkit.core.errors import TransferkitError

BUILD = ROOT / "build"
LIMIT = 7200.0
"""Seconds after which a contestant is stopped."""


def setup(options: argparse.Namespace) -> int:
    """Make the environments; the exit code is 1 if one could not be made."""
    wanted = dict.fromkeys(one.venv for one in choose(options.contestants))
    failed = set_up(wanted, options.venvs)
    for name, reason in failed.items():
        print(f"{name} could not be installed:\n{reason}")
    return 1 if failed else 0


def run(options: argparse.Namespace) -> int:
    """Run every missing cell."""
    names = options.tasks or sorted(path.parent.name for path in options.root.glob("*/task.json"))
    setting = Setting(
        size=options.size,
        weights=write_weights(options.work / f"{MODEL.rpartition('/')[2]}.safetensors"),
        venvs=options.venvs,
        threads=options.threads,
        limit=options.limit,
        budget=options.budget,
    )
    stages = [prepare(options.root, name, options.work / "tasks") for name in names]
    run_all(Results(options.out), choose(options.contestants), stages, options.seeds, setting, retry=options.retry)
    return 0


def table(options: argparse.Namespace) -> int:
    """Print the tables and write the page."""
    known = read(options.out)
    print(all_tables(known["cells"]))
    if options.page is not None:
        write_page(known, options.page, MODEL)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("setup", help="make the environments")
    running = verbs.add_parser("run", help="run what is missing")
    showing = verbs.add_parser("table", help="print the tables, write docs/peers.md and docs/peers.svg")
    for verb in (making, running):
        verb.add_argument("--venvs", type=Path, default=BUILD / "peers-venvs", help="folder of the environments")
        verb.add_argument("--contestants", nargs="+", help="names; default: all but search")
    for verb in (running, showing):
        verb.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "peers.json", help="file of results")
    showing.add_argument("--page", type=Path, default=ROOT / "docs" / "peers.md", help="Markdown file to write")
    running.add_argument("--root", type=Path, default=BUILD / "tasks", help="folder made by scripts/make_tasks.py")
    running.add_argument("--tasks", nargs="+", metavar="NAME[:PER_CLASS]", help="default: all tasks, all images")
    running.add_argument("--seeds", type=int, nargs="+", default=[0])
    running.add_argument("--size", type=int, default=SIZE, help="side of the input in pixels")
    running.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="cores of each contestant")
    running.add_argument("--limit", type=float, default=LIMIT, help="seconds after which a contestant is stopped")
    running.add_argument("--budget", type=float, help="seconds after which contestants end by themselves")
    running.add_argument("--work", type=Path, default=BUILD / "peers", help="folder for weights and drawn tasks")
    running.add_argument("--retry", action="store_true", help="run again what failed")
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        return {"setup": setup, "run": run, "table": table}[options.verb](options)
    except (TransferkitError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    raise SystemExit(main())
