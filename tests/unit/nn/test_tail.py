"""Prefix and tail together are the backbone, number for number; where they cannot be, the cut is refused."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from tests.unit.nn.toy_networks import ChannelsLast, Isotropic, Mixer, Pyramid, Wrapper, conv_block, spec_of
from transferkit.core.errors import OptionError
from transferkit.nn import Backbone, TransferModel
from transferkit.nn.backbone import weights_digest
from transferkit.nn.tail import CutError, Tail, cut


def make_backbone(network: nn.Module, size: int = 32) -> Backbone:
    """Its running statistics are not the initial ones."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return Backbone(network, spec_of(size))


def draw(count: int = 3, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def backbone() -> Backbone:
    return make_backbone(Pyramid())


@pytest.fixture
def tail(backbone: Backbone) -> Tail:
    return cut(backbone, "middle")


# The same numbers


def timm_model(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, pretrained=False)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "pyramid": (Pyramid, 32),
    "pyramid, in place": (lambda: Pyramid(inplace=True), 32),
    "isotropic": (lambda: Isotropic(4), 32),
    "channels last": (ChannelsLast, 32),
    "wrapped twice": (lambda: Wrapper(Wrapper(Pyramid())), 32),
    "bare sequential": (lambda: nn.Sequential(conv_block(3, 4), conv_block(4, 8), conv_block(8, 16)), 32),
    "timm resnet": (timm_model("test_resnet"), 64),
    "timm lite0": (timm_model("tf_efficientnet_lite0"), 64),
    "timm efficientnet": (timm_model("test_efficientnet"), 64),
    "timm convnext": (timm_model("test_convnext"), 64),
    "timm vit": (timm_model("test_vit"), 160),
    "timm vit, registers": (timm_model("test_vit2"), 160),
    "torchvision resnet": (lambda: models.resnet18(weights=None), 64),
    "torchvision mobilenet": (lambda: models.mobilenet_v3_small(weights=None), 64),
    "torchvision densenet": (lambda: models.DenseNet(8, (2, 2, 2), 16), 64),
    "torchvision squeezenet": (lambda: models.squeezenet1_1(weights=None), 64),
    "torchvision vit": (lambda: models.VisionTransformer(32, 8, 4, 2, 16, 32), 32),
    "torchvision swin": (lambda: models.SwinTransformer([4, 4], 8, [1, 1, 1], [2, 2, 2], [2, 2]), 64),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_prefix_and_tail_are_the_backbone_at_every_stage(name):
    make, size = NETWORKS[name]
    check_every_stage(make_backbone(make(), size), size)


def check_every_stage(backbone: Backbone, size: int) -> None:
    images = draw(4, size)
    with torch.no_grad():
        whole = backbone.eval().pooled_stages(images, pooling="avg+max")
        for tap in backbone.taps[:-1]:
            tail = cut(backbone, tap.stage)
            activation, before = tail.activations(images, pooling="avg+max", names=tail.stages_before)
            behind = tail.pooled_stages(activation, pooling="avg+max")
            assert tuple(activation.shape) == (4, *tail.shape)
            assert [*before, *behind] == list(whole) == [*tail.stages_before, *tail.stages_behind]
            torch.testing.assert_close({**before, **behind}, whole)
            torch.testing.assert_close(tail(activation), backbone(images))


MORE = [
    "cait_xxs24_224",
    "convit_tiny",
    "dla46_c",
    "eva02_tiny_patch14_224",
    "focalnet_tiny_srf",
    "ghostnet_050",
    "levit_128s",
    "mvitv2_tiny",
    "resnet18",
    "swin_tiny_patch4_window7_224",
    "test_byobnet",
    "test_coatnet",
    "test_mambaout",
    "test_maxvit",
    "test_nfnet",
    "test_vit_relpos",
    "vit_tiny_patch16_224",
    "xcit_nano_12_p16_224",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_families_with_glue_of_their_own_can_be_cut_at_every_stage(name):
    network = timm.create_model(name, pretrained=False)
    size = network.pretrained_cfg["input_size"][-1]
    check_every_stage(make_backbone(network, size), size)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["crossvit_tiny_240", "hrnet_w18_small"])
def test_families_with_parallel_branches_are_refused(name):
    network = timm.create_model(name, pretrained=False)
    backbone = make_backbone(network, network.pretrained_cfg["input_size"][-1])
    with pytest.raises(CutError, match="what follows also reads values computed before it"):
        cut(backbone, len(backbone.stages) // 2)


def test_an_index_names_the_stage_too(backbone, tail):
    assert cut(backbone, 1).stage == cut(backbone, -2).stage == tail.stage == "middle"
    assert tail.stages_behind == ("top",)
    assert tail.stages_before == ("stem", "middle")
    assert tail.shape == (8, 8, 8)


def test_only_the_stages_asked_for_come_back(backbone):
    tail = cut(backbone, "stem")
    activation, before = tail.activations(draw())
    assert before == {}
    assert list(tail.pooled_stages(activation, pooling="avg", names=["middle"])) == ["middle"]


def test_nothing_behind_the_cut_runs_before_it_and_nothing_before_it_runs_behind(backbone, tail):
    ran = []
    for name, module in backbone.trunk.named_children():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    activation, _ = tail.activations(draw())
    assert ran == ["stem", "middle"]
    ran.clear()
    tail(activation)
    assert ran == ["last"]


def test_threads_do_not_mix_up_each_others_batches(tail):
    batches = [draw(1 + seed % 3, seed=seed) for seed in range(24)]
    with torch.no_grad():
        expected = [tail(tail.activations(images)[0]) for images in batches]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda images: _through(tail, images), batches))
    torch.testing.assert_close(found, expected)


