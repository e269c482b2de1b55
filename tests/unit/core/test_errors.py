from __future__ import annotations

import pytest

from transferkit.core import errors
from transferkit.core.errors import TransferkitError, list_problems, unknown_name

CLASSES = [getattr(errors, name) for name in errors.__all__ if isinstance(getattr(errors, name), type)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_user_error_has_one_base_and_keeps_its_message(cls):
    assert issubclass(cls, TransferkitError)
    assert str(cls("one short paragraph")) == "one short paragraph"


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.OptionError, ValueError),
        (errors.DataError, ValueError),
        (errors.CheckpointError, errors.BackboneError),
        (errors.HubError, errors.BackboneError),
        (errors.CacheError, OSError),
        (errors.RunFolderError, OSError),
        (errors.MissingDependencyError, ImportError),
    ],
)
def test_errors_are_what_plain_python_would_raise(cls, builtin):
    assert issubclass(cls, builtin)


def test_unknown_name_offers_the_closest_first():
    message = unknown_name("fruit", "appel", ["pear", "apple", "apples"], remedy="See the shop.")
    assert message == "Unknown fruit 'appel'. Closest known: apple, apples. See the shop."


def test_unknown_name_like_nothing_lists_what_there_is():
    assert unknown_name("fruit", "zzz", ["pear", "apple"]) == "Unknown fruit 'zzz'. Known: apple, pear."
    many = unknown_name("number", "zzz", [f"{i:03}" for i in range(100)])
    assert "011" in many
    assert "012" not in many


def test_unknown_name_takes_anything_for_a_name():
    assert unknown_name("fruit", 3, ["apple"]).startswith("Unknown fruit '3'.")


def test_problems_are_listed_a_line_each():
    assert list_problems("Two things:", iter(["one", "two"])) == "Two things:\n- one\n- two"
