"""`transferkit combine`: what it prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transferkit.cli.light import light_verb
from transferkit.cli.words import split_list
from transferkit.core.errors import OptionError

if TYPE_CHECKING:
    from transferkit.records import DryRun

__all__ = ["COMBINE"]

PASSED = ("out", "method", "val", "overwrite", "seed")

SENTENCES = 2
"""Last reasons of a run whose weights were averaged that say how."""


def _runs(text: str) -> list[str]:
    """The folders between the brackets.

    Raises:
        OptionError: They are not a list.
    """
    if not (text.startswith("[") and text.endswith("]")):
        raise OptionError(f"runs={text} is not a list. Write runs=[runs/a,runs/b].")
    return split_list(text[1:-1])


def _combine(settings: dict[str, Any]) -> None:
    from transferkit.api import Ensemble, combine

    runs = _runs(settings["runs"])
    found = combine(runs, **{name: settings[name] for name in PASSED})
    said = found.sentences if isinstance(found, Ensemble) else found.decision.reasons[-SENTENCES:]
    print("\n".join(said))
    print(f"ensemble: {settings['out']}" if isinstance(found, Ensemble) else f"run: {settings['out']}")


def _plan(settings: dict[str, Any]) -> DryRun:
    from transferkit.api import plan_combine

    return plan_combine(_runs(settings["runs"]), **{name: settings[name] for name in PASSED})


COMBINE = light_verb(
    "combine",
    _combine,
    _plan,
    text=("runs", "out", "val"),
    settings={
        "runs": ...,
        "out": ...,
        "method": "average",
        "val": None,
        "overwrite": False,
        "seed": 0,
        "debug": False,
    },
)
