"""Who may import whom, read from the source itself: no module is run, so no import can hide behind another."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from structure import PACKAGE, ROOT, find_arrows, find_imports, functions, part_of, place_on_floors, sources

BASE = frozenset({"core", "records", "options"})
"""Seen by everyone; core sees itself alone, records and options see core."""

LAYERS: dict[str, frozenset[str]] = {
    "records": frozenset(),
    "options": frozenset(),
    # four siblings that never see each other
    "zoo": frozenset(),
    "data": frozenset(),
    "nn": frozenset(),
    "measure": frozenset(),
    "features": frozenset({"nn"}),
    "strategies": frozenset(),
    "decision": frozenset({"measure"}),
    "probe": frozenset({"nn", "measure", "features", "strategies"}),
    "finetune": frozenset({"nn", "measure", "features", "strategies", "decision", "probe"}),
    "report": frozenset(),
    "export": frozenset({"nn"}),
}
LAYERS["workflow"] = frozenset(
    {"zoo", "data", "nn", "measure", "features", "strategies", "decision", "probe", "finetune"}
)
LAYERS["result"] = frozenset({"zoo", "data", "nn", "measure", "features", "report", "export"})
LAYERS["doctor"] = frozenset({"data", "measure", "nn", "strategies", "finetune", "result", "workflow"})
LAYERS["tuning"] = frozenset({"features", "nn", "strategies", "probe", "finetune", "workflow"})
for _room in ("scarce", "shift", "ensemble"):
    LAYERS[_room] = frozenset(
        {"data", "nn", "measure", "features", "strategies", "probe", "finetune", "result", "workflow"}
    )
LAYERS["scarce"] |= {"zoo"}  # the text tower of a text-image model
LAYERS["api"] = frozenset(
    {"decision", "doctor", "ensemble", "features", "measure", "result", "scarce", "shift", "tuning", "workflow"}
)
LAYERS["cli"] = LAYERS["api"] | {"api", "data", "finetune", "report", "strategies", "zoo"}
"""Part of the package -> the parts it may import, besides the base and itself."""

HOMES = {
    "hydra": {"cli"},
    "omegaconf": {"cli"},
    "timm": {"zoo"},
    "open_clip": {"zoo"},
    "torchvision.models": {"zoo"},
    "optuna": {"tuning"},
    "ray": {"tuning"},
    "peft": {"finetune"},
}
"""Library -> the parts that may know of it."""

ROOT_NAMES = frozenset({("cli", "transferkit.__version__")})
"""(part, name) that may be read from the package root: the version has its one home there."""

AT_ONCE = frozenset({"transferkit.core.lazy.attach"})
"""What the package root may import when it is imported itself."""

NAMELESS = frozenset({"utils", "util", "misc", "helpers", "helper", "common", "manager"})
"""File names that say nothing."""

HEAVY = ("torch", "torchvision", "timm", "sklearn", "scipy", "matplotlib", "pytorch_lightning", "lightning", "hydra")


def find_violations(path: Path, source: str, parts: frozenset[str]) -> list[str]:
    """What is wrong with the imports of one file.

    Args:
        path: Relative to the repository, "transferkit/...".
        source: Its text.
        parts: The names directly under the package.
    """
    here, wrong = part_of(path), []
    allowed = {"core", here} | LAYERS.get(here, frozenset()) | (BASE if here not in BASE else frozenset())
    for found in find_imports(ast.parse(source)):
        problem = None
        top, *rest = found.target.split(".")
        library = next((name for name in HOMES if f"{found.target}.".startswith(f"{name}.")), None)
        if found.relative:
            problem = "is relative"
        elif library is not None and here not in HOMES[library]:
            problem = f"belongs in {' or '.join(sorted(HOMES[library]))} only"
        elif top == PACKAGE and here == "":
            problem = None if found.lazy or found.target in AT_ONCE else "is not lazy"
        elif (here, found.target) in ROOT_NAMES:
            problem = None
        elif top == PACKAGE and (not rest or rest[0] not in parts):
            problem = "takes the package root"
        elif top == PACKAGE and rest[0] not in allowed:
            problem = f"is not for {here} to see"
        if problem is not None:
            wrong.append(f"{path}:{found.line}: {found.target} {problem}")
    return wrong


PARTS = frozenset(part_of(path) for path in sources()) - {""}


def test_there_is_something_to_look_at():
    assert len(sources()) > 40
    assert len(PARTS) > 15


def test_imports_keep_to_the_layers():
    wrong = [line for path in sources() for line in find_violations(path, (ROOT / path).read_text("utf-8"), PARTS)]
    assert wrong == []


def test_every_part_has_its_place_in_the_table():
    assert not PARTS - {"core"} - set(LAYERS)
    assert all(seen <= set(LAYERS) - {"cli"} for seen in LAYERS.values())


def test_layers_stand_on_each_other_without_a_circle():
    placed: set[str] = set()
    waiting = dict(LAYERS)
    while ready := {part for part, seen in waiting.items() if seen <= placed}:
        placed |= ready
        waiting = {part: seen for part, seen in waiting.items() if part not in ready}
    assert waiting == {}


def test_the_house_keeps_its_size():
    arrows = find_arrows()
    floors = place_on_floors(arrows)
    assert set(arrows) == set(floors), "rooms that import each other in a circle"
    assert len(arrows) <= 27
    assert max(floors.values()) <= 11
    assert sum(map(len, arrows.values())) <= 165  # 6 or 7 a room


def test_a_class_name_occurs_once():
    homes: dict[str, list[str]] = {}
    for path in sources():
        for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(str(path))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_no_file_or_function_is_long():
    most = {PACKAGE: 500, "scripts": 500, "tests": 700}
    texts = {path: (ROOT / path).read_text("utf-8") for folder in most for path in sources(ROOT, folder)}
    assert [str(path) for path, text in texts.items() if text.count("\n") > most[path.parts[0]]] == []
    assert [one for path, text in texts.items() if path.parts[0] != "tests" for one in functions(path, text)
            if one.lines > 60] == []  # fmt: skip


def test_no_file_or_folder_says_nothing_by_its_name():
    names = [path for folder in (PACKAGE, "tests", "scripts") for path in (ROOT / folder).rglob("*")]
    assert [str(path) for path in names if path.stem.strip("_").lower() in NAMELESS] == []


@pytest.mark.parametrize(
    ("path", "snippet", "problem"),
    [
        ("core/errors.py", "from transferkit.records import TOP", "is not for core to see"),
        ("records/run.py", "from transferkit.nn import pool", "is not for records to see"),
        ("probe/heads.py", "from transferkit.finetune import Runner", "is not for probe to see"),
        ("nn/stages.py", "from transferkit.data import Data", "is not for nn to see"),
        ("zoo/_load.py", "import transferkit.nn.backbone", "is not for zoo to see"),
        ("measure/ridge.py", "from transferkit import nn", "is not for measure to see"),
        ("features/bank.py", "def later():\n    from transferkit.api import adapt", "is not for features to see"),
        ("strategies/plan.py", "from transferkit.nn import Backbone", "is not for strategies to see"),
        ("report/_render.py", "from transferkit.measure import assess", "is not for report to see"),
        ("core/errors.py", "from transferkit.nn import pool", "is not for core to see"),
        ("api.py", "from transferkit.cli import main", "is not for api to see"),
        ("decision.py", "from transferkit.features import FeatureBank", "is not for decision to see"),
        ("brand_new.py", "from transferkit.nn import pool", "is not for brand_new to see"),
        ("api.py", "import transferkit", "takes the package root"),
        ("api.py", "import transferkit as tk", "takes the package root"),
        ("api.py", "from transferkit import adapt", "takes the package root"),
        ("api.py", "from transferkit import *", "takes the package root"),
        ("api.py", "from transferkit import __version__", "takes the package root"),
        ("nn/stages.py", "from . import pooling", "is relative"),
        ("nn/stages.py", "from .pooling import pool", "is relative"),
        ("nn/stages.py", "if True:\n    try:\n        import timm\n    except ImportError:\n        pass", "zoo only"),
        ("nn/stages.py", "from timm.layers import DropPath", "zoo only"),
        ("nn/stages.py", "from torchvision import models", "zoo only"),
        ("nn/stages.py", "import torchvision.models.resnet", "zoo only"),
        ("api.py", "from omegaconf import OmegaConf", "cli only"),
        ("api.py", "import hydra", "cli only"),
        ("cli/jobs.py", "import optuna", "tuning only"),
        ("__init__.py", "from transferkit.api import adapt", "is not lazy"),
        ("__init__.py", "if True:\n    import transferkit.records", "is not lazy"),
        ("__init__.py", "from transferkit.core.errors import attach", "is not lazy"),
    ],
)
def test_a_forbidden_import_is_found(path, snippet, problem):
    (found,) = find_violations(Path(PACKAGE) / path, snippet, PARTS)
    assert found.endswith(problem)


@pytest.mark.parametrize(
    ("path", "snippet"),
    [
        ("nn/stages.py", "from transferkit.nn.pooling import pool\nfrom transferkit.records import TOP"),
        ("zoo/_timm.py", "def load():\n    import timm\n    from torchvision import models"),
        ("data/geometry.py", "from torchvision import transforms\nimport torchvision"),
        ("workflow/rank.py", "from transferkit import zoo\nfrom transferkit.nn import Backbone"),
        ("cli/jobs.py", "import hydra\nfrom transferkit.api import adapt"),
        ("core/registry.py", "from transferkit.core.errors import OptionError"),
        ("__init__.py", "from transferkit.core.lazy import attach"),
        ("__init__.py", "def __getattr__(name):\n    from transferkit import api"),
        ("__init__.py", "if TYPE_CHECKING:\n    from transferkit.api import adapt"),
        ("nn/stages.py", "import transferkitten\nimport timmy"),
    ],
)
def test_an_allowed_import_is_not(path, snippet):
    assert find_violations(Path(PACKAGE) / path, snippet, PARTS) == []


def test_importing_the_package_is_light():
    question = f"import sys, transferkit; print([name for name in {HEAVY!r} if name in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", question], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_reading_an_attribute_finds_it_and_a_typo_is_an_attribute_error():
    question = (
        "import transferkit as tk; print(tk.TransferkitError.__module__, set(tk.__all__) <= set(dir(tk))); tk.adpat"
    )
    answer = subprocess.run([sys.executable, "-c", question], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.stdout.strip() == "transferkit.core.errors True"
    assert "AttributeError: module 'transferkit' has no attribute 'adpat'" in answer.stderr
