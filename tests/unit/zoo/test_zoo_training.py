"""A learning rate belongs to weights; what is stated is checked against what torchvision and timm list themselves."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

import pytest
import timm
from torchvision import models

from transferkit import zoo
from transferkit.zoo import _training
from transferkit.zoo._load import describe
from transferkit.zoo._training import TIMM, TORCHVISION, UNKNOWN, training_timm

README = "https://github.com/pytorch/vision/tree/main/references/classification#"
NEW_RECIPE = "https://github.com/pytorch/vision/issues/3995"

NOT_TRAINED_THERE = {"googlenet", "inception_v3", "efficientnet_v2_l", "efficientnet_b1", "efficientnet_b3"} | {
    "efficientnet_b4"
}
"""The page under README says that these were ported from elsewhere."""


def listed(source: str) -> list[str]:
    if source == "timm":
        return timm.list_models(pretrained=True)
    entries = ((name, models.get_model_weights(name)) for name in models.list_models(module=models))
    return [f"{name}:{weights.name}" for name, known in entries for weights in known]


def recipe_of(name: str) -> str:
    architecture, _, weights = name.partition(":")
    return models.get_model_weights(architecture)[weights].meta.get("recipe") or ""


@pytest.mark.parametrize("name", [name for name in listed("torchvision") if recipe_of(name).startswith(README)])
def test_whatever_torchvision_trained_with_its_own_script_is_known(name):
    found = describe(f"torchvision/{name}").training
    assert (found == UNKNOWN) == (name.partition(":")[0] in NOT_TRAINED_THERE)


@pytest.mark.parametrize("name", [name for name in listed("torchvision") if name.endswith("_V2")])
def test_second_weights_of_torchvision_have_the_new_recipe(name):
    found = describe(f"torchvision/{name}").training
    assert recipe_of(name).startswith(NEW_RECIPE)
    if name == "efficientnet_b1:IMAGENET1K_V2":  # "with LR tuning", and to which rate is not said
        assert found == UNKNOWN
    else:
        assert found[:3] == (0.5, 1024, "sgd")


@pytest.mark.parametrize(("table", "source"), [(TIMM, "timm"), (TORCHVISION, "torchvision")])
def test_every_pattern_is_the_first_to_fit_some_weights(table, source):
    patterns = list(table)
    used = {next((p for p in patterns if fnmatchcase(name, p)), None) for name in listed(source)}
    assert set(patterns) <= used


@pytest.mark.parametrize("training", [*TIMM.values(), *TORCHVISION.values()])
def test_what_is_stated_can_be_true(training):
    assert math.isfinite(training.lr)
    assert 0 < training.lr < 1
    assert training.batch >= 128
    assert training.optimizer in ("sgd", "rmsprop", "adam", "adamw", "lamb")
    assert training.source


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18.tv_in1k", (0.1, 256, "sgd")),
        ("resnet50.tv2_in1k", (0.5, 1024, "sgd")),
        ("resnet18.a1_in1k", (5e-3, 2048, "lamb")),
        ("resnet50.a3_in1k", (8e-3, 2048, "lamb")),
        ("vgg16.tv_in1k", (0.01, 256, "sgd")),
        ("vgg16_bn.tv_in1k", (0.1, 256, "sgd")),
        ("deit_small_patch16_224.fb_in1k", (1e-3, 1024, "adamw")),
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", (1e-3, 4096, "adam")),
        ("swin_tiny_patch4_window7_224.ms_in1k", (1e-3, 1024, "adamw")),
        ("swin_tiny_patch4_window7_224.ms_in22k_ft_in1k", (1e-3, 4096, "adamw")),
        ("convnext_tiny.fb_in1k", (4e-3, 4096, "adamw")),
    ],
)
def test_a_tag_has_its_own_rate(name, expected):
    assert describe(f"timm/{name}").training[:3] == expected


@pytest.mark.parametrize(
    "name",
    [
        "convnext_atto_ols.a2_in1k",
        "convnextv2_tiny.fcmae_ft_in1k",
        "deit3_medium_patch16_224.fb_in1k",
        "densenet121.tv_in1k",
        "resnet50.gluon_in1k",
        "swin_s3_tiny_224.ms_in1k",
        "vit_base_patch16_clip_224.openai",
        "nothing_of_the_kind",
    ],
)
def test_a_neighbour_in_name_lends_no_rate(name):
    assert training_timm(name) == UNKNOWN


def test_the_packages_carry_what_timm_carries():
    assert describe("packaged/tf_efficientnet_lite0").training == describe("timm/tf_efficientnet_lite0").training
    assert _training.training_packaged("nothing_of_the_kind") == UNKNOWN


def test_the_spec_carries_it_for_published_weights_only():
    _, published = zoo.load("packaged/tf_efficientnet_lite0")
    assert published.original_lr == 0.016
    assert (published.original_batch, published.original_optimizer) == (256, "rmsprop")
    assert published.original_by == _training.TPU
    _, random = zoo.load("packaged/tf_efficientnet_lite0", pretrained=False)
    assert random.original_lr is None
    assert (random.original_batch, random.original_optimizer, random.original_by) == (0, "", "")
