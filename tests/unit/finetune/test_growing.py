"""Progressive image size: what the network is given in which epoch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.finetune.training_toys import SIDE, draw, fit, loader, make_backbone, make_module
from tests.unit.nn.toy_networks import Isotropic, spec_of
from transferkit.core.errors import OptionError
from transferkit.finetune import TransferModule
from transferkit.finetune.growing import check_grows, shrink, side_at, sizes_on_the_way
from transferkit.nn import Backbone, cut
from transferkit.options import Recipe

EPOCHS = 5


class OfOneSize(Isotropic):
    """Positions of 8 x 8 patches and a token are added, as in vision transformers."""

    def __init__(self) -> None:
        super().__init__(3)
        self.positions = torch.nn.Parameter(torch.ones(1, 64, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patch(images).flatten(2).transpose(1, 2) + self.positions
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.norm(self.blocks(tokens))[:, 0]


def batches(side: int = 96) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.nn.functional.interpolate(images, (side, side)), labels) for images, labels in draw()]


@given(st.integers(8, 512), st.floats(0.05, 1), st.integers(1, 40))
def test_sides_grow_to_the_full_one(side, start, epochs):
    sides = [side_at(side, start, epoch, epochs) for epoch in range(epochs)]
    assert sides == sorted(sides)
    assert all(0 < one <= side and (one == side or one % 16 == 0) for one in sides)
    assert side_at(side, start, epochs, epochs) == side
    assert side_at(side, 1.0, 0, epochs) == side


def test_both_sides_shrink_alike():
    assert shrink(torch.zeros(2, 3, 96, 192), 0.5, 0, 10).shape == (2, 3, 48, 96)
    images = torch.rand(2, 3, 64, 64)
    assert shrink(images, 0.5, 9, 10) is images
    assert float(shrink(torch.full((1, 3, 64, 64), 0.3), 0.5, 0, 10).std()) < 1e-6


def seen(recipe: Recipe, epochs: int = EPOCHS) -> tuple[list[int], list[int]]:
    """Sides that the first layer sees in training, an entry for each epoch, and in validation."""
    module = make_module(recipe=recipe)
    training, held_back = [], []

    def note(layer, inputs):
        if inputs[0].shape[-1] != SIDE:  # the freeze plan looks at two small images of its own
            (training if module.training else held_back).append(inputs[0].shape[-1])

    module.model.backbone.trunk.stem.register_forward_pre_hook(note)
    fit(module, epochs, train=loader(batches()), held_back=loader(batches()))
    steps = len(batches())
    return training[::steps], held_back


def test_the_network_sees_growing_pictures_in_training_and_full_ones_in_validation():
    training, held_back = seen(Recipe(start_size=0.5))
    assert training == [side_at(96, 0.5, epoch, EPOCHS) for epoch in range(EPOCHS)]
    assert training[0] == 48
    assert training[-1] == 96
    assert set(held_back) == {96}


def test_by_default_pictures_do_not_change():
    assert set(seen(Recipe())[0]) == {96}


def test_a_network_of_one_size_is_refused_before_training():
    backbone = Backbone(OfOneSize(), spec_of(64))
    with pytest.raises(
        OptionError,
        match="begins with pictures of 32 x 32 pixels, which grow. This network does not take 32 x 32, 48 x 48: ",
    ):
        TransferModule(backbone, "few_layers", classes=2, recipe=Recipe(start_size=0.5))


def test_cached_activations_do_not_grow():
    backbone = make_backbone()
    with pytest.raises(OptionError, match="Cached activations have one size"):
        make_module(network=backbone, tail=cut(backbone, "stem"), recipe=Recipe(start_size=0.5))


@pytest.mark.parametrize("wrong", [0.0, -1.0, 1.5])
def test_a_start_is_a_share(wrong):
    with pytest.raises(OptionError, match=r"start_size must be in \(0, 1\]"):
        Recipe(start_size=wrong)


@given(st.integers(32, 300), st.integers(32, 300), st.floats(0.1, 0.99), st.integers(1, 60))
def test_all_sizes_of_a_training_are_on_the_way(height, width, start, epochs):
    known = sizes_on_the_way((height, width), start)
    used = {(side_at(height, start, epoch, epochs), side_at(width, start, epoch, epochs)) for epoch in range(epochs)}
    assert used <= set(known)
    assert known == sorted(known)


def test_a_size_in_the_middle_that_a_network_does_not_take_is_found_before_training():
    def run(images: torch.Tensor) -> torch.Tensor:
        return images.unflatten(2, (-1, 32))  # sides are multiples of 32

    with pytest.raises(OptionError, match="This network does not take 48 x 48, 80 x 80, 112 x 112: "):
        check_grows(run, torch.zeros(1, 3, 128, 128), 0.3)
    check_grows(lambda images: images, torch.zeros(1, 3, 128, 128), 0.3)
