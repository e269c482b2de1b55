"""The command line: a verb, then settings. The only place that knows Hydra.

`adapt`, `analyze`, `rank`, `tune`, `zeroshot`, `extract` and `doctor labels` are Hydra jobs (a folder each, sweeps with
--multirun); other verbs borrow its grammar.
Paths are plain text after the first `=` (`words`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from transferkit.cli.adapting import ADAPT
from transferkit.cli.combining import COMBINE
from transferkit.cli.doctor import doctor
from transferkit.cli.extracting import EXTRACT
from transferkit.cli.help import HELP, USAGE
from transferkit.cli.jobs import stop
from transferkit.cli.light import CACHE, EVALUATE, EXPORT, PREDICT, SHARD, ZOO
from transferkit.cli.measuring import ANALYZE, RANK
from transferkit.cli.scarcity import fewshot
from transferkit.cli.shifting import SHIFT
from transferkit.cli.tuning import TUNE
from transferkit.cli.zero_shot import ZERO_SHOT
from transferkit.core.errors import OptionError, TransferkitError, unknown_name

__all__ = ["HELP", "VERBS", "main"]

EXIT_INTERRUPTED = 130

VERBS: dict[str, Callable[[list[str]], None]] = {
    "adapt": ADAPT,
    "analyze": ANALYZE,
    "rank": RANK,
    "doctor": doctor,
    "tune": TUNE,
    "fewshot": fewshot,
    "zeroshot": ZERO_SHOT,
    "extract": EXTRACT,
    "shard": SHARD,
    "predict": PREDICT,
    "evaluate": EVALUATE,
    "combine": COMBINE,
    "export": EXPORT,
    "shift": SHIFT,
    "zoo": ZOO,
    "cache": CACHE,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `transferkit` command.

    Exits with 0, with 1 where `doctor` raised an alarm, with 2 after an error that the user can mend, with 130 after
    Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    verb = given.pop(0) if given and "=" not in given[0] and not given[0].startswith("-") else None
    wants_help = any(word in ("-h", "--help", "help") for word in given)
    if wants_help or verb == "help" or "--version" in given:
        _print_help(verb, version="--version" in given)
        return
    verb = verb or "adapt"
    try:
        if verb not in VERBS:
            raise OptionError(unknown_name("verb", verb, VERBS, remedy="See transferkit --help."))
        VERBS[verb](given)
    except TransferkitError as error:
        stop(error, debug="debug=true" in given)
    except KeyboardInterrupt as stopped:
        print(f"\nInterrupted; {str(stopped) or 'nothing half-written was left behind.'}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def _print_help(verb: str | None, *, version: bool) -> None:
    from transferkit import __version__

    print(__version__ if version else HELP.get(verb or "", USAGE), end="\n" if version else "")
