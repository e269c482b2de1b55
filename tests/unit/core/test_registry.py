from __future__ import annotations

import pytest

from transferkit.core.errors import OptionError
from transferkit.core.registry import Registry


@pytest.fixture
def fruits() -> Registry[str]:
    registry: Registry[str] = Registry("fruit")
    registry.register("pear")("a pear")
    registry.register("apple")("an apple")
    return registry


def test_registry_reads_like_a_dict_in_the_order_of_entry(fruits):
    assert dict(fruits) == {"pear": "a pear", "apple": "an apple"}
    assert list(fruits) == ["pear", "apple"]
    assert len(fruits) == 2
    assert "pear" in fruits
    assert "plum" not in fruits
    assert fruits["apple"] == "an apple"


def test_register_returns_what_it_files(fruits):
    @fruits.register("plum")
    def plum() -> str:
        return "a plum"

    assert fruits["plum"] is plum
    assert plum() == "a plum"


def test_unknown_entry_offers_the_closest(fruits):
    with pytest.raises(OptionError, match="Unknown fruit 'aple'. Closest known: apple."):
        fruits["aple"]


def test_a_name_can_be_taken_once(fruits):
    with pytest.raises(OptionError, match="The fruit 'pear' is registered already."):
        fruits.register("pear")
    assert fruits["pear"] == "a pear"


def test_registries_are_apart(fruits):
    assert len(Registry("fruit")) == 0
