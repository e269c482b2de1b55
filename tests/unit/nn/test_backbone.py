"""The backbone as a view of a network: the same numbers, the network itself untouched."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn
from torchvision import models

from tests.unit.nn.toy_networks import Classifier, Isotropic, Pyramid, Wrapper, spec_of
from transferkit.core.errors import BackboneError, OptionError
from transferkit.nn import Backbone, TransferModel, pool
from transferkit.nn.backbone import weights_digest


class FixedSize(nn.Module):
    """Takes 32 px only and cannot be told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 4, stride=4)
        self.fc = nn.Linear(2 * 8 * 8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.stem(images).flatten(1))


class FullyConvolutional(nn.Module):
    """Its classifier is a 1x1 convolution, as SqueezeNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 8, 3, 2), nn.ReLU())
        self.classifier = nn.Conv2d(8, 5, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.trunk(images)).mean((2, 3))


@pytest.fixture
def backbone() -> Backbone:
    return Backbone(Pyramid(), spec_of())


NETWORKS = {
    "timm resnet": (lambda: timm.create_model("test_resnet"), 64),
    "timm vit": (lambda: timm.create_model("test_vit"), 160),
    "timm convnext": (lambda: timm.create_model("test_convnext"), 64),
    "timm efficientnet": (lambda: timm.create_model("test_efficientnet"), 64),
    "torchvision resnet": (models.resnet18, 64),
    "torchvision mobilenet": (lambda: models.mobilenet_v3_small(), 64),
    "torchvision vit": (lambda: models.VisionTransformer(32, 8, 4, 2, 16, 32), 32),
    "custom": (lambda: Classifier(Pyramid(), 16, 7), 32),
    "custom, wrapped": (lambda: Wrapper(Classifier(Isotropic(3), 8, 7)), 32),
    "bare sequential": (lambda: nn.Sequential(Pyramid(), nn.Linear(16, 7)), 32),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_head_over_trunk_is_the_network(name):
    make, size = NETWORKS[name]
    network = make()
    head = [part for part in network.modules() if isinstance(part, nn.Linear)][-1]
    nn.init.normal_(head.weight)  # torchvision's vision transformers start with zeros
    backbone = Backbone(network, spec_of(size)).eval()
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        expected = network.eval()(images)
        assert float(expected.std()) > 0
        torch.testing.assert_close(backbone.head(backbone(images)), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_network_given_stays_as_it_is(name):
    make, size = NETWORKS[name]
    network = make().train()
    next(network.children()).eval()
    modes = [part.training for part in network.modules()]
    parts = [(path, type(part)) for path, part in network.named_modules()]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    backbone = Backbone(network, spec_of(size))
    backbone.forward_stages(torch.randn(1, 3, size, size))
    assert [part.training for part in network.modules()] == modes
    assert [(path, type(part)) for path, part in network.named_modules()] == parts
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    given = {id(parameter) for parameter in network.parameters()}
    assert not any(id(parameter) in given for parameter in backbone.parameters())


def test_network_without_a_classifier_has_no_head(backbone):
    assert backbone.head is None
    assert Backbone(timm.create_model("test_resnet", num_classes=0), spec_of(64)).head is None


def test_convolutional_classifier_is_taken_off_but_is_no_head():
    network = FullyConvolutional().eval()
    backbone = Backbone(network, spec_of())
    assert backbone.head is None
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(backbone(images), network.trunk(images).mean((2, 3)))


def test_feature_map_is_averaged_to_a_vector():
    body = nn.Sequential(*list(Pyramid().children())).eval()
    backbone = Backbone(body, spec_of())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(backbone(images), body(images).mean((2, 3)))
    assert [(stage.name, stage.channels) for stage in backbone.stages] == [
        ("network.0", 4),
        ("network.1", 8),
        ("top", 16),
    ]


def test_spec_is_completed():
    network = Classifier(Pyramid(), 16, 7)
    backbone = Backbone(network, spec_of())
    assert [(stage.name, stage.channels, stage.stride) for stage in backbone.spec.stages] == [
        ("trunk.stem", 4, 2),
        ("trunk.middle", 8, 4),
        ("top", 16, 8),
    ]
    assert backbone.stages is backbone.spec.stages
    assert backbone.spec.parameters == sum(p.numel() for p in network.trunk.parameters())
    assert backbone.spec.weights_id == weights_digest(backbone.trunk)
    assert backbone.spec.native_size == backbone.spec.preprocessing.size == 32


def test_stages_are_found_by_name_index_and_joined(backbone):
    assert backbone.find_stages("middle") == ("middle",)
    assert backbone.find_stages(0) == ("stem",)
    assert backbone.find_stages(-1) == backbone.find_stages(2) == ("top",)
    assert backbone.find_stages("joined") == backbone.find_stages("selected") == ("stem", "middle", "top")


def test_unknown_stage_offers_the_closest(backbone):
    with pytest.raises(OptionError, match="Unknown stage 'midle'. Closest known: middle."):
        backbone.find_stages("midle")


@pytest.mark.parametrize("index", [3, -4])
def test_stage_index_out_of_range_names_the_range(backbone, index):
    with pytest.raises(OptionError, match=rf"Stage index must be in \[-3, 2\], got {index}."):
        backbone.find_stages(index)


@pytest.mark.parametrize("read", [Backbone.forward_stages, lambda b, x, n: b.pooled_stages(x, pooling="avg", names=n)])
def test_only_the_named_stages_are_read_and_typos_are_errors(backbone, read):
    images = torch.zeros(1, 3, 32, 32)
    assert list(read(backbone, images, ["top", "stem"])) == ["stem", "top"]
    with pytest.raises(OptionError, match="Unknown stage 'tpo'. Closest known: top"):
        read(backbone, images, ["tpo"])


def test_forward_stages_have_channels_at_axis_one(backbone):
    shapes = {name: tuple(out.shape) for name, out in backbone.forward_stages(torch.zeros(2, 3, 48, 48)).items()}
    assert shapes == {"stem": (2, 4, 24, 24), "middle": (2, 8, 12, 12), "top": (2, 16, 6, 6)}
    tokens = Backbone(Isotropic(2), spec_of()).forward_stages(torch.zeros(2, 3, 32, 32))
    assert {name: tuple(out.shape) for name, out in tokens.items()} == {
        "blocks.0": (2, 8, 16),  # 4 x 4 patches, the class token left out
        "blocks.1": (2, 8, 16),
        "top": (2, 8),
    }


@pytest.mark.parametrize("make", [Pyramid, lambda: Isotropic(3)])
@pytest.mark.parametrize("pooling", ["avg", "avg+max"])
def test_pooled_stages_are_the_stages_pooled_by_hand(make, pooling):
    backbone = Backbone(make(), spec_of())
    images = torch.randn(2, 3, 32, 32)
    grids = backbone.forward_stages(images)
    pooled = backbone.pooled_stages(images, pooling=pooling)
    assert list(pooled) == list(grids)
    assert {name: vector.shape[1] for name, vector in pooled.items()} == backbone.widths(pooling)
    for name, grid in grids.items():
        flat = grid.flatten(2) if grid.ndim > 2 else grid[..., None]
        by_hand = [flat.mean(2), flat.max(2).values][: pooling.count("+") + 1 if grid.ndim > 2 else 1]
        torch.testing.assert_close(pooled[name], torch.cat(by_hand, dim=1))


def test_top_is_what_forward_returns(backbone):
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(backbone.pooled_stages(images, pooling="avg")["top"], backbone(images))


def test_threads_that_share_a_backbone_do_not_mix_up_their_images():
    backbone = Backbone(timm.create_model("test_resnet"), spec_of(64)).eval()
    batches = [torch.randn(2, 3, 64, 64) for _ in range(32)]

    def read(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat(list(backbone.pooled_stages(images, pooling="avg+max").values()), dim=1)

    serial = [read(images) for images in batches]
    with ThreadPoolExecutor(4) as pool_of_threads:
        parallel = list(pool_of_threads.map(read, batches))
    for one, other in zip(serial, parallel, strict=True):
        torch.testing.assert_close(one, other)


def test_nothing_is_kept_after_a_failed_read(backbone):
    with pytest.raises(RuntimeError, match="channels"):
        backbone.forward_stages(torch.zeros(1, 5, 32, 32))
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(backbone.forward_stages(images)["stem"], backbone.trunk.stem(images))


def test_backbone_within_a_backbone_keeps_its_own_stages(backbone):
    # What a person does who transfers twice: the adapted model is the next backbone.
    inner = TransferModel(backbone, stages=("stem", "top"), pooling="avg", classes=("a", "b")).eval()
    outer = Backbone(inner, spec_of())
    assert [stage.name for stage in outer.stages][:2] == ["backbone.trunk.stem", "backbone.trunk.middle"]
    images = torch.randn(2, 3, 32, 32)
    own, nested = backbone.forward_stages(images), outer.forward_stages(images)
    torch.testing.assert_close(nested["backbone.trunk.middle"], own["middle"])
    torch.testing.assert_close(outer.head(outer(images)), inner(images))


def test_copy_is_independent_and_gives_the_same(backbone):
    images = torch.randn(2, 3, 32, 32)
    twin = copy.deepcopy(backbone)
    expected = backbone.forward_stages(images)
    for name, output in twin.forward_stages(images).items():
        torch.testing.assert_close(output, expected[name])
    with torch.no_grad():
        twin.trunk.stem[0].weight.zero_()
    torch.testing.assert_close(backbone.forward_stages(images)["top"], expected["top"])


def test_state_dict_round_trip():
    one, other = Backbone(Classifier(Pyramid(), 16, 7), spec_of()), Backbone(Classifier(Pyramid(), 16, 7), spec_of())
    images = torch.randn(2, 3, 32, 32)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(other.head(other(images)), one.head(one(images)))
    assert weights_digest(other) == weights_digest(one)


def test_without_head_shares_the_trunk_and_leaves_the_original_alone():
    backbone = Backbone(Classifier(Pyramid(), 16, 7), spec_of())
    bare = backbone.without_head()
    assert bare.head is None
    assert bare.trunk is backbone.trunk
    assert isinstance(backbone.head, nn.Linear)
    assert not any(name.startswith("head") for name in bare.state_dict())


def test_weights_digest_changes_with_one_bit():
    network = Pyramid()
    before = weights_digest(network)
    assert weights_digest(copy.deepcopy(network)) == before
    bits = network.last[0].weight.detach().view(torch.int32)
    bits.view(-1)[7] ^= 1
    assert weights_digest(network) != before
    bits.view(-1)[7] ^= 1
    assert weights_digest(network) == before


def test_weights_digest_sees_buffers_names_and_types():
    digests = {
        weights_digest(nn.Sequential(nn.BatchNorm2d(2))),
        weights_digest(nn.Sequential(nn.Identity(), nn.BatchNorm2d(2))),
        weights_digest(nn.Sequential(nn.BatchNorm2d(2)).half()),
    }
    moved = nn.Sequential(nn.BatchNorm2d(2))
    moved(torch.randn(4, 2, 1, 1))
    assert len(digests | {weights_digest(moved)}) == 4


def test_input_side_can_be_changed_where_the_network_can_be_told():
    network = timm.create_model("test_vit").eval()
    resized = Backbone(network, spec_of(160, fixed_size=True), size=96)
    assert (resized.spec.preprocessing.size, resized.spec.native_size) == (96, 160)
    assert network.pos_embed.shape[1] == 10 * 10 + 1  # the caller's own is as it was
    # timm's own way to load weights of another size.
    expected = timm.create_model("test_vit", img_size=96, num_classes=0).eval()
    state = checkpoint_filter_fn(network.state_dict(), expected)
    expected.load_state_dict({key: value for key, value in state.items() if not key.startswith("head.")})
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(resized(images), expected(images))


def test_side_that_the_network_cannot_take_is_a_backbone_error():
    with pytest.raises(BackboneError, match=r"cannot take images of shape \(2, 3, 100, 100\).*divisible by patch"):
        Backbone(timm.create_model("test_vit"), spec_of(160), size=100)


def test_fixed_size_network_says_so():
    spec = spec_of(fixed_size=True)
    assert Backbone(FixedSize(), spec, size=32).spec.preprocessing.size == 32
    with pytest.raises(BackboneError, match="takes images of 32 px only, got image_size=64. Leave image_size out"):
        Backbone(FixedSize(), spec, size=64)


def test_stage_names_and_strides_do_not_depend_on_the_side_in_use():
    # Traced at 20 px the top would be 3 x 3 and its stride 7.
    assert Backbone(Pyramid(), spec_of(64), size=20).stages == Backbone(Pyramid(), spec_of(64)).stages


def test_network_that_fails_says_on_what():
    with pytest.raises(BackboneError, match=r"cannot take images of shape \(2, 3, 64, 64\): RuntimeError") as caught:
        Backbone(FixedSize(), spec_of(64))
    assert "If it was built for another size, pass that: preprocessing=Preprocessing(size=..." in str(caught.value)


def test_network_must_return_a_tensor():
    class TwoOutputs(Pyramid):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return images, images

    with pytest.raises(BackboneError, match="must return a tensor with a batch dimension first, got tuple"):
        Backbone(TwoOutputs(), spec_of())


def test_backbone_doubles_as_a_training_module():
    backbone = Backbone(Pyramid(), spec_of())
    images = torch.randn(2, 3, 32, 32)
    loss = pool(backbone.forward_stages(images)["stem"], "channels_first", "avg").sum()
    loss.backward()
    assert backbone.trunk.stem[0].weight.grad is not None
    assert backbone.trunk.last[0].weight.grad is None


# Networks that want something of their tensors


class Views(nn.Module):
    """Flattens as tutorials do: `view` needs contiguous memory."""

    def __init__(self, *, pieces: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU())
        self.pieces = pieces

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.pieces:
            images = images.view(-1, 3, 32, 32)
        return self.stem(images).view(-1, 6 * 64)


@pytest.mark.parametrize("pieces", [False, True])
def test_a_network_that_views_its_tensors_runs_in_channels_last(pieces):
    spec = spec_of(32)
    network = Views(pieces=pieces)
    images = torch.randn(3, 3, 32, 32)
    expected = network(images)
    backbone = Backbone(network, spec).to(memory_format=torch.channels_last)
    found = backbone(images.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(copy.deepcopy(backbone)(images.contiguous(memory_format=torch.channels_last)), found)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("inside", [False, True])
def test_torchscript_is_refused_with_a_way_out_that_works(inside):
    network = Views()
    traced = torch.jit.trace(network.eval(), torch.zeros(2, 3, 32, 32))
    spec = spec_of(32)
    with pytest.raises(BackboneError, match=r"A TorchScript module does not expose its layers.*load_state_dict"):
        Backbone(nn.Sequential(traced) if inside else traced, spec)
    again = Views()
    again.load_state_dict(traced.state_dict())
    assert Backbone(again, spec).spec.weights_id == Backbone(network, spec).spec.weights_id


def test_a_network_that_cannot_be_copied_says_so():
    network = Views()
    network.lines = (line for line in "abc")
    spec = spec_of(32)
    with pytest.raises(BackboneError, match="cannot be copied.*generator"):
        Backbone(network, spec)
