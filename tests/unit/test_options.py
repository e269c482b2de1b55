"""One definition of every option: signatures, checks, Hydra's schema, --help and docs agree with it."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from pathlib import Path

import numpy as np
import pytest

import transferkit as tk
from transferkit.cli.composition import compose_settings
from transferkit.cli.help import DESCRIPTIONS, HELP, REVIEWS, SECTIONS
from transferkit.cli.options_page import make_page
from transferkit.cli.schema import TAKEN_BY, arguments_of, check_taken, find_value_problems, known_settings
from transferkit.core.errors import OptionError
from transferkit.doctor import review_labels
from transferkit.finetune.schedule import SCHEDULES as CURVES
from transferkit.options import (
    SCHEDULES,
    AdaptOptions,
    DataOptions,
    FitOptions,
    MeasureOptions,
    PassOptions,
    Recipe,
    ReviewOptions,
    describe_options,
    options_from,
)

VERBS = (tk.adapt, tk.analyze, tk.rank, tk.decide, review_labels)
OTHERS = {"model", "models", "data", "evidence", "command", "limit"}
NOT_RANKED = {"checkpoint", "similarity", "source"}


def fields_of(kind):
    return {one.name: one for one in dataclasses.fields(kind)}


@pytest.mark.parametrize("verb", VERBS)
def test_defaults_of_a_verb_are_those_of_the_options(verb):
    known = fields_of(AdaptOptions)
    for name, parameter in inspect.signature(verb).parameters.items():
        if name not in OTHERS:
            assert parameter.default == known[name].default, name
            assert type(parameter.default) is type(known[name].default), name


@pytest.mark.parametrize(
    ("verb", "kind", "without"),
    [
        (tk.adapt, AdaptOptions, set()),
        (tk.analyze, PassOptions, set()),
        (tk.rank, PassOptions, NOT_RANKED),
        (review_labels, PassOptions, set()),
    ],
)
def test_a_verb_takes_all_options_of_its_kind(verb, kind, without):
    assert set(inspect.signature(verb).parameters) - OTHERS == set(fields_of(kind)) - without


@pytest.mark.parametrize("verb", VERBS)
def test_the_docstring_of_a_verb_explains_each_of_its_options(verb):
    text = inspect.getdoc(verb)
    assert "{options}" not in text
    for name in set(inspect.signature(verb).parameters) - OTHERS:
        assert f"\n    {name}: " in text, name


def test_types_of_a_verb_are_those_of_the_options_where_these_are_exact():
    declared = typing.get_type_hints(tk.adapt)
    for name, hint in typing.get_type_hints(AdaptOptions).items():
        if hint is not typing.Any and name != "train":
            assert declared[name] == hint, name


def test_an_option_of_several_kinds_is_checked_by_itself():
    """A union of kinds would refuse a whole number where a float may stand."""
    for name, one in known_settings().items():
        kinds = [kind for kind in str(one.type).split(" | ") if kind != "None"]
        assert len(kinds) == 1, name


@pytest.mark.parametrize("number", ["1", "1.0", "1e0"])
def test_every_number_may_be_typed_as_a_whole_one(number):
    wanted = [name for name, one in known_settings().items() if str(one.type).split(" | ")[0] == "float"]
    wanted += ["train.lr", "budget"]
    assert len(wanted) > 12
    for name in wanted:
        settings = compose_settings([f"{name}={number}"])
        group, _, inner = name.rpartition(".")
        value = (settings[group] if group else settings)[inner]
        assert value == 1, name


def test_a_rate_typed_as_a_whole_number_arrives_at_the_recipe():
    settings = compose_settings(["train.lr=10"])
    assert options_from(AdaptOptions, arguments_of(settings, tk.adapt)).recipe.lr == 10


@pytest.mark.parametrize("value", [True, 0, -1, "fast", [1, 2], float("nan"), float("inf"), "10"])
def test_a_rate_that_is_none_is_refused(value):
    message = "lr must be > 0, 'find', 'rule' or left out, got"
    with pytest.raises(OptionError, match=message):
        Recipe(lr=value)
    assert message in next(find_value_problems({"train.lr": value}))


def test_numpys_rates_are_rates():
    assert Recipe(lr=np.float32(0.5)).lr == 0.5


@pytest.mark.parametrize(("verb", "word"), [("adapt", "limit=5"), ("analyze", "models=x"), ("doctor", "+limit=5")])
def test_settings_of_another_verb_are_refused(verb, word):
    name = word.strip("+").partition("=")[0]
    with pytest.raises(OptionError, match=f"{verb} takes no {name}=, only transferkit {TAKEN_BY[name][0]}"):
        check_taken(verb, ["seed=1", word])


def test_settings_that_not_every_verb_takes_are_settings():
    known = known_settings()
    for name in TAKEN_BY:
        assert name in known or (name.endswith(".") and any(one.startswith(name) for one in known))
    for name, verbs in TAKEN_BY.items():
        for verb in verbs:
            check_taken(verb, [f"{name}=1"])


def test_every_option_is_a_setting_in_help_and_docs():
    explained = {key for section in (*SECTIONS, REVIEWS) for key, _, _ in section.rows}
    assert {one.name for one in dataclasses.fields(ReviewOptions)} <= explained
    for key, _, _ in DESCRIPTIONS.rows:
        assert f"  {key}=" in HELP["zeroshot"]
        assert key in known_settings()
    within = {"columns", "preprocessing", "preprocessed", "train", "trainer"}  # groups, and what no text can say
    top = set(fields_of(FitOptions)) | set(fields_of(MeasureOptions))
    data = {f"data.{name}" for name in fields_of(DataOptions)}
    train = {f"train.{name}" for name in fields_of(Recipe)}
    wanted = {key for key in top | data | train if key.split(".")[-1] not in within}
    assert wanted <= explained
    assert explained <= {*known_settings(), *(key for key in explained if key.startswith("trainer."))}
    for key in explained:
        assert f"  {key}=" in HELP["doctor" if key in fields_of(ReviewOptions) else "adapt"], key


def test_the_page_of_options_is_up_to_date():
    page = Path(__file__).parents[2] / "docs" / "options.md"
    assert page.read_text(encoding="utf-8") == make_page(), "python -m transferkit.cli.options_page > docs/options.md"


@pytest.mark.parametrize("kind", [AdaptOptions, Recipe])
def test_every_option_has_a_sentence(kind):
    for name, sentence in describe_options(kind):
        assert sentence.endswith("."), name
        assert len(sentence) > 10, name


def test_schedules_that_options_know_are_those_that_there_are():
    assert set(SCHEDULES) == set(CURVES)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": "x"}, "seed must be a whole number, got 'x'."),
        ({"seed": -1}, r"seed must be in \[0, 2\^63\), got -1."),
        ({"seed": True}, "seed must be a whole number, got True."),
        ({"seed": None}, "seed must be a whole number, got None."),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be a whole number, got 2.0."),
        ({"similarity": 1.5}, r"similarity must be in \[0, 1\], got 1.5."),
        ({"cache_limit": "10"}, "cache_limit must be a number, got '10'."),
        ({"strict": "no"}, "strict must be true or false, got 'no'."),
        ({"overwrite": 1}, "overwrite must be true or false, got 1."),
        (
            {"budget": "ten", "max_pixels": "big"},
            "max_pixels must be .*budget must be|budget must be .*max_pixels must be",
        ),
        ({"train": 5}, "train must be a Recipe or its values by name, .* got 5."),
        ({"trainer": ["x"]}, r"trainer must be options by name, .* got \['x'\]."),
        ({"image_size": 7}, "a whole number of 8 or more, got 7"),
        ({"train": {"epoch": 3}}, "Unknown training option 'epoch'. Closest known: epochs"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_all_at_once(wrong, message):
    with pytest.raises(OptionError, match=message):
        options_from(AdaptOptions, wrong)


def test_numpys_numbers_are_numbers_and_what_is_no_option_is_left_out():
    options = options_from(AdaptOptions, {"seed": np.int64(3), "strict": np.bool_(True), "model": "x", "train": {}})
    assert (options.seed, bool(options.strict), options.recipe) == (3, True, Recipe())


def test_a_named_recipe_and_its_values_are_the_same_options():
    values = {"epochs": 3, "lr": "find"}
    assert options_from(FitOptions, {"train": values}) == options_from(FitOptions, {"train": Recipe(**values)})


@pytest.mark.parametrize("name", ["stage", "unfreeze"])
def test_stages_are_chosen_by_leaving_them_out(name):
    with pytest.raises(OptionError, match="take no 'auto': leave them out"):
        AdaptOptions(**{name: "auto"})
