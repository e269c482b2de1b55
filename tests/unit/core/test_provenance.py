from __future__ import annotations

import json
import platform
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import transferkit as tk
import transferkit.core.provenance as repro
from transferkit.core.provenance import describe_settings, differing_settings, environment, quote_call
from transferkit.core.random import seed_everything
from transferkit.records import Preprocessing


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


@pytest.fixture(autouse=True)
def generators_as_before():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])


def test_same_seed_same_draws_from_all_three_generators():
    seed_everything(0)
    first = draws()
    second = draws()
    seed_everything(0)
    assert draws() == first
    seed_everything(1)
    other = draws()
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert all(a != b for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**32, 2**40 + 3, -1])
def test_any_seed_that_torch_takes_is_taken(seed):
    seed_everything(seed)
    first = draws()
    seed_everything(seed)
    assert draws() == first


def test_environment_says_what_ran():
    table = environment(seed=7, device="cpu")
    assert table["seed"] == 7
    assert table["device"] == "cpu"
    assert table["torch"] == torch.__version__.split("+")[0] or str(table["torch"]) in torch.__version__
    assert table["numpy"] == np.__version__
    assert table["python"] == platform.python_version()
    assert isinstance(table["cores"], int)
    assert table["cores"] >= 1
    assert all(isinstance(value, (str, int)) and value != "" for value in table.values())
    assert json.loads(json.dumps(table)) == table


def test_package_that_is_absent_is_said_to_be(monkeypatch):
    monkeypatch.setattr(repro, "PACKAGES", ("no-such-package-at-all",))
    assert environment(seed=0, device="cpu")["no-such-package-at-all"] == "not installed"


def call(images, data, *, seed=0, preprocessing=None, train=None, tune=None, rate=None, command=None): ...


def quoted(**arguments):
    usual = {"images": "m", "data": "d", "seed": 0, "preprocessing": None, "train": None, "tune": None, "rate": None}
    return quote_call(call, {**usual, "command": "x", **arguments})


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "'m', 'd', seed=0"),
        ({"data": Path("a b")}, "'m', 'a b', seed=0"),
        ({"seed": 3, "rate": np.float64(0.5)}, "'m', 'd', seed=3, rate=0.5"),
        ({"tune": ("a",), "train": {"lr": None}}, "'m', 'd', seed=0, train={'lr': None}, tune=('a',)"),
        ({"tune": ["a", "b"], "train": {}}, "'m', 'd', seed=0, tune=['a', 'b']"),
        ({"tune": 0, "rate": False}, "'m', 'd', seed=0, tune=0, rate=False"),
        ({"rate": float("inf")}, "'m', 'd', seed=0, rate=float('inf')"),
        ({"rate": np.float32("nan")}, "'m', 'd', seed=0, rate=float('nan')"),
        ({"rate": torch.device("cpu")}, "'m', 'd', seed=0, rate='cpu'"),
    ],
)  # fmt: skip
def test_a_call_holds_all_that_is_not_as_usual_and_the_seed(arguments, text):
    assert quoted(**arguments) == f"transferkit.call({text})"


def test_a_record_is_written_so_that_it_can_be_made_again():
    plain = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear", crop_pct=0.5)
    text = quoted(preprocessing=plain).partition("preprocessing=")[2].removesuffix(")")
    assert eval(text, {"transferkit": tk}) == plain


def test_objects_are_stand_ins_and_said_to_be():
    said = quoted(images=[torch.nn.ReLU(), "m"], data=object())
    assert said == (
        "transferkit.call([<ReLU>, 'm'], <object>, seed=0)  # replace <ReLU> and <object> with your own objects"
    )


def test_two_objects_of_a_type_have_two_names_and_one_has_one():
    one, other = torch.nn.ReLU(), torch.nn.ReLU()
    said = quoted(images=one, data={"train": other, "test": one}, tune=[one, other])
    assert said == (
        "transferkit.call(<ReLU>, {'train': <ReLU 2>, 'test': <ReLU>}, seed=0, tune=[<ReLU>, <ReLU 2>])"
        "  # replace <ReLU> and <ReLU 2> with your own objects"
    )


def test_integers_of_numpy_are_seeds():
    seed_everything(np.int64(3))
    drawn = torch.rand(1)
    seed_everything(3)
    assert torch.rand(1) == drawn


def test_settings_are_those_that_make_a_run_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    one = describe_settings(call, {"images": torch.nn.ReLU(), "data": "d", "seed": np.int64(1), "preprocessing": None,
                                   "train": {}, "tune": ("a",), "rate": 1, "command": "x"})  # fmt: skip
    assert json.loads(json.dumps(one)) == one
    assert one == {"images": {"object": "ReLU"}, "data": str(tmp_path / "d"), "seed": 1, "preprocessing": None,
                   "train": None, "tune": ["a"], "rate": 1}  # fmt: skip
    assert differing_settings(one, {**one, "seed": 2, "new": 3, "tune": None}) == ["seed", "tune"]


def test_environment_is_the_same_wherever_it_is_asked_for(tmp_path, monkeypatch):
    before = environment(seed=0, device="cpu")
    monkeypatch.chdir(tmp_path)
    assert environment(seed=0, device="cpu") == before  # a run that is resumed from elsewhere is the same run
