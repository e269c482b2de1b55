"""What a fresh interpreter imports on the way to a result: only what that way needs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import draw_stripes

HEAVY = (
    "hydra",
    "jinja2",
    "lightning",
    "lightning_fabric",
    "onnx",
    "optuna",
    "peft",
    "pytorch_lightning",
    "rich",
    "scipy.optimize",
    "scipy.stats",
    "sklearn",
    "sympy",
    "timm",
    "torch._dynamo",
    "torchmetrics",
    "torchvision",
    "transformers",
)
"""Takes a tenth of a second or more to import, or brings such a thing along."""

LIGHTNING = {"lightning", "lightning_fabric", "peft", "pytorch_lightning", "torchmetrics"}

WAY = """
import json, sys
import transferkit.api

def note(step):
    print(json.dumps([step, [name for name in {heavy!r} if name in sys.modules]]))

note("import")
from torch import nn
import transferkit as tk

network = nn.Sequential(
    nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
)
half = (0.5, 0.5, 0.5)
options = dict(
    preprocessing=tk.Preprocessing(size=32, mean=half, std=half, interpolation="bilinear"), pretrained=False,
    progress=False, cache=sys.argv[3],
)
folder, out = sys.argv[1:3]
tk.analyze(network, folder, **options)
note("analyze")
result = tk.adapt(network, folder, strategy="linear_probe", head="ridge", **options)
note("adapt")
result.predict(folder + "/test/down")
note("predict")
result.save(out)
note("save")
tk.adapt(network, folder, strategy="linear_probe", head="logistic", **options)
note("logistic")
"""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> dict[str, set[str]]:
    """Step -> what of `HEAVY` is there after it."""
    root = tmp_path_factory.mktemp("startup")
    for split, numbers in {"train": range(8), "test": range(8, 10)}.items():
        for angle, name in enumerate(["across", "down", "slant"]):
            for number in numbers:
                draw_stripes(root / "stripes" / split / name / f"{number}.png", angle=angle, seed=100 * angle + number)
    done = run(WAY.format(heavy=HEAVY), *(str(root / name) for name in ("stripes", "run", "cache")))
    assert done.returncode == 0, done.stderr[-2000:]
    return {step: set(names) for step, names in map(json.loads, done.stdout.splitlines())}


def test_importing_the_api_imports_nothing_heavy(imported):
    assert imported["import"] == set()


@pytest.mark.parametrize("step", ["analyze", "adapt", "predict"])
def test_a_module_of_your_own_is_probed_with_an_optimizer_at_most(imported, step):
    assert imported[step] <= {"scipy.optimize"}


def test_a_report_needs_its_templates(imported):
    assert imported["save"] - imported["predict"] == {"jinja2"}


def test_a_logistic_head_needs_scikit_learn_and_no_lightning(imported):
    assert "sklearn" in imported["logistic"]
    assert not LIGHTNING & imported["logistic"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--version"], "0."),
        (["adapt", "--help"], "transferkit adapt"),
        (["adopt"], "Unknown verb 'adopt'"),
        (["adapt", "dta=folder"], "Unknown setting 'dta'"),
        (["adapt", "data=folder"], "data=folder needs data.root="),
        (["predict", "imags=x"], "imags"),
    ],
)
def test_the_command_line_answers_without_torch(words, says):
    script = (
        "import sys\nfrom transferkit.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print([name for name in ('torch', 'numpy', 'timm') if name in sys.modules])"
    )
    done = run(script, *words)
    assert says in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_options_of_a_trainer_are_asked_of_lightning_in_silence():
    """Lightning's import sets the level of its own loggers: what is to be silent must come after it."""
    script = (
        "import sys, torch\nfrom transferkit.finetune import count_processes\n"
        "assert not {'lightning', 'pytorch_lightning'} & set(sys.modules)\n"
        "print(count_processes(torch.device('cpu'), {'devices': 2}), 'pytorch_lightning' in sys.modules)"
    )
    done = run(script)
    assert (done.stdout, done.stderr) == ("2 True\n", "")


@pytest.mark.slow
def test_what_is_built_on_lightning_is_on_one_of_its_packages_throughout():
    """The package that was there when the first class was made, whatever is imported between that and the next."""
    pytest.importorskip("lightning.pytorch", reason="the other package is not installed")
    script = (
        "import lightning.pytorch as first, transferkit as tk\n"
        "assert issubclass(tk.FreezePlanCallback, first.Callback)\n"
        "import pytorch_lightning\n"
        "assert issubclass(tk.TransferModule, first.LightningModule)\n"
        "assert issubclass(tk.TransferDataModule, first.LightningDataModule)"
    )
    done = run(script)
    assert done.returncode == 0, done.stderr[-2000:]
