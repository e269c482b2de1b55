"""The runs of a sweep (--multirun): listed and checked before the first one starts, summarised after the last."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from transferkit.cli.outcomes import RunOutcome
from transferkit.cli.tables import print_table
from transferkit.cli.words import plain_word
from transferkit.core.errors import OptionError, list_problems, problem_of

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

__all__ = ["Sweep", "check_runs", "differing_words", "list_runs"]

OF_LAUNCHER = "hydra.launcher."
"""Start of Hydra's settings that say where runs start, and change none of them."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What became of the runs of a sweep.

    Args:
        names: The settings of each run that differ from the others', in order; empty if they were not known before.
        outcomes: Of the runs that came to an end, by number.
    """

    names: Sequence[str] = ()
    outcomes: Sequence[RunOutcome] = ()

    @property
    def finished(self) -> list[RunOutcome]:
        """Runs that did not fail."""
        return [one for one in self.outcomes if not one.failure]

    @property
    def failures(self) -> list[str]:
        """The settings of each run that failed, and why."""
        ended = {one.number: f"{one.words}: {one.failure}" for one in self.outcomes}
        lost = {
            number: f"{name}: its process ended before it was finished (killed, or no memory left), or it never began"
            for number, name in enumerate(self.names)
            if number not in ended
        }
        failed = {one.number: ended[one.number] for one in self.outcomes if one.failure}
        return [said for _, said in sorted({**lost, **failed}.items())]

    def print_scores(self) -> None:
        """The runs and their held-back accuracies; how to score the best one on the test images."""
        known = [one for one in self.finished if one.score is not None]
        if not known:
            return
        rows = [
            (one.folder, one.words, "" if one.score is None else f"{100 * one.score:.1f} %") for one in self.finished
        ]
        print()
        print_table(("run", "settings", "held-back accuracy"), rows)
        best = max(known, key=lambda one: one.score or 0.0).folder
        print(f"Best held back: {best}. Its test accuracy: {shlex.join(['transferkit', 'evaluate', f'run={best}'])}")

    def describe_failures(self) -> str:
        """The message about runs that failed; empty if none did."""
        failures = self.failures
        if not failures:
            return ""
        runs = "1 run" if len(failures) == 1 else f"{len(failures)} runs"
        return list_problems(f"{runs} of this sweep failed; {len(self.finished)} finished:", failures)


def list_runs(words: Sequence[str]) -> list[list[str]] | None:
    """The words of every run, in Hydra's grammar; None where they cannot be listed from the words alone.

    Args:
        words: Of the sweep, flags among them.

    Raises:
        OptionError: A word is not in Hydra's grammar.
    """
    plain = [word for word in words if not word.startswith("-")]
    if any(word.lstrip("+~").startswith("hydra") and not word.startswith(OF_LAUNCHER) for word in plain):
        return None
    choices: dict[str, list[str]] = {}
    for override in _parse(plain):
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            return None
    return [list(run) for run in itertools.product(*choices.values())]


def _parse(words: Sequence[str]) -> list[Override]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return list(OverridesParser.create().parse_overrides(list(words)))
    except HydraException as error:
        said = str(error).split("\n")[0]
        raise OptionError(f"A word is not a setting: {said}. Write key=value; the verb's --help lists them.") from error


def differing_words(runs: Sequence[Sequence[str]]) -> list[str]:
    """The settings of each run that differ from the others', as typed."""
    common = set.intersection(*map(set, runs)) if len(runs) > 1 else set()
    return [" ".join(plain_word(word) for word in run if word not in common) for run in runs]


def check_runs(runs: Sequence[Sequence[str]], check: Callable[[Sequence[str], int], object]) -> None:
    """Check all runs, so that the last one does not fail after hours for what was known at first.

    Args:
        runs: Words of each, in Hydra's grammar.
        check: Words and number of a run; raises what is wrong with it.

    Raises:
        OptionError: Something is wrong with some of them, all of it in one message.
    """
    found = [problem_of(partial(check, run, number)) for number, run in enumerate(runs)]
    names = differing_words(runs)
    problems = [f"{name or 'all'}: {error}" for name, error in zip(names, found, strict=True) if error is not None]
    if problems:
        headline = f"{len(problems)} of the {len(runs)} runs of this sweep cannot work, so none was started:"
        raise OptionError(list_problems(headline, problems))
