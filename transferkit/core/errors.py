"""Exceptions and their messages: what was expected, what came, the next step.

Everything a user can cause derives from `TransferkitError`; the command line prints it as one short paragraph and
leaves with exit code 2. Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

__all__ = [
    "BackboneError",
    "CacheError",
    "CheckpointError",
    "DataError",
    "HubError",
    "MissingDependencyError",
    "OptionError",
    "RunFolderError",
    "TransferkitError",
    "list_problems",
    "problem_of",
    "unknown_name",
]


class TransferkitError(Exception):
    """Base class of every error that a user can cause and fix."""


class OptionError(TransferkitError, ValueError):
    """An argument has a value that cannot work."""


class DataError(TransferkitError, ValueError):
    """The images, labels or splits cannot be used as they are."""


class BackboneError(TransferkitError, ValueError):
    """The model name or module cannot serve as a backbone."""


class CheckpointError(BackboneError):
    """A weights file does not fit the architecture."""


class HubError(BackboneError):
    """Pretrained weights could not be fetched."""


class CacheError(TransferkitError, OSError):
    """The feature bank cannot be read or written."""


class RunFolderError(TransferkitError, OSError):
    """A run's folder is missing, incomplete, or already taken."""


class MissingDependencyError(TransferkitError, ImportError):
    """An optional package is needed for what was asked."""


def unknown_name(kind: str, name: object, known: Iterable[str], *, remedy: str = "") -> str:
    """Message for an unknown name: the closest known names, then the remedy.

    Example:
        >>> unknown_name("strategy", "lp-ft", ["linear_probe", "lp_ft"])
        "Unknown strategy 'lp-ft'. Closest known: lp_ft."
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    offer = f"Closest known: {', '.join(close)}." if close else f"Known: {', '.join(names[:12])}."
    return " ".join(part for part in (f"Unknown {kind} {str(name)!r}.", offer, remedy) if part)


def list_problems(headline: str, problems: Iterable[str]) -> str:
    """One message for all the problems found, a line each.

    Example:
        >>> print(list_problems("The data cannot be used:", ["class 'cat' is empty"]))
        The data cannot be used:
        - class 'cat' is empty
    """
    return "\n".join([headline, *(f"- {problem}" for problem in problems)])


def problem_of(check: Callable[[], object]) -> TransferkitError | None:
    """The `TransferkitError` that a check raises, so that several can be reported at once; None if it passes.

    Example:
        >>> problem_of(lambda: None) is None
        True
    """
    try:
        check()
    except TransferkitError as error:
        return error
    return None
