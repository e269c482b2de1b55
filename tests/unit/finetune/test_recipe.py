"""What a recipe takes, refuses and fits to the number of images."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transferkit.core.errors import OptionError
from transferkit.data.augmentation import PRESETS
from transferkit.finetune.recipe import fit_recipe, make_optimizer
from transferkit.options import AUGMENTS, Recipe


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "adam"}, "Unknown optimizer 'adam'. Closest known: adamw."),
        ({"schedule": "cosin"}, "Unknown schedule 'cosin'. Closest known: cosine."),
        ({"average": "emma"}, "Unknown average 'emma'. Closest known: ema"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\), got 1.0"),
        ({"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 1\)"),
        ({"dropout": 1.5}, r"dropout must be in \[0, 1\)"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0"),
        ({"mixup": -1.0}, "mixup must be >= 0"),
        ({"cutmix": math.nan}, "cutmix must be >= 0"),
        ({"l2_sp": -1.0}, "l2_sp must be >= 0"),
        ({"minimum": 2.0}, r"minimum must be in \[0, 1\]"),
        ({"schedule": "exponential", "minimum": 0.0}, "schedule=exponential needs a minimum above 0"),
        ({"epochs": 0}, "epochs must be >= 1"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"patience": 0}, "patience must be >= 1"),
        ({"snapshots": 0}, "snapshots must be >= 1"),
        ({"snapshots": 3, "schedule": "linear"}, "snapshots=3 needs schedule=cosine.* average=ema or none"),
        ({"snapshots": 3, "average": "swa"}, "snapshots=3 needs schedule=cosine"),
        ({"folds": 0}, "folds must be 1 to 5, got 0"),
        ({"folds": 7}, "folds must be 1 to 5, got 7"),
        ({"augment": "mild"}, "Unknown augmentation 'mild'"),
        ({"views": -1}, "views must be >= 0"),
        ({"clip": -1.0}, "clip must be >= 0"),
        ({"lr": 0.0}, "lr must be > 0, 'find', 'rule' or left out, got 0.0"),
        ({"lr": math.inf}, "lr must be > 0"),
        ({"lr": "fnd"}, "lr must be > 0, 'find', 'rule' or left out, got 'fnd'"),
        ({"lr_scale": 0.0}, "lr_scale must be finite and > 0, or left out, got 0.0"),
        ({"lr_scale": math.inf}, "lr_scale must be finite and > 0"),
        ({"lr_scale": math.nan}, "lr_scale must be finite and > 0"),
        ({"lr_scale": "tenth"}, "lr_scale must be a number, got 'tenth'"),
        ({"lr": 1e-3, "lr_scale": 0.1}, "lr=0.001 and lr_scale=0.1 both say how fast .* leave one of them out"),
        ({"lr": "rule", "lr_scale": 0.1}, "lr=rule and lr_scale=0.1 both say how fast"),
        ({"epochs": "ten"}, "epochs must be a whole number"),
        ({"epochs": 2.5}, "epochs must be a whole number"),
        ({"weight_decay": "0.1x"}, "weight_decay must be a number"),
        ({"views": True}, "views must be a whole number"),
        ({"flip": "yes"}, "flip must be true, false or left out"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(wrong, message):
    with pytest.raises(OptionError, match=message):
        Recipe(**wrong)


def test_what_may_be_left_open_may_be_none_and_numpys_numbers_are_numbers():
    for name in ("epochs", "batch_size", "lr", "lr_scale", "patience", "flip", "folds"):
        assert getattr(Recipe(**{name: None}), name) is None
    with pytest.raises(OptionError, match="dropout must be a number, got None"):
        Recipe(dropout=None)
    assert Recipe(epochs=np.int64(3), dropout=np.float32(0.5), mixup=0).epochs == 3


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(OptionError) as raised:
        Recipe(warmup=2.0, epochs=0, optimizer="adm", clip=-1.0)
    said = str(raised.value)
    assert all(part in said for part in ("warmup must be", "epochs must be", "Closest known: adamw", "clip must be"))


def test_values_come_by_name_and_a_misspelt_one_is_offered_its_closest():
    recipe = Recipe.named({"epochs": 3, "lr": "find", "mixup": 0.2})
    assert (recipe.epochs, recipe.lr, recipe.mixup) == (3, "find", 0.2)
    assert Recipe.named({}) == Recipe()
    with pytest.raises(OptionError, match="Unknown training option 'epoch'. Closest known: epochs."):
        Recipe.named({"epoch": 3})


@given(st.integers(1, 200_000))
def test_a_fitted_recipe_leaves_nothing_open_that_the_number_of_images_decides(images):
    recipe = fit_recipe(Recipe(), images)
    assert recipe.epochs >= 1
    assert min(2, images) <= recipe.batch_size <= images
    assert recipe.folds >= 1
    assert recipe.allowed_patience >= 1
    more = fit_recipe(Recipe(), 2 * images)
    assert more.epochs <= recipe.epochs
    assert more.epochs * 2 * images >= recipe.epochs * images  # fewer epochs, yet no fewer images seen
    assert more.batch_size >= recipe.batch_size
    assert more.folds <= recipe.folds
    assert fit_recipe(recipe, images) == recipe


@given(st.integers(1, 5000), st.integers(1, 50), st.integers(1, 64), st.integers(1, 5))
def test_what_was_said_stays(images, epochs, batch_size, folds):
    recipe = fit_recipe(Recipe(epochs=epochs, batch_size=batch_size, folds=folds), images, batch_size=7)
    assert (recipe.epochs, recipe.folds) == (epochs, folds)
    assert recipe.batch_size == min(batch_size, images)
    assert fit_recipe(Recipe(), images, batch_size=3).batch_size == min(3, images)
    kept = [field.name for field in fields(Recipe) if field.name not in ("epochs", "batch_size", "folds")]
    assert all(getattr(recipe, name) == getattr(Recipe(), name) for name in kept)


@pytest.mark.parametrize("rate", [{"lr": 1e-3}, {"lr": "rule"}, {"lr": "find"}, {"lr_scale": 0.1}, {"lr_scale": 1}])
def test_where_a_rate_was_said_no_other_is_compared(rate):
    assert Recipe(epochs=3).tries_rates
    assert not Recipe(**rate).tries_rates


def test_a_recipe_knows_what_was_said():
    assert Recipe().changed == Recipe(lr=None, epochs=None, clip=1).changed == {}
    assert Recipe(flip=False, epochs=3, lr_scale=0.2).changed == {"epochs": 3, "lr_scale": 0.2, "flip": False}


def test_early_stopping_waits_for_a_third_of_the_epochs_and_three_at_least():
    assert Recipe(epochs=30).allowed_patience == 10
    assert Recipe(epochs=4).allowed_patience == 3
    assert Recipe(epochs=30, patience=1).allowed_patience == 1


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_optimizer_steps_as_the_plain_one_does(name):
    plain = {
        "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
        "adamw": torch.optim.AdamW,
    }[name]
    ends = []
    for make in (partial(make_optimizer, Recipe(optimizer=name)), plain):
        torch.manual_seed(0)
        weight, bias = torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(5))
        optimizer = make(
            [
                {"params": [weight], "lr": 0.1, "weight_decay": 0.1},
                {"params": [bias], "lr": 0.01, "weight_decay": 0.0},
            ]
        )
        for _ in range(5):
            optimizer.zero_grad()
            (weight @ torch.randn(3) + bias).square().sum().backward()
            optimizer.step()
        ends += [(weight.detach(), bias.detach())]
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_one_pass_over_memory_is_not_for_mixed_precision(name):
    weight = torch.nn.Parameter(torch.randn(5, 3))
    made = [
        make_optimizer(Recipe(optimizer=name), [{"params": [weight], "lr": 0.1}], mixed=is_mixed)
        for is_mixed in (True, False)
    ]
    assert [optimizer.defaults["fused"] for optimizer in made] == [False, True]


def test_presets_of_augmentation_are_those_that_there_are():
    assert ("auto", *PRESETS) == AUGMENTS
