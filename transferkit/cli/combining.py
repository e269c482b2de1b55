"""`transferkit combine`: what it prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transferkit.cli.light import light_verb
from transferkit.cli.words import split_list
from transferkit.core.errors import OptionError

if TYPE_CHECKING:
    from transferkit.records import DryRun

__all__ = ["COMBINE"]


def _runs(text: str) -> list[str]:
    """The folders between the brackets.

    Raises:
        OptionError: They are not a list.
    """
    if not (text.startswith("[") and text.endswith("]")):
        raise OptionError(f"runs={text} is not a list. Write runs=[runs/a,runs/b].")
    return split_list(text[1:-1])


def _combine(settings: dict[str, Any]) -> None:
    from transferkit.api import combine

    runs = _runs(settings["runs"])
    found = combine(runs, out=settings["out"], overwrite=settings["overwrite"], seed=settings["seed"])
    for sentence in found.sentences:
        print(sentence)
    print(f"ensemble: {settings['out']}")


def _plan(settings: dict[str, Any]) -> DryRun:
    from transferkit.api import plan_combine

    more = {name: settings[name] for name in ("out", "overwrite", "seed")}
    return plan_combine(_runs(settings["runs"]), **more)


COMBINE = light_verb(
    "combine",
    _combine,
    _plan,
    text=("runs", "out"),
    settings={"runs": ..., "out": ..., "overwrite": False, "seed": 0, "debug": False},
)
