"""Packages whose names are loaded late: what the type checker is told is what is found."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from transferkit.core.lazy import attach

ROOT = Path(__file__).parents[3]
PACKAGES = sorted(
    ".".join(path.parent.relative_to(ROOT).parts)
    for path in (ROOT / "transferkit").rglob("__init__.py")
    if "attach(" in path.read_text("utf-8")
)


def names_for_type_checkers(package: str) -> dict[str, str]:
    """Name -> the module it is imported from below `if TYPE_CHECKING:`."""
    source = (ROOT / package.replace(".", "/") / "__init__.py").read_text("utf-8")
    blocks = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    told = [node for block in blocks if ast.unparse(block.test) == "TYPE_CHECKING" for node in block.body]
    return {alias.name: str(node.module) for node in told if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_the_packages_are_found():
    assert {"transferkit", "transferkit.finetune"} <= set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_late_name_is_what_the_type_checker_is_told(package):
    module, told = importlib.import_module(package), names_for_type_checkers(package)
    assert sorted(module._HOMES) == sorted(told)
    assert set(told) <= set(module.__all__) <= set(dir(module))
    for name, home in told.items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_late_name_is_not_hidden_by_a_module(package):
    assert [
        name for name in importlib.import_module(package)._HOMES if importlib.util.find_spec(f"{package}.{name}")
    ] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_that_is_not_there_is_an_attribute_error(package):
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match=rf"module '{package}' has no attribute 'adopt'"):
        _ = module.adopt
    with pytest.raises(ImportError, match="adopt"):
        exec(f"from {package} import adopt")


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A package `shop` with two late names, whose module counts how often it is run."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text(
        "from transferkit.core.lazy import attach\n__all__ = ['bread', 'butter', 'till']\ntill = []\n"
        "__getattr__, __dir__ = attach(__name__, {'bread': 'goods', 'butter': 'goods', 'jam': 'goods'})\n"
    )
    (tmp_path / "shop" / "goods.py").write_text("import shop\nshop.till.append(1)\nbread = object()\nbutter = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("shop")
    for name in ("shop", "shop.goods"):
        sys.modules.pop(name, None)


def test_a_name_is_loaded_when_it_is_first_used_and_stays(shop):
    assert "shop.goods" not in sys.modules
    assert dir(shop) == ["bread", "butter", "till"]
    assert shop.bread is shop.bread is vars(shop)["bread"]
    assert shop.butter == 2
    assert len(shop.till) == 1


def test_a_name_that_its_module_lacks_is_said_to_lack_there(shop):
    with pytest.raises(AttributeError, match="'shop.goods' has no attribute 'jam'"):
        _ = shop.jam


def test_a_package_of_another_name_knows_nothing_of_it():
    find, _ = attach("transferkit.finetune", {"fit_recipe": "recipe"})
    with pytest.raises(AttributeError, match="'transferkit.finetune' has no attribute 'recipes'"):
        find("recipes")
