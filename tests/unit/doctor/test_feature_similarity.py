"""Linear CKA against its definition and its invariances, and what a comparison leaves alone."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.unit.doctor.toys import images, toy
from transferkit.doctor.feature_similarity import FeatureComparison, linear_cka


def draw(seed: int, rows: int = 8, columns: int = 5) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def products(features: torch.Tensor) -> torch.Tensor:
    return features @ features.T


def brute_hsic(one: torch.Tensor, other: torch.Tensor) -> float:
    """The mean over all quadruples of different images of Song et al., equation 4."""
    found = [
        float(one[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q]))
        for i, j, q, r in itertools.permutations(range(len(one)), 4)
    ]
    return sum(found) / len(found)


def test_it_is_the_ratio_of_unbiased_estimates_by_definition():
    one, other = products(draw(0, rows=6)), products(draw(1, rows=6) + draw(0, rows=6))
    expected = brute_hsic(one, other) / math.sqrt(brute_hsic(one, one) * brute_hsic(other, other))
    assert linear_cka(one, other) == pytest.approx(expected)


@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_rotation_scale_and_shift_change_nothing(seed, scale):
    one, other = draw(seed), draw(seed + 1)
    turned = scale * other @ torch.linalg.qr(draw(seed + 2, rows=5))[0] + 3
    turned = turned - turned.mean(dim=0)
    other = other - other.mean(dim=0)
    assert linear_cka(products(one), products(turned)) == pytest.approx(linear_cka(products(one), products(other)))
    assert linear_cka(products(one), products(scale * one)) == pytest.approx(1.0)


def test_unrelated_features_are_at_zero_even_where_there_are_more_of_them_than_images():
    found = [linear_cka(products(draw(n, 16, 2000)), products(draw(n + 100, 16, 2000))) for n in range(20)]
    assert abs(sum(found) / 20) < 0.05


def test_constant_features_have_no_similarity():
    assert math.isnan(linear_cka(torch.zeros(5, 5), products(draw(0, rows=5))))


def test_nothing_of_the_network_or_the_generators_changes():
    model = toy(dropout=0.5)
    model.train()
    model[0].eval()
    compared = FeatureComparison(model, {"first": "0", "last": "9"}, images=8)
    compared.offer(model, (images()[0],))
    before = {name: one.clone() for name, one in model.state_dict().items()}
    modes, generator = [one.training for one in model.modules()], torch.get_rng_state()
    compared.start()
    assert compared.compare() == {"first": pytest.approx(1.0), "last": pytest.approx(1.0)}
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert [one.training for one in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    with torch.no_grad():
        model[0].weight.normal_(generator=torch.Generator().manual_seed(3))
    moved = compared.compare()
    assert moved["first"] < 0.95
    assert compared.count == 8


def test_a_network_that_fails_on_few_images_is_only_not_compared():
    class Fussy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, rows):
            return self.inner(rows.reshape(16, 3))

    model = Fussy()
    compared = FeatureComparison(model, {"inner": "inner"}, images=8)
    compared.offer(model, (torch.ones(16, 3),))
    compared.start()
    assert compared.missing.startswith("Features were not compared: RuntimeError")
    assert compared.compare() == {}


def test_too_few_images_are_said():
    model = nn.Linear(3, 2)
    compared = FeatureComparison(model, {"all": ""}, images=16)
    compared.offer(model, (torch.ones(2, 3),))
    compared.start()
    assert compared.missing == "Features were not compared: batches have 2 of 4 images needed."
