"""Stages of networks whose stages are known: by reading the toy, or from timm's own table."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from tests.unit.nn.toy_networks import (
    ChannelsLast,
    Classifier,
    Isotropic,
    Pyramid,
    SharedRelu,
    Wrapper,
    conv_block,
    spec_of,
)
from transferkit.core.errors import BackboneError
from transferkit.nn import Backbone, discover_taps
from transferkit.nn.stages import MOST_STAGES, evaluating

FAMILIES = [
    "caformer_s18",
    "cait_xxs24_224",
    "coat_lite_tiny",
    "convit_tiny",
    "convmixer_768_32",
    "convnextv2_atto",
    "crossvit_tiny_240",
    "densenet121",
    "dla46_c",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientvit_m0",
    "focalnet_tiny_srf",
    "ghostnet_050",
    "halonet26t",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "hrnet_w18_small",
    "inception_v3",
    "levit_128s",
    "mixer_s16_224",
    "mobilenetv3_small_050",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "pit_ti_224",
    "regnetx_002",
    "repvit_m0_9",
    "resnetv2_18",
    "swin_tiny_patch4_window7_224",
    "tnt_s_patch16_224",
    "vgg11_bn",
    "xcit_nano_12_p16_224",
]


def found(network: nn.Module, size: int = 32) -> list[tuple[str, str, int, int | None]]:
    """(stage, path, channels, grid) of every tap."""
    return [(tap.stage, tap.path, tap.channels, tap.grid) for tap in discover_taps(network, size=size)]


@pytest.mark.parametrize("inplace", [False, True])
def test_conv_net_has_a_stage_per_width(inplace):
    assert found(Pyramid(inplace=inplace)) == [
        ("stem", "stem", 4, 16),
        ("middle", "middle", 8, 8),
        ("top", "last", 16, 4),  # its average is the vector
    ]


def test_top_is_the_vector_where_it_is_no_average():
    network = nn.Sequential(Pyramid(), nn.Linear(16, 5))
    assert found(network) == [
        ("0.stem", "0.stem", 4, 16),
        ("0.middle", "0.middle", 8, 8),
        ("0.last", "0.last", 16, 4),
        ("top", "", 5, None),
    ]


def test_layers_behind_the_pooling_belong_to_the_vector():
    # As MobileNetV3 ends: pooled to 1 x 1, one more convolution, flattened. There is no maximum over one position.
    body = [conv_block(3, 4), conv_block(4, 8), conv_block(8, 16)]
    network = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 12, 1), nn.ReLU(), nn.Flatten())
    assert found(network) == [("0", "0", 4, 16), ("1", "1", 8, 8), ("2", "2", 16, 4), ("top", "", 12, None)]


def test_layer_that_runs_more_than_once_is_no_stage():
    assert [path for _, path, _, _ in found(SharedRelu())] == ["conv1", "conv2", "conv3"]


def test_stage_behind_an_activation_in_place_is_read_as_that_leaves_it():
    network = SharedRelu().eval()
    stages = Backbone(network, spec_of()).forward_stages(images := torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(stages["conv1"], network.conv1(images).relu())


@pytest.mark.parametrize("depth", [2, 3, MOST_STAGES])
def test_isotropic_network_has_a_stage_per_block(depth):
    assert [stage for stage, *_ in found(Isotropic(depth))] == [*[f"blocks.{i}" for i in range(depth)], "top"]


@pytest.mark.parametrize("depth", [13, 24, 31])
def test_deep_isotropic_network_is_thinned_evenly_and_keeps_its_last_block(depth):
    blocks = [int(stage.removeprefix("blocks.")) for stage, *_ in found(Isotropic(depth))[:-1]]
    gaps = {after - before for before, after in zip([-1, *blocks], blocks, strict=False)}
    assert len(blocks) == MOST_STAGES
    assert blocks[-1] == depth - 1
    assert max(gaps) - min(gaps) <= 1


def test_wrappers_only_lengthen_the_paths():
    inner = found(Pyramid())
    twice = found(Wrapper(Wrapper(Pyramid())))
    assert twice == [
        (stage if stage == "top" else f"inner.inner.{stage}", f"inner.inner.{path}", channels, grid)
        for stage, path, channels, grid in inner
    ]


def test_normalisation_before_a_wrapped_network_is_no_stage():
    paths = [path for _, path, _, _ in found(nn.Sequential(nn.InstanceNorm2d(3), Pyramid()))]
    assert paths == ["1.stem", "1.middle", "1.last"]


def test_channels_last_output_is_recognised():
    taps = discover_taps(ChannelsLast(), size=32)
    assert [(tap.path, tap.layout, tap.channels, tap.grid) for tap in taps] == [
        ("embed", "channels_last", 6, 8),
        ("merge", "channels_last", 10, 4),
        ("widen", "channels_last", 12, 4),
    ]


def test_nested_sequential_that_holds_most_parameters_is_looked_into():
    body = nn.Sequential(conv_block(3, 4), conv_block(4, 8), conv_block(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert [path for _, path, _, _ in found(Wrapper(body))] == ["inner.0", "inner.1", "inner.2"]


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_stages_contain_those_of_timms_own_table(name):
    network = timm.create_model(name)
    size = network.pretrained_cfg["input_size"][-1]
    backbone = Backbone(network, spec_of(size))
    stages = {
        tap.path: (stage.channels, stage.stride) for tap, stage in zip(backbone.taps, backbone.stages, strict=True)
    }
    table = timm.create_model(name, features_only=True).feature_info
    rows = list(zip(table.module_name(), table.channels(), table.reduction(), strict=True))
    assert len(rows) == 5
    assert {path: stages.get(path) for path, _, _ in rows} == {path: (width, stride) for path, width, stride in rows}


def test_stages_equal_what_timms_own_extractor_returns():
    network = timm.create_model("resnet18").eval()
    extractor = timm.create_model("resnet18", features_only=True).eval()
    extractor.load_state_dict(network.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = extractor(images)
        stages = Backbone(network, spec_of(64)).forward_stages(images)
    assert list(stages) == ["act1", "layer1", "layer2", "layer3", "top"]
    for stage, own in zip(stages.values(), expected, strict=True):
        torch.testing.assert_close(stage, own)


@pytest.mark.parametrize("name", ["byobnet", "coatnet", "convnext", "efficientnet", "nfnet", "resnet"])
def test_tiny_timm_models_have_the_widths_of_timms_own_table(name):
    taps = discover_taps(timm.create_model(f"test_{name}", num_classes=0), size=160)
    table = timm.create_model(f"test_{name}", features_only=True).feature_info
    expected = {(width, 160 // stride) for width, stride in zip(table.channels(), table.reduction(), strict=True)}
    # The stem may be read at another of its layers.
    missing = expected - {(tap.channels, tap.grid) for tap in taps}
    assert missing <= {(table.channels()[0], 160 // table.reduction()[0])}
    assert len({tap.path for tap in taps}) == len(taps)


def test_tiny_timm_transformer_has_a_stage_per_block():
    network = timm.create_model("test_vit", num_classes=0)
    expected = [*[f"blocks.{i}" for i in range(len(network.blocks))], "top"]
    assert [tap.stage for tap in discover_taps(network, size=160)] == expected


def test_torchvision_networks():
    resnet = models.resnet18()
    resnet.fc = nn.Identity()
    assert found(resnet, 64) == [
        ("relu", "relu", 64, 32),
        ("layer1", "layer1", 64, 16),
        ("layer2", "layer2", 128, 8),
        ("layer3", "layer3", 256, 4),
        ("top", "layer4", 512, 2),
    ]
    vit = models.VisionTransformer(32, 8, num_layers=6, num_heads=2, hidden_dim=32, mlp_dim=128)
    vit.heads = nn.Identity()
    blocks = [f"encoder.layers.encoder_layer_{i}" for i in range(6)]
    assert found(vit) == [*[(block, block, 32, None) for block in blocks], ("top", "", 32, None)]


def test_discovery_draws_nothing_and_leaves_no_hook_and_no_mode_behind():
    network = Pyramid().train()
    network.middle.eval()
    modes = [part.training for part in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    discover_taps(network, size=32)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in network.modules()] == modes
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_failed_discovery_leaves_no_hook_and_no_mode_behind():
    network = Classifier(Isotropic(2), 9, 2).train()  # 9 features promised, 8 given
    with pytest.raises(BackboneError, match=r"cannot take images of shape \(2, 3, 32, 32\): RuntimeError"):
        discover_taps(network, size=32)
    assert all(part.training for part in network.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


def test_network_must_return_one_vector_per_image():
    with pytest.raises(BackboneError, match=r"must return \(N, D\), got \(2, 4, 16, 16\)"):
        discover_taps(conv_block(3, 4), size=32)


def test_evaluating_restores_every_mode_after_an_exception():
    network = Pyramid().train()
    network.stem.eval()
    modes = [part.training for part in network.modules()]
    with evaluating(network):
        assert not any(part.training for part in network.modules())
    assert [part.training for part in network.modules()] == modes
    with pytest.raises(RuntimeError, match="inside"), evaluating(network):
        raise RuntimeError("inside")
    assert [part.training for part in network.modules()] == modes


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_stages(name):
    network = timm.create_model(name)
    size = network.pretrained_cfg["input_size"][-1]
    backbone = Backbone(network, spec_of(size))
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        stages = backbone.pooled_stages(images, pooling="avg+max")
        logits = network.eval()(images)
        if backbone.head is not None:
            torch.testing.assert_close(backbone.head(backbone(images)), logits, rtol=1e-3, atol=1e-5)
    assert len(stages) >= 2
    assert list(stages)[-1] == "top"
    assert {stage: values.shape[1] for stage, values in stages.items()} == backbone.widths("avg+max")
    assert all(bool(values.isfinite().all()) for values in stages.values())
