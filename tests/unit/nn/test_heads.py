"""The classifier while it is trained, and models whose logits are added: the same map by other routes."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.unit.nn.toy_networks import Pyramid, spec_of
from transferkit.core.errors import OptionError
from transferkit.nn import Backbone, Blend, StandardisedLinear, TransferModel

WIDTH, CLASSES = 6, 3


@st.composite
def heads(draw):
    """A plain layer, features of wildly different scales, and their moments; double, so that equal means equal."""
    seed = draw(st.integers(0, 2**31))
    scales = draw(st.lists(st.sampled_from([0.0, 1e-4, 1.0, 300.0]), min_size=WIDTH, max_size=WIDTH))
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(20, WIDTH, generator=generator, dtype=torch.float64) * torch.tensor(scales) + 3.0
    plain = nn.Linear(WIDTH, CLASSES).double()
    with torch.no_grad():
        plain.weight.copy_(torch.randn(CLASSES, WIDTH, generator=generator))
        plain.bias.copy_(torch.randn(CLASSES, generator=generator))
    return plain, features


@settings(max_examples=50, deadline=None)
@given(heads())
def test_a_standardised_layer_is_the_plain_one_and_so_is_the_folded(drawn):
    plain, features = drawn
    head = StandardisedLinear(plain, features.mean(0), features.std(0, correction=0)).double()
    expected = plain(features)
    torch.testing.assert_close(head(features), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.folded()(features), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(heads())
def test_a_trained_layer_folds_to_the_same_map(drawn):
    plain, features = drawn
    head = StandardisedLinear(plain, features.mean(0), features.std(0, correction=0)).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    folded = head.folded()
    assert type(folded) is nn.Linear
    assert folded.weight.dtype == torch.float64
    torch.testing.assert_close(folded(features), head(features), rtol=1e-9, atol=1e-6)


def test_what_the_inner_layer_sees_has_mean_zero_and_total_variance_one():
    features = torch.randn(400, WIDTH) * torch.tensor([1e-2, 0.1, 1.0, 10.0, 100.0, 5.0]) + 7.0
    head = StandardisedLinear(nn.Linear(WIDTH, 2), features.mean(0), features.std(0, correction=0))
    seen = []
    head.linear.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    head(features)
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(WIDTH), atol=1e-4, rtol=0)
    variances = seen[0].var(0, correction=0)
    assert float(variances[1:].sum()) == pytest.approx(5 / 6, rel=1e-3)
    assert float(variances[0]) < 1 / 6  # below the floor: 0.01 is less than a thousandth of the mean deviation, 19


def test_features_that_never_varied_are_not_blown_up():
    mean, deviation = torch.zeros(WIDTH), torch.tensor([1.0] * (WIDTH - 1) + [0.0])
    head = StandardisedLinear(nn.Linear(WIDTH, 2), mean, deviation)
    assert float(head.scale.min()) > 1e-4
    constant = StandardisedLinear(nn.Linear(WIDTH, 2), torch.ones(WIDTH), torch.zeros(WIDTH))
    torch.testing.assert_close(constant.scale, torch.full((WIDTH,), WIDTH**0.5))


def test_dropout_acts_in_training_only_and_is_not_folded():
    features = torch.randn(50, WIDTH)
    head = StandardisedLinear(nn.Linear(WIDTH, 2), features.mean(0), features.std(0), dropout=0.5)
    plain = head.eval()(features)
    assert not torch.equal(head.train()(features), plain)
    torch.testing.assert_close(head.folded()(features), plain, atol=1e-5, rtol=1e-4)


def test_moments_are_kept_with_the_weights_and_are_no_parameters():
    head = StandardisedLinear(nn.Linear(WIDTH, 2), torch.arange(6.0), torch.ones(WIDTH))
    assert {name for name, _ in head.named_parameters()} == {"linear.weight", "linear.bias"}
    assert set(head.state_dict()) == {"linear.weight", "linear.bias", "mean", "scale"}
    mean = torch.zeros(WIDTH)
    made = StandardisedLinear(nn.Linear(WIDTH, 2), mean, torch.ones(WIDTH))
    mean += 1
    assert float(made.mean.sum()) == 0


def make_model(seed: int, *, stages=("stem", "top"), classes=("a", "b", "c"), pooling="avg+max", size=32):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = Backbone(Pyramid(), spec_of(32), size=size)
        return TransferModel(backbone, stages=stages, pooling=pooling, classes=classes).eval()


def test_a_blend_is_the_sum_of_logits():
    members = [make_model(0), make_model(1, stages=("middle",), pooling="avg"), make_model(2)]
    blend = Blend(members).eval()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    expected = sum(member(member.normalise(images)) for member in members)
    torch.testing.assert_close(blend(blend.normalise(images)), expected)
    assert blend.classes == ("a", "b", "c")
    assert blend.parts == tuple(members)
    assert blend.preprocessing == members[0].preprocessing
    single = Blend(members[:1])
    assert torch.equal(single(single.normalise(images)), members[0](members[0].normalise(images)))


def test_weights_folded_into_classifiers_weigh_the_members():
    first, second = make_model(0), make_model(1)
    images = torch.randn(4, 3, 32, 32)
    expected = 0.25 * first(images) + 0.75 * second(images)
    with torch.no_grad():
        for member, weight in ((first, 0.25), (second, 0.75)):
            for parameter in member.classifier.parameters():
                parameter.mul_(weight)
    torch.testing.assert_close(Blend([first, second])(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_blend_answers_the_same(clone):
    blend = Blend([make_model(0), make_model(1)]).eval()
    images = torch.randn(2, 3, 32, 32)
    np.testing.assert_array_equal(clone(blend)(images).detach(), blend(images).detach())


def test_members_must_agree_on_classes_and_preprocessing():
    with pytest.raises(OptionError, match="A blend needs at least one model, all with the same classes"):
        Blend([])
    with pytest.raises(OptionError, match="same classes"):
        Blend([make_model(0), make_model(1, classes=("a", "c", "b"))])
    with pytest.raises(OptionError, match="same preprocessing"):
        Blend([make_model(0), make_model(1, size=48)])
