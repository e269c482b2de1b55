"""Words of the command line whose value is a path: plain text after the first `=`, for people; quoted, for Hydra.

Everything that Hydra's grammar would read into a path (`=`, commas, brackets, quotes, `${...}`, numbers, `null`) is
quoted in one place, before Hydra sees it, and taken back where a command is shown to people.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from transferkit.core.errors import OptionError, unknown_name
from transferkit.core.paths import expand

__all__ = [
    "INPUTS",
    "JOB_PATHS",
    "check_given",
    "hydra_words",
    "is_multirun",
    "path_text",
    "plain_word",
    "quoted_text",
    "split_list",
]

INPUTS = ("data.root", "data.path", "labels", "checkpoint", "source", "attributes", "unlabelled", "teacher")
"""Settings of a job that name what is read; with --multirun, several of them are a run each."""

JOB_PATHS = (*INPUTS, "out", "cache")
"""Settings of adapt, analyze and rank that are paths."""

COLUMN_NAMES = tuple(f"data.columns.{name}" for name in ("path", "label", "split", "group"))
"""Settings that are names of a manifest's columns: plain text too, as people call columns "file(s)" or "Größe"."""

PLAIN_TEXTS = (*COLUMN_NAMES, "prompts", "classes")
"""Settings whose values are text in which brackets, colons and the like mean nothing."""

LISTS_OF_TEXTS = ("data.columns.label", "prompts", "classes")
"""Those of them that may be a list in brackets."""

LEFT_OUT = "null"
"""Stands for the usual value where a path may be left out, unless something of that name is there."""

MAY_BE_LEFT_OUT = ("labels", "checkpoint", "source", "cache", "attributes", "unlabelled", "teacher")

MULTIRUN = ("--multirun", "-m")

SOURCES = {"data.path": "manifest", "data.root": "folder"}
"""Setting -> the data source that it speaks of, the telling one first: a manifest may have a root as well."""


def hydra_words(words: Sequence[str], *, sources: Collection[str]) -> list[str]:
    """The same settings in Hydra's grammar, `data=folder` or `data=manifest` added where it goes without saying.

    Args:
        words: As a person typed them.
        sources: Names that `data=` may have.

    Raises:
        OptionError: A path is empty, or `data=` is one.

    Example:
        >>> hydra_words(["data.root=a=b, c", "seed=1"], sources=["folder"])
        ['data=folder', "data.root='a=b, c'", 'seed=1']
    """
    check_given(words, JOB_PATHS)
    sweeps = is_multirun(words)
    given = {_key(word): word.partition("=")[2] for word in words if "=" in word and not word.startswith("-")}
    _check_source(given.get("data"), sources)
    ours = not any(word.startswith(("-cn", "--config-name", "-cp", "--config-path")) for word in words)
    said = next((source for key, source in SOURCES.items() if key in given), None)
    implied = [f"data={said}"] if said and ours and "data" not in given else []
    flags = [word for word in words if word in MULTIRUN]  # first: Hydra reads no setting behind a flag behind a setting
    others = [_hydra_word(word, sweeps=sweeps) for word in words if word not in MULTIRUN]
    first = next((at for at, word in enumerate(others) if "=" in word and not word.startswith("-")), len(others))
    return [*flags, *others[:first], *implied, *others[first:]]


def is_multirun(words: Sequence[str]) -> bool:
    """Whether a sweep is asked for.

    Example:
        >>> is_multirun(["seed=0,1", "-m"])
        True
    """
    return any(word in MULTIRUN for word in words)


def check_given(words: Sequence[str], keys: Collection[str]) -> None:
    """No path may be empty: that is what an unset variable of the shell leaves.

    Raises:
        OptionError: One is.
    """
    empty = [key for word in words for key, equals, value in [word.partition("=")]
             if equals and key.lstrip("+") in keys and not value.strip()]  # fmt: skip
    if empty:
        raise OptionError(
            f"{'= and '.join(empty)}= is empty. Give a path, or leave {'it' if len(empty) == 1 else 'them'} out; was "
            "a variable of the shell not set?"
        )


def plain_word(word: str) -> str:
    """What `hydra_words` made of a word, as a person would type it.

    Example:
        >>> plain_word("data.root='it\\\\'s'"), plain_word("unfreeze=[a,b]")
        ("data.root=it's", 'unfreeze=[a,b]')
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if _key(word) not in (*JOB_PATHS, *COLUMN_NAMES):
        return word
    value = OverridesParser.create().parse_override(word).value()
    if isinstance(value, list):
        return f"{word.partition('=')[0]}=[{','.join(map(str, value))}]"
    return f"{word.partition('=')[0]}={LEFT_OUT if value is None else path_text(str(value))}"


def path_text(value: str) -> str:
    """The path behind a value whose `${` are escaped for OmegaConf."""
    return re.sub(r"(\\*)\$\{", lambda found: "\\" * ((len(found[1]) - 1) // 2) + "${", value)


def split_list(text: str) -> list[str]:
    """Parts between commas, without spaces around them; a part in quotes may hold commas itself.

    Example:
        >>> split_list("a.jpg, 'b,c.jpg',2025")
        ['a.jpg', 'b,c.jpg', '2025']
    """
    parts = re.findall(r"""\s*(?:'([^']*)'|"([^"]*)"|([^,]*?))\s*(?:,|$)""", text)
    found = [single or double or bare for single, double, bare in parts]
    return found[:-1] if found and not found[-1] else found


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


def _check_source(value: str | None, sources: Collection[str]) -> None:
    if value is None or value in sources or not ("/" in value or expand(value).exists()):
        return
    key = "data.root" if expand(value).is_dir() else "data.path"
    raise OptionError(
        unknown_name("data source", value, sources, remedy=f"A folder is data.root=DIR, a manifest data.path=FILE: "
                     f"{key}={value}.")
    )  # fmt: skip


def _hydra_word(word: str, *, sweeps: bool) -> str:
    key, equals, value = word.partition("=")
    name = key.lstrip("+")
    if name in PLAIN_TEXTS and value not in ("", LEFT_OUT):
        if name in LISTS_OF_TEXTS and value.startswith("[") and value.endswith("]"):
            return f"{key}=[{','.join(quoted_text(_unquoted(part)) for part in split_list(value[1:-1]))}]"
        return f"{key}={quoted_text(_unquoted(value))}"
    if name not in JOB_PATHS or not equals:
        return word
    there = _exists(value)
    if value == LEFT_OUT and name in MAY_BE_LEFT_OUT and not there:
        return word
    if sweeps and name in INPUTS and "," in value and not there:
        return f"{key}={','.join(_quoted(part) for part in split_list(value))}"
    if name == "out" and "${" in value:
        raise OptionError(f"out={value}: a run's folder cannot have ${{ in its name. Choose another with out=DIR.")
    return f"{key}={_quoted(value)}"


def _exists(value: str) -> bool:
    try:
        return expand(value).exists()
    except OSError:  # longer than a file name may be
        return False


def _quoted(path: str) -> str:
    text = str(expand(path)) if path.startswith("~") else path
    return quoted_text(str(Path(".", text).absolute()) if text == "???" else text)  # OmegaConf's for a missing value


def _unquoted(value: str) -> str:
    """A text without the quotation marks around it that Hydra's grammar would take off."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def quoted_text(text: str) -> str:
    """A text as a value in Hydra's grammar that is read as it stands."""
    from hydra.core.override_parser.types import Quote, QuotedString

    escaped = re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", text)
    return QuotedString(escaped, Quote.single).with_quotes()
