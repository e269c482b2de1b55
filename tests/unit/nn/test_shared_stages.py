"""An ensemble that runs its equal first stages once: the same logits, fewer runs of these."""

from __future__ import annotations

import copy
import pickle
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import nn

from tests.unit.nn.toy_networks import Pyramid, spec_of
from transferkit.nn import Backbone, Blend, TransferModel, logits_of, replicas_of
from transferkit.nn.shared_stages import SharingBlend, share_stages

STAGES = ("stem", "middle", "top")
CPU = torch.device("cpu")


def make_member(trunk, *, stages=("top",), pooling="avg+max", seed=0):
    torch.manual_seed(seed)
    return TransferModel(Backbone(trunk, spec_of()), stages=stages, pooling=pooling, classes=["a", "b", "c"]).eval()


@pytest.fixture
def trunk():
    torch.manual_seed(3)
    network = Pyramid().train()
    network(torch.randn(8, 3, 32, 32))  # running statistics that are not those of a new layer
    return network.eval()


def trained(trunk, *parts):
    """A copy with other weights in some children."""
    changed = copy.deepcopy(trunk)
    with torch.no_grad():
        for part in parts:
            for parameter in getattr(changed, part).parameters():
                parameter.add_(0.1)
    return changed


def run_counter(stack, model, part):
    """Calls of a child, over all members, by the members' order."""
    calls = []
    for position, member in enumerate(model.parts):
        module = getattr(member.backbone.trunk, part)
        handle = module.register_forward_hook(lambda *_, position=position: calls.append(position))
        stack.callback(handle.remove)
    return calls


@pytest.mark.parametrize("reads", [("top",), STAGES, ("stem",)], ids=["top", "all stages", "a shared stage"])
def test_stages_that_are_equal_in_all_members_run_once_and_the_logits_are_the_blends(trunk, reads):
    parts = [make_member(trained(trunk, "last"), stages=("top",)), make_member(trunk, stages=reads, seed=1)]
    blend = Blend(parts).eval()
    shared = share_stages(blend)
    assert isinstance(shared, SharingBlend)
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with ExitStack() as stack, torch.no_grad():
        expected = blend(images)
        stems, middles, tops = (run_counter(stack, shared, part) for part in ("stem", "middle", "last"))
        found = shared(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert stems == middles == [0]
    assert tops == ([0] if reads == ("stem",) else [0, 1])


def test_several_views_are_averaged_as_the_blend_does(trunk):
    blend = Blend([make_member(trained(trunk, "last")), make_member(trunk)]).eval()
    views = torch.randn(3, 2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(share_stages(blend)(views), blend(views), rtol=1e-5, atol=1e-5)


def test_only_stages_before_the_first_that_differs_are_shared(trunk):
    blend = Blend([make_member(trained(trunk, "middle")), make_member(trunk)]).eval()
    with ExitStack() as stack, torch.no_grad():
        stems, middles = (run_counter(stack, blend, part) for part in ("stem", "middle"))
        share_stages(blend)(torch.zeros(2, 3, 32, 32))
        # The last run; before it, the check ran both.
        assert stems[-1:] == [0]
        assert middles[-2:] == [0, 1]


def test_statistics_count_as_weights(trunk):
    other = copy.deepcopy(trunk)
    other.stem[1].running_mean.add_(1.0)
    blend = Blend([make_member(other), make_member(trunk)]).eval()
    assert share_stages(blend) is blend


class Doubled(Pyramid):
    """The same weights, but not the same map."""

    def __init__(self):
        super().__init__()
        self.stem.append(nn.Identity())

    def forward(self, images):
        return super().forward(2 * images)


def test_nothing_is_shared_where_there_is_nothing_to_share(trunk):
    alone = make_member(trunk)
    assert share_stages(alone) is alone
    for others in (
        [alone],
        [alone, make_member(trained(trunk, "stem", "middle", "last"))],
        [alone, make_member(trained(trunk, "last"), pooling="avg")],
    ):
        blend = Blend(others).eval()
        assert share_stages(blend) is blend


def test_equal_weights_in_networks_that_compute_something_else_are_not_shared(trunk):
    other = Doubled()
    other.load_state_dict(trunk.state_dict())
    blend = Blend([make_member(trunk), make_member(other.eval())]).eval()
    assert share_stages(blend) is blend


def test_what_predicts_shares_its_stages_also_after_a_round_trip_and_a_change_of_the_weights(trunk):
    blend = Blend([make_member(trained(trunk, "last")), make_member(trunk)]).eval()
    pictures = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    replicas = replicas_of(blend)
    with replicas.on(CPU) as one, pickle.loads(pickle.dumps(replicas)).on(CPU) as other, replicas.on(CPU) as third:
        assert type(one) is type(other) is type(third) is SharingBlend
        assert one.parts[0] is not third.parts[0]
        assert one.parts[0].backbone.trunk.stem[0].weight is third.parts[0].backbone.trunk.stem[0].weight
    before = logits_of(blend, pictures, device=CPU)
    with torch.no_grad():
        images = blend.normalise(torch.from_numpy(pictures))
        torch.testing.assert_close(before, blend(images), rtol=1e-5, atol=1e-5)
        blend.parts[1].backbone.trunk.stem[0].weight.mul_(2.0)
        with replicas.on(CPU) as changed:
            assert type(changed) is Blend
            torch.testing.assert_close(changed(images), blend(images), rtol=1e-5, atol=1e-5)


class Resized(Pyramid):
    """Reads the size of its input behind the cut, where a network that was cut has only a stand-in of one size."""

    def forward(self, images):
        maps = self.last(self.middle(self.stem(images)))
        return nn.functional.interpolate(maps, size=images.shape[-2:], mode="bilinear").amax((2, 3))


@pytest.mark.parametrize("size", [32, 48])
def test_images_of_another_size_give_the_blends_logits(size):
    torch.manual_seed(0)
    network = Resized().eval()
    blend = Blend([make_member(trained(network, "last")), make_member(network)]).eval()
    shared = share_stages(blend)
    assert isinstance(shared, SharingBlend)
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(shared(images), blend(images), rtol=1e-5, atol=1e-5)


def test_an_export_of_what_predicts_takes_any_number_of_images(trunk):
    blend = Blend([make_member(trained(trunk, "last")), make_member(trunk)]).eval()
    with replicas_of(blend).on(CPU) as replica:
        number = torch.export.Dim("number", min=1, max=64)
        program = torch.export.export(replica, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: number},))
    for count in (1, 5):
        images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(program.module()(images), blend(images), rtol=1e-5, atol=1e-5)


def test_too_little_memory_for_the_check_is_no_reason_to_fail(trunk, monkeypatch):
    blend = Blend([make_member(trained(trunk, "last")), make_member(trunk)]).eval()

    def forward(self, images):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(Pyramid, "forward", forward)
    assert share_stages(blend) is blend


class Shifted(TransferModel):
    def forward(self, images):
        return super().forward(images) + 1


def test_a_model_that_does_more_than_its_modules_is_left_alone(trunk):
    parts = [make_member(trained(trunk, "last")), make_member(trunk)]
    parts[0].register_forward_hook(lambda module, inputs, output: output + 1)
    assert type(share_stages(Blend(parts).eval())) is Blend
    torch.manual_seed(0)
    shifted = Shifted(Backbone(trunk, spec_of()), stages=("top",), pooling="avg+max", classes=["a", "b", "c"])
    assert type(share_stages(Blend([shifted.eval(), make_member(trunk)]).eval())) is Blend