def _through(tail: Tail, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return tail(tail.activations(images)[0])


# Training


def few_layers(model: TransferModel, *, behind: str) -> None:
    """Training mode for that module and the head alone, gradients as well."""
    model.requires_grad_(False).eval()
    for part in (model.backbone.trunk.get_submodule(behind), model.classifier):
        part.requires_grad_(True).train()


def make_model(seed: int = 0) -> TransferModel:
    torch.manual_seed(seed)
    network = Pyramid()
    network.last.append(nn.Dropout(0.3))
    model = TransferModel(
        make_backbone(network), stages=("stem", "top"), pooling="avg+max", classes=[str(k) for k in range(3)]
    )
    few_layers(model, behind="last")
    return model


def from_cache(model: TransferModel, tail: Tail, activation: torch.Tensor, pooled: dict[str, torch.Tensor]):
    parts = {**pooled, **tail.pooled_stages(activation, pooling=model.pooling, names=["top"])}
    return model.classifier(torch.cat([parts[name] for name in model.stages], dim=1))


def test_training_the_tail_is_training_the_backbone_with_the_rest_frozen():
    images, targets = draw(16), torch.arange(16) % 3
    plain, cached = make_model(), make_model()
    tail = cut(cached.backbone, "middle")
    with torch.no_grad():
        activation, pooled = tail.activations(images, pooling="avg+max", names=["stem"])
    losses = []
    for model, run in (
        (plain, lambda rows: plain(images[rows])),
        (cached, lambda rows: from_cache(cached, tail, activation[rows], {k: v[rows] for k, v in pooled.items()})),
    ):
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
        losses.append([])
        for step in range(12):
            torch.manual_seed(step)  # dropout
            loss = nn.functional.cross_entropy(run(torch.arange(step % 4, 16, 2)), targets[step % 4 :: 2])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[0][-1] < losses[0][0]
    torch.testing.assert_close(cached.state_dict(), plain.state_dict())
    assert int(cached.backbone.trunk.last[1].num_batches_tracked) == 12
    assert int(cached.backbone.trunk.middle[1].num_batches_tracked) == 0


def test_gradients_reach_the_activation_and_what_is_behind_the_cut_only(backbone, tail):
    activation, _ = tail.activations(draw())
    activation = activation.detach().requires_grad_()
    tail.pooled_stages(activation, pooling="avg+max")["top"].sum().backward()
    assert activation.grad.abs().sum() > 0
    reached = {name for name, parameter in backbone.trunk.named_parameters() if parameter.grad is not None}
    assert reached == {"last.0.weight", "last.0.bias", "last.1.weight", "last.1.bias"}


def test_a_tail_is_no_module_and_adds_nothing_to_a_state_dict(backbone, tail):
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.tail = backbone, tail

    assert list(Holder().state_dict()) == [f"backbone.{name}" for name in backbone.state_dict()]


def test_a_deep_copy_of_a_holder_trains_its_own_backbone(backbone, tail):
    held = copy.deepcopy({"backbone": backbone, "tail": tail})
    activation, _ = tail.activations(draw())
    before = tail(activation)
    with torch.no_grad():
        held["backbone"].trunk.last[0].weight.zero_()
    torch.testing.assert_close(tail(activation), before)
    assert not torch.allclose(held["tail"](activation), before)


def test_the_same_cut_can_be_laid_on_a_copy(backbone, tail):
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        other.trunk.last[0].weight.mul_(2)
        activation, _ = tail.activations(draw())
        torch.testing.assert_close(tail.on(other)(activation), other(draw()))
        torch.testing.assert_close(tail(activation), backbone(draw()))


def test_the_mode_is_the_backbones_own_at_each_call(backbone, tail):
    activation, _ = tail.activations(draw())
    backbone.train()
    once = tail(activation)
    assert int(backbone.trunk.last[1].num_batches_tracked) == 1
    backbone.eval()
    assert not torch.allclose(tail(activation), once)
    assert int(backbone.trunk.last[1].num_batches_tracked) == 1


def test_modes_of_modules_around_the_cut_are_followed_as_well():
    class Loud(Pyramid):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * (2 if self.training else 1)

    backbone = make_backbone(Loud())
    tail = cut(backbone, "middle")
    activation, _ = tail.activations(draw())
    quiet = tail(activation)
    backbone.trunk.training = True
    torch.testing.assert_close(tail(activation), 2 * quiet)


def test_hooks_that_were_added_after_the_cut_work(backbone, tail):
    seen = []
    backbone.trunk.last.register_forward_pre_hook(lambda *_: seen.append("into last"))
    backbone.trunk.last[0].register_forward_hook(lambda *_: seen.append("out of its convolution"))
    backbone.trunk.register_forward_hook(lambda _m, _i, output: 3 * output)
    activation, _ = tail.activations(draw())
    vector = tail(activation)
    assert seen == ["into last", "out of its convolution"]
    torch.testing.assert_close(vector, backbone(draw()))


def test_what_is_put_in_a_modules_place_after_the_cut_counts(backbone, tail):
    activation, _ = tail.activations(draw())
    backbone.trunk.last = nn.Conv2d(8, 16, 1)
    torch.testing.assert_close(tail(activation), backbone(draw()))


def test_the_activation_given_is_never_changed():
    class Again(Pyramid):
        """Changes nothing in what its own stem hands on, which is why it is not refused."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.last(self.middle(self.stem(images).relu_())).mean((2, 3))

    tail = cut(make_backbone(Again()), "stem")
    given = torch.randn(2, *tail.shape)
    before = given.clone()
    tail(given)
    assert torch.equal(given, before)


# The prefix


def test_the_prefix_has_the_weights_up_to_the_cut_alone(backbone, tail):
    kept = set(tail.prefix().state_dict())
    assert kept == {name for name in backbone.trunk.state_dict() if not name.startswith("last")}
    assert tail.modules_behind == ("last",)


def test_the_prefix_changes_with_what_is_before_the_cut_and_with_nothing_else(backbone, tail):
    before = weights_digest(tail.prefix())
    with torch.no_grad():
        backbone.trunk.last[0].weight.add_(1)
    assert weights_digest(tail.prefix()) == before
    with torch.no_grad():
        backbone.trunk.middle[1].running_mean.add_(1)
    assert weights_digest(tail.prefix()) != before


def test_looking_leaves_the_backbone_as_it_was(backbone):
    backbone.train()
    backbone.trunk.stem.eval()

    def state():
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in backbone.modules()]
        return [(id(m), m.training) for m in backbone.modules()], hooks, copy.deepcopy(backbone.state_dict())

    before = state()
    tail = cut(backbone, "middle")
    tail.prefix()
    after = state()
    assert after[:2] == before[:2]
    torch.testing.assert_close(after[2], before[2], rtol=0, atol=0)
    assert not any(parameter.grad is not None for parameter in backbone.parameters())


def test_what_was_computed_to_look_is_let_go_at_once(backbone):
    held = []
    backbone.trunk.stem[0].register_forward_hook(lambda _m, _i, output: held.append(weakref.ref(output)))
    gc.disable()
    try:
        cut(backbone, "middle")
        assert len(held) >= 3
        assert [output for output in held if output() is not None] == []
    finally:
        gc.enable()


def test_cutting_draws_nothing(backbone):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    cut(backbone, "middle")
    assert torch.equal(torch.rand(1), expected)


# Networks that need care


class Table(nn.Module):
    """Positions that every block adds; computed once, first of all, from nothing."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, tokens, width))

    def forward(self) -> torch.Tensor:
        return self.weight.sin()


class Positions(Isotropic):
    """Uses its table in front of every block."""

    def __init__(self) -> None:
        super().__init__(4)
        self.table = Table(17, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        table = self.table()
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens + table)
        return self.norm(tokens)[:, 0]


class Sized(NamedTuple):
    tokens: torch.Tensor
    size: tuple[int, int]
    gate: torch.Tensor


class Gated(nn.Module):
    """Hands on its tokens with their grid and a gate; the gate is the images' own or a constant."""

    def __init__(self, *, of_images: bool) -> None:
        super().__init__()
        self.inner, self.of_images = Mixer(8), of_images

    def forward(self, given: Sized) -> Sized:
        tokens = self.inner(given.tokens * given.gate)
        gate = tokens.mean((1, 2), keepdim=True) if self.of_images else given.gate
        return Sized(tokens, given.size, gate)


class Tuples(nn.Module):
    def __init__(self, *, of_images: bool) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 8, stride=8)
        self.blocks = nn.ModuleList([Gated(of_images=of_images) for _ in range(4)])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        state = Sized(tokens, (4, 4), torch.ones(()))
        for block in self.blocks:
            state = block(state)
            state = state if block.of_images else state._replace(gate=torch.ones(()))
        return state.tokens.mean(1)


