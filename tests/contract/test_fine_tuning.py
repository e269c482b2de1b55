"""Every registered strategy, from images to a saved model: it freezes what its table claims, and answers as before once
it was saved and loaded."""

from __future__ import annotations

import copy
import functools
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import transferkit as tk
from tests.conftest import draw_stripes
from tests.unit.finetune.training_toys import fit, is_statistic, moved, states
from transferkit.finetune import cross_validation
from transferkit.finetune.adapters import find_targets
from transferkit.nn import Backbone, Blend, TransferModel
from transferkit.strategies import HEAD, NEED_UNLABELLED, STRATEGIES

CONVOLUTIONAL, TRANSFORMER = "torchvision/resnet18", "timm/test_vit"
SIDES = {CONVOLUTIONAL: 32, TRANSFORMER: 64}
EPOCHS = 2
TRAIN = {"epochs": EPOCHS, "folds": 1, "batch_size": 12, "label_smoothing": 0.1}
"""Smoothed, because the probe tells stripes apart so well that the loss has no gradient left otherwise."""

GRADIENT = sorted(set(STRATEGIES) - {"linear_probe"})
NORMS = (nn.LayerNorm, _BatchNorm)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Network -> a file of its weights; random, with statistics that are not the initial ones."""
    import timm
    import torchvision

    folder = tmp_path_factory.mktemp("weights")
    files = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {CONVOLUTIONAL: torchvision.models.resnet18(), TRANSFORMER: timm.create_model("test_vit")}
        for name, network in made.items():
            for module in network.modules():
                if isinstance(module, _BatchNorm):
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 1.5)
            files[name] = folder / f"{name.partition('/')[2]}.pth"
            torch.save(network.state_dict(), files[name])
    return files


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One bank for all strategies: the frozen pass is made once."""
    return tmp_path_factory.mktemp("bank")


@pytest.fixture
def keep(monkeypatch):
    """Whatever the numbers say, the candidate of this weight is kept, after all epochs."""

    def force(weight: float) -> None:
        plain = cross_validation.verify

        def verify(*arguments):
            verdict = plain(*arguments)
            chosen = next(candidate for candidate in verdict.candidates if candidate.weight == weight)
            return cross_validation.Verdict(verdict.candidates, chosen, verdict.temperatures)

        monkeypatch.setattr(cross_validation, "verify", verify)
        monkeypatch.setattr(cross_validation, "_best_epoch", lambda trials: EPOCHS - 1)

    return force


@pytest.fixture
def unlabelled(tmp_path):
    """Six pictures without labels."""
    for number in range(6):
        draw_stripes(tmp_path / "unlabelled" / f"{number}.png", angle=number % 3, seed=500 + number)
    return tmp_path / "unlabelled"


@pytest.fixture
def adapt(stripes, unlabelled, weights, cache):
    def run(name: str, strategy: str, **options):
        return tk.adapt(
            name,
            stripes,
            checkpoint=weights[name],
            image_size=SIDES[name],
            strategy=strategy,
            cache=cache,
            train=TRAIN if strategy in GRADIENT else None,
            unlabelled=unlabelled if strategy in NEED_UNLABELLED else None,
            progress=False,
            **options,
        )

    return run


@pytest.fixture(scope="module")
def load(weights):
    """A network as it was before; it is watched running only once."""

    @functools.cache
    def load_once(name: str) -> Backbone:
        return tk.load_backbone(name, checkpoint=weights[name], image_size=SIDES[name])

    return lambda name: copy.deepcopy(load_once(name))


def learners(backbone: Backbone, claims) -> set[str]:
    """Names of the trunk's parameters that the table says learn, told from stages and from the types of layers."""
    targets = set()
    if any("adapter" in claim.rule for claim in claims):
        targets = set(find_targets(backbone.trunk, rank=8, size=backbone.spec.preprocessing.size))
    kinds = {}
    for path, module in backbone.trunk.named_modules():
        for leaf, _ in module.named_parameters(recurse=False):
            kinds[f"{path}.{leaf}".lstrip(".")] = {
                "any": True,
                "norm": isinstance(module, NORMS),
                "bias": leaf.endswith("bias"),
                "adapter": path in targets and leaf == "weight",  # merged into it
            }
    named = dict(backbone.trunk.named_parameters())
    found = set()
    for claim in claims:
        if claim.lr == 0 or claim.stage == HEAD:
            continue
        kind = re.search(r"\((\w+)\)$", claim.rule)
        kind = kind.group(1) if kind else "any"
        members = {
            name
            for name, applies in kinds.items()
            if applies[kind] and backbone.stage_of(name.rpartition(".")[0]) == claim.stage
        }
        if kind != "adapter":
            assert len(members) == claim.tensors
            assert sum(named[name].numel() for name in members) == claim.parameters
        found |= members
    return found


