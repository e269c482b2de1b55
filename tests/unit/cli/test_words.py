"""Paths on the command line are the text that was typed, whatever Hydra's grammar makes of such text."""

from __future__ import annotations

import random
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from transferkit.cli.composition import compose_settings, group_choices
from transferkit.cli.jobs import command_line
from transferkit.cli.sweeps import differing_words, list_runs
from transferkit.cli.words import JOB_PATHS, hydra_words, plain_word, split_list
from transferkit.core.errors import OptionError

AWKWARD = [
    "epoch=9-step=100.ckpt", "2025", "1e3", "true", "null", "None", "0x10", "a,b", "[a,b]", "(x)", "{y}", "it's", '"q"',
    "'q'", "a b", " lead", "ä/ö", "写真", "#1", "!x", "a&b;c", "a~b", "$HOME", "${seed}", "${now:%Y}", "\\${x}", "a\\",
    "\\'", "???", "-m", "@x:y", "%5B", "*.pth", "a=b=c", "x[1].pt", "é'\"=,${", "choice(1,2)", "range(3)", "+x", "a:b",
]  # fmt: skip


def settings_of(*words: str):
    return compose_settings(hydra_words(words, sources=group_choices("data")))


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", AWKWARD)
def test_a_path_arrives_as_it_was_typed_and_is_shown_as_it_was_typed(name):
    words = [f"data.root={name}", f"checkpoint=w/{name}", f"source=./{name}", f"cache={name}/c"]
    settings = settings_of(*words)
    typed = str(Path.cwd() / name) if name == "???" else name
    assert (settings.data.source, settings.data.root) == ("folder", typed)
    assert (settings.checkpoint, settings.source, settings.cache) == (f"w/{name}", f"./{name}", f"{name}/c")
    again = OmegaConf.create(OmegaConf.to_yaml(settings.data))  # what lies in .hydra/config.yaml
    assert again.root == typed
    shown = shlex.split(command_line("adapt", hydra_words(words, sources=group_choices("data")), settings))
    assert shown[:2] == ["transferkit", "adapt"]
    assert shown[2:] == ["data=folder", f"data.root={typed}", *words[1:], "seed=0"]


def test_null_leaves_out_what_may_be_left_out_unless_there_is_such_a_file(tmp_path):
    settings = settings_of("checkpoint=null", "cache=null", "source=null", "out=null")
    assert (settings.checkpoint, settings.cache, settings.source, settings.out) == (None, None, None, "null")
    (tmp_path / "null").touch()
    assert settings_of("checkpoint=null").checkpoint == "null"


def test_any_text_survives_the_way_there_and_back():
    rng = random.Random(0)
    pieces = [*"a=()[]{}'\"#!&;~,$ \\é:?*@<>|%+-\n", "${", "${a}", "\\${", "null"]
    for _ in range(300):
        name = "x" + "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 10)))
        (word,) = hydra_words([f"checkpoint={name}"], sources=[])
        assert plain_word(word) == f"checkpoint={name}"


@pytest.mark.parametrize("key", JOB_PATHS)
def test_an_empty_path_is_an_error(key):
    for value in ("", " "):
        with pytest.raises(OptionError, match=f"^{key}= is empty. .* variable of the shell"):
            hydra_words([f"{key}={value}"], sources=[])


def test_home_is_expanded_for_hydra(monkeypatch):
    monkeypatch.setenv("HOME", "/h o me")
    settings = settings_of("out=~/run", "data.root=~/d", "cache=~nobody-of-this-name")
    assert (settings.out, settings.data.root) == ("/h o me/run", "/h o me/d")
    assert settings.cache == "~nobody-of-this-name"


def test_a_run_cannot_be_named_like_an_interpolation():
    with pytest.raises(OptionError, match="cannot have \\$\\{ in its name"):
        settings_of("out=a${b}")


@pytest.mark.parametrize(
    ("words", "source"),
    [
        (["data.root=d"], "folder"),
        (["data.path=m.csv"], "manifest"),
        (["data.path=m.csv", "data.root=d"], "manifest"),
        (["data.root=d", "data.path=m.csv"], "manifest"),
        (["seed=1"], "builtin/digits"),
        (["data=folder", "data.root=x=1"], "folder"),
    ],
)
def test_a_place_says_what_kind_of_data_it_is(words, source):
    assert settings_of(*words).data.source == source


@pytest.mark.parametrize(("given", "remedy"), [("photos/", "data.root=photos/"), ("a/b.csv", "data.path=a/b.csv")])
def test_data_that_is_a_path_is_met_with_the_setting_for_it(given, remedy, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(OptionError, match=remedy):
        settings_of(f"data={given}")


@pytest.mark.parametrize("words", [["data=folder", "data.path=m.csv"], ["data=digits", "data.root=d"]])
def test_a_place_of_another_kind_of_data_is_refused(words):
    with pytest.raises(OptionError, match="Leave data= out"):
        settings_of(*words)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a.jpg,b.jpg", ["a.jpg", "b.jpg"]),
        (" a b , 'c,d' ,\"e\"", ["a b", "c,d", "e"]),
        ("2025,1e3", ["2025", "1e3"]),
        ("it's,b", ["it's", "b"]),
        ("a", ["a"]),
        ("", []),
        ("a,,b", ["a", "", "b"]),
    ],
)
def test_lists_are_split_at_commas_outside_quotes(text, parts):
    assert split_list(text) == parts


def test_in_a_sweep_several_inputs_are_a_run_each_but_a_file_of_that_name_is_one(tmp_path):
    words = hydra_words(["data.root=a=1,b (2)", "-m", "seed=0,1", "out=x,y"], sources=group_choices("data"))
    assert words[0] == "-m"
    runs = list_runs(words)
    assert differing_words(runs) == [
        f"data.root={root} seed={seed}" for root in ("a=1", "b (2)") for seed in (0, 1)
    ]  # fmt: skip
    assert {compose_settings(run, job=0).out for run in runs} == {"x,y"}
    assert [compose_settings(run, job=0).data.root for run in runs[::2]] == ["a=1", "b (2)"]
    (tmp_path / "a=1,b (2)").mkdir()
    runs = list_runs(hydra_words(["data.root=a=1,b (2)", "--multirun", "seed=0,1"], sources=group_choices("data")))
    assert [compose_settings(run, job=0).data.root for run in runs] == 2 * ["a=1,b (2)"]


def test_runs_that_another_sweeper_makes_up_are_not_listed():
    assert list_runs(["--multirun", "hydra/sweeper=optuna", "seed=0,1"]) is None
    assert list_runs(["--multirun", "train.lr=interval(0,1)"]) is None


@pytest.mark.parametrize(
    "name", ["image file", "file(s)", "a=b", "Größe", "it's", "x,y", "#", "写真", "1e3", "true", "[a]", "é'\"=,"]
)
def test_names_of_columns_are_plain_text(name):
    words = ["data.path=m.csv", f"data.columns.path={name}", "data.columns.label=kind"]
    settings = settings_of(*words)
    assert (str(settings.data.columns.path), settings.data.columns.label) == (name, "kind")
    assert [plain_word(word) for word in hydra_words(words, sources=group_choices("data"))][1:] == words


@pytest.mark.parametrize(("typed", "name"), [("'image file'", "image file"), ('"x"', "x"), ("null", None), ("'", "'")])
def test_names_of_columns_may_be_quoted_or_left_out(typed, name):
    assert settings_of("data.path=m.csv", f"data.columns.path={typed}").data.columns.path == name
