from __future__ import annotations

import json
import platform
import random

import numpy as np
import pytest
import torch

import transferkit.repro as repro
from transferkit.repro import environment, seed_everything


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