def statistics_of(backbone: Backbone, claims, what: str) -> set[str]:
    stages = {claim.stage for claim in claims if claim.statistics == what}
    names = (name for name in backbone.trunk.state_dict() if is_statistic(name))
    return {name for name in names if backbone.stage_of(name.rpartition(".")[0]) in stages}


def test_all_strategies_are_here():
    known = {"bias_only", "few_layers", "lora", "lp_ft", "many_layers", "norm_only", "surgical", *NEED_UNLABELLED}
    assert set(GRADIENT) == known, "a new strategy: see that what it claims is told apart by `learners`"


COSTLY = {(CONVOLUTIONAL, strategy) for strategy in ("bias_only", "many_layers", "surgical")}
"""Much as norm_only, lp_ft and few_layers, which are run each time."""


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        pytest.param(name, strategy, marks=[pytest.mark.slow] if (name, strategy) in COSTLY else [])
        for name in (CONVOLUTIONAL, TRANSFORMER)
        for strategy in GRADIENT
    ],
)
def test_what_is_frozen_stays_and_what_is_saved_answers_the_same(name, strategy, adapt, keep, load, stripes, tmp_path):
    keep(0.5)
    result = adapt(name, strategy, out=tmp_path / "run")
    claims = result.record.training.claims
    assert isinstance(result.model, Blend)
    network, probe = result.model.parts
    backbone = load(name)
    before = states(backbone.trunk)
    changed = moved(before, states(network.backbone.trunk))
    expected = learners(backbone, claims)
    assert expected
    assert changed == expected
    assert statistics_of(backbone, claims, "updated") == set()  # adapt leaves statistics as they are
    if name == CONVOLUTIONAL:
        assert statistics_of(backbone, claims, "fixed") == {key for key in before if is_statistic(key)}
    assert not moved(before, states(probe.backbone.trunk))
    assert {claim.phase for claim in claims} == {epoch.phase for epoch in result.record.training.epochs}
    again = tk.load(tmp_path / "run")
    assert isinstance(again.model, Blend)
    assert again.record.training == result.record.training
    here, there = (found.predict(stripes / "test").probabilities for found in (result, again))
    np.testing.assert_array_equal(here, there)
    assert result.metrics["test"].images == len(here) == 12


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_single_network_is_saved_and_loaded_too(adapt, keep, stripes, tmp_path, weight):
    keep(weight)
    result = adapt(TRANSFORMER, "many_layers", out=tmp_path / "run")
    assert type(result.model) is TransferModel
    assert result.record.training.kept.weight == weight
    again = tk.load(tmp_path / "run")
    assert type(again.model) is TransferModel
    here, there = (found.predict(stripes / "test").probabilities for found in (result, again))
    np.testing.assert_array_equal(here, there)
    files = sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert not [path for path in files if path.suffix == ".ckpt"]


@pytest.mark.parametrize("name", [CONVOLUTIONAL, TRANSFORMER])
def test_a_closed_form_leaves_the_network_as_it_was(name, adapt, load):
    result = adapt(name, "linear_probe")
    assert result.record.training is None
    assert not moved(states(load(name).trunk), states(result.model.backbone.trunk))


@pytest.mark.parametrize("strategy", [*GRADIENT, "linear_probe"])
def test_statistics_that_are_claimed_to_be_updated_are_and_no_others(strategy, load):
    """`norm="keep"`, in a network with batch normalisation, by a plain trainer."""
    backbone = load(CONVOLUTIONAL)
    before = states(backbone.trunk)
    module = tk.TransferModule(backbone, strategy, classes=2, norm="keep", lr=1e-3)
    claims = module.freeze_plan.claims()
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(4, 3, 32, 32, generator=generator), torch.tensor([0, 1, 1, 0])) for _ in range(2)]
    fit(module, EPOCHS, train=torch.utils.data.DataLoader(batches, batch_size=None))
    trunk = module.finish().backbone.trunk
    updated = statistics_of(backbone, claims, "updated")
    assert {name for name in moved(before, states(trunk)) if is_statistic(name)} == updated
    assert bool(updated) == (strategy != "linear_probe")


@pytest.mark.slow
@pytest.mark.parametrize("name", [CONVOLUTIONAL, TRANSFORMER])
def test_a_blend_is_exported(name, adapt, keep, stripes, tmp_path):
    """Pixels in, probabilities out: the same as from Python."""
    onnxruntime = pytest.importorskip("onnxruntime")
    keep(0.25)
    result = adapt(name, "few_layers")
    assert isinstance(result.model, Blend)
    file = result.export(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(file))
    paths = sorted((stripes / "test").rglob("*.png"))
    from PIL import Image

    from transferkit.data import to_pixels

    pixels = np.stack([to_pixels(Image.open(path).convert("RGB"), result.model.preprocessing) for path in paths])
    (found,) = session.run(None, {"pixels": pixels})
    np.testing.assert_allclose(found, result.predict(paths).probabilities, atol=1e-4)
