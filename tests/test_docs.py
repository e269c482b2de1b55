"""What the documents say is so: commands, links, scripts, settings."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from transferkit.cli import HELP, VERBS
from transferkit.nn.norm import NORM_KINDS

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_ci_runs_the_readmes_second_command():
    first, second = re.findall(r"^python3 -m venv .*$", README, flags=re.M)
    assert ".venv/bin/transferkit adapt" in first
    assert second in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_scripts_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    for script in re.findall(r"scripts/\w+\.\w+|benchmarks/\w+\.json", text):
        assert (REPOSITORY / script).exists(), script
    assert "FIGURES" not in text


@pytest.mark.parametrize("text", [README, *HELP.values()])
def test_every_command_shown_is_a_verb(text):
    for verb in re.findall(r"^ *(?:\S*bin/)?transferkit ([a-z]+)\b", text, flags=re.M):
        assert verb in VERBS, verb


def test_constraints_are_names_and_versions_only():
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.+!]+", line) for line in pins)
    assert {"torch", "torchvision", "timm", "pytorch-lightning"} <= {line.split("==")[0] for line in pins}


def test_the_page_on_normalisation_has_a_row_for_every_kind():
    page = (REPOSITORY / "docs" / "normalisation.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, flags=re.M) == list(NORM_KINDS)


@pytest.mark.parametrize("file", sorted((REPOSITORY / "benchmarks").glob("*.json")), ids=lambda file: file.name)
def test_kept_figures_name_their_script_and_machine(file):
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert (REPOSITORY / kept["script"]).exists()
    assert kept["date"]
    assert kept["machine"]["cores"]
