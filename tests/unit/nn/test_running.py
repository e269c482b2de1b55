"""Logits of many pictures are those of one call, in their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unit.nn.test_heads import make_model
from transferkit.nn import Blend, logits_of
from transferkit.nn.running import BATCH

CPU = torch.device("cpu")


def draw(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + 3])
def test_batches_end_nowhere(count):
    model, pictures = make_model(0), draw(count)
    found = logits_of(model, iter(pictures), device=CPU)
    with torch.no_grad():
        expected = model(model.normalise(torch.from_numpy(pictures)))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_no_pictures_no_rows():
    assert logits_of(make_model(0), [], device=CPU).shape == (0, 3)


def test_normalised_pictures_are_taken_as_they_are():
    model, pictures = make_model(0), draw(3)
    normalised = model.normalise(torch.from_numpy(pictures)).numpy()
    assert torch.equal(logits_of(model, normalised, device=CPU), logits_of(model, pictures, device=CPU))


def test_a_blend_in_training_mode_is_run_in_evaluation_mode_and_left_as_it_is():
    members = [make_model(0), make_model(1)]
    blend = Blend(members).train()
    pictures = draw(5)
    found = logits_of(blend, pictures, device=CPU)
    assert all(module.training for module in blend.modules())
    assert all(parameter.requires_grad for parameter in blend.parameters())
    assert not found.requires_grad
    expected = sum(logits_of(member, pictures, device=CPU) for member in members)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_same_bits_however_the_weights_lie_in_memory():
    pictures = draw(BATCH)
    plain = make_model(0)
    moved = make_model(0).to(memory_format=torch.channels_last)
    assert torch.equal(logits_of(plain, pictures, device=CPU), logits_of(moved, pictures, device=CPU))
