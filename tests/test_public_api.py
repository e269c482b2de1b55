"""The names that people rely on, where they are, and what they take."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from torch import nn

import transferkit as tk

CONTRACT = {
    "adapt": ["model", "data", "strategy", "mode", "image_size", "batch_size", "out", "seed"],
    "analyze": ["model", "data", "image_size", "batch_size", "seed"],
    "decide": ["evidence", "mode", "batch_size"],
    "load": ["path"],
    "load_backbone": ["model"],
    "rank": ["models", "data", "image_size", "batch_size", "seed"],
    "swap_norm": ["module", "to", "groups", "calibrate"],
}


@pytest.mark.parametrize("name", CONTRACT)
def test_functions_take_what_was_promised(name):
    parameters = inspect.signature(getattr(tk, name)).parameters
    assert set(CONTRACT[name]) <= set(parameters)
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == CONTRACT[name][: len(positional)]
    assert len(positional) <= 2


def test_every_public_name_is_there_and_documented():
    assert set(CONTRACT) < set(tk.__all__)
    for name in tk.__all__:
        assert inspect.getdoc(getattr(tk, name)), name
        assert name in dir(tk)


def test_a_function_is_never_hidden_by_a_module_of_its_name():
    import transferkit.api  # noqa: F401

    assert callable(tk.decide)
    assert callable(tk.load)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'adopt'"):
        _ = tk.adopt


def test_result_and_backbone_offer_what_was_promised():
    for name in ("decision", "evidence", "metrics", "predict", "report", "save", "export"):
        assert hasattr(tk.Result, name)
    backbone = tk.load_backbone("timm/test_resnet", pretrained=False)
    assert isinstance(backbone, nn.Module)
    assert backbone.stages[-1].name == "top"
    assert backbone.spec.name == "timm/test_resnet"


def test_importing_the_package_is_light_and_silent():
    script = "import sys, transferkit; print([m for m in ('torch', 'timm', 'hydra', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
