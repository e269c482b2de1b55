"""Old names of arguments: refused with the new one, wherever they can be written."""

from __future__ import annotations

import inspect

import pytest

import transferkit as tk
from transferkit.cli import main
from transferkit.core.errors import OptionError

OLD = r"tune= is called unfreeze= now \(tune stands for hyperparameter search now\). Write unfreeze= instead"


@pytest.mark.parametrize(
    "call",
    [
        lambda: tk.adapt("packaged/tf_efficientnet_lite0", "builtin/digits", strategy="few_layers", tune=2),
        lambda: tk.decide(None, strategy="few_layers", tune=["top"]),
        lambda: tk.FreezePlanCallback("few_layers", tune=1),
        lambda: tk.TransferModule(None, "few_layers", classes=2, tune=1),
    ],
)
def test_the_old_name_in_python_names_the_new_one(call):
    with pytest.raises(OptionError, match=OLD):
        call()


@pytest.mark.parametrize("word", ["tune=2", "tune=[top]"])
def test_the_old_name_on_the_command_line_names_the_new_one(word, capsys):
    with pytest.raises(SystemExit):
        main(["adapt", "strategy=few_layers", word])
    assert "how many stages are trained is unfreeze=2" in capsys.readouterr().err


def test_signatures_show_the_new_name_alone():
    for verb in (tk.adapt, tk.decide, tk.TransferModule, tk.FreezePlanCallback):
        names = inspect.signature(verb).parameters
        assert "unfreeze" in names
        assert "tune" not in names