def test_a_table_that_needs_no_image_goes_on_running():
    backbone = make_backbone(Positions())
    tail = cut(backbone, "blocks.1")
    activation, _ = tail.activations(draw())
    torch.testing.assert_close(tail(activation), backbone(draw()))


def test_one_activation_module_for_all_layers_can_stand_on_both_sides():
    class Relu(Pyramid):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            for part in (self.stem, self.middle, self.last):
                images = self.relu(part(self.relu(images)) - 0.1)
            return images.mean((2, 3))

    backbone = make_backbone(Relu())
    tail = cut(backbone, "middle")
    activation, _ = tail.activations(draw())
    torch.testing.assert_close(tail(activation), backbone(draw()))


class Skip(Pyramid):
    """The top reads the stem's output too, scaled down to nearly nothing."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stem = self.stem(images)
        return self.last(self.middle(stem)).mean((2, 3)) + 1e-12 * stem.mean()


class ReadsImages(Pyramid):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.stem(images))).mean((2, 3)) + images.mean()


class Tied(nn.Module):
    """One block, used three times in between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.other = conv_block(3, 4), nn.Conv2d(4, 4, 1), conv_block(4, 8)
        self.last = conv_block(8, 16)
        self.adapt = nn.Conv2d(8, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grid = self.other(self.block(self.stem(images)))
        grid = grid + self.block(self.adapt(grid)).mean(1, keepdim=True)
        return self.last(grid).mean((2, 3))


class InPlace(nn.Module):
    """What follows the first convolution writes into its output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True)
        self.conv2, self.conv3 = nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv3(self.relu(self.conv2(self.relu(self.conv1(images)))))).mean((2, 3))


REFUSED = {
    "skips the cut": (Skip, "middle", "what follows also reads values computed before it"),
    "reads the images": (ReadsImages, "stem", "what follows also reads values computed before it"),
    "one weight on both sides": (Tied, "other", "'block' runs both before and after it"),
    "changed in place": (InPlace, "conv2", "its output is changed in place by what follows"),
    "a gate of the images' own": (
        lambda: Tuples(of_images=True),
        "blocks.1",
        "what follows also reads values computed before it",
    ),
    "nothing behind": (Pyramid, "top", "no other stage runs after it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_cut_that_cannot_be_is_refused_with_its_reason(name):
    make, stage, reason = REFUSED[name]
    backbone = make_backbone(make())
    with pytest.raises(
        CutError, match=f"module/toy cannot be cut after stage '{stage}': {reason}. Train it without cached"
    ):
        cut(backbone, stage)


def test_extras_that_are_the_same_for_all_images_are_handed_on():
    backbone = make_backbone(Tuples(of_images=False))
    tail = cut(backbone, "blocks.1")
    activation, _ = tail.activations(draw())
    torch.testing.assert_close(tail(activation), backbone(draw()))


def test_errors_name_what_there_is(backbone, tail):
    with pytest.raises(OptionError, match="Unknown stage 'midle'. Closest known: middle"):
        cut(backbone, "midle")
    with pytest.raises(OptionError, match="A backbone is cut at one stage, got 'joined'."):
        cut(backbone, "joined")
    with pytest.raises(OptionError, match="Stage 'stem' is not after 'middle'. Stages after it: top."):
        tail.pooled_stages(torch.randn(1, 8, 8, 8), pooling="avg", names=["stem"])
