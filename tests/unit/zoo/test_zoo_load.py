"""Every kind of source gives a network in eval mode and the facts that the source itself states."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from torch import nn
from torchvision import models, transforms

from transferkit.core.errors import BackboneError
from transferkit.records import Preprocessing
from transferkit.zoo import load
from transferkit.zoo._load import describe

PLAIN = Preprocessing(size=32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="nearest")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.conv(images)).mean((2, 3)))


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "test_vit.r160_in1k", "convnext_atto.d2_in1k"])
def test_timm_facts_are_those_of_timms_own_transform(name):
    _, spec = load(f"timm/{name}", pretrained=False)
    own = create_transform(**resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()))
    resize, crop, _, normalize = own.transforms
    facts = spec.preprocessing
    assert (facts.resize_side, (facts.size, facts.size)) == (resize.size, tuple(crop.size))
    assert facts.interpolation == resize.interpolation.value
    torch.testing.assert_close(torch.tensor(facts.mean), normalize.mean)
    torch.testing.assert_close(torch.tensor(facts.std), normalize.std)
    assert facts.origin == f"timm pretrained_cfg of {name}; the weights are random"
    assert (spec.source, spec.architecture, spec.name) == ("timm", name.split(".")[0], f"timm/{name}")


@pytest.mark.parametrize("name", ["resnet50:IMAGENET1K_V2", "efficientnet_b3", "swin_t", "vit_b_16"])
def test_torchvision_facts_are_those_of_torchvisions_own_transform(name, monkeypatch):
    architecture, _, weights = name.partition(":")
    entry = models.get_model_weights(architecture)[weights or "DEFAULT"]
    monkeypatch.setattr(models, "get_model", lambda *args, **kwargs: nn.Identity())
    _, spec = load(f"torchvision/{name}", pretrained=False)
    facts, image = spec.preprocessing, torch.rand(3, 90, 120)
    steps = [
        transforms.Resize(facts.resize_side, transforms.InterpolationMode(facts.interpolation), antialias=True),
        transforms.CenterCrop(facts.size),
        transforms.Normalize(facts.mean, facts.std),
    ]
    torch.testing.assert_close(transforms.Compose(steps)(image), entry.transforms()(image))
    assert facts.origin == f"torchvision transforms of {architecture}:{entry.name}; the weights are random"
    assert spec.num_classes == len(entry.meta["categories"])
    assert spec.fixed_size is name.startswith("vit")


def test_torchvision_default_weights_are_the_architectures_default():
    origins = [
        load(f"torchvision/mobilenet_v3_large{weights}", pretrained=False)[1].preprocessing.origin
        for weights in ("", ":DEFAULT", ":IMAGENET1K_V1")
    ]
    assert origins[0] == origins[1] != origins[2]


def test_random_weights_are_said_to_be_random():
    network, spec = load("timm/test_resnet", pretrained=False)
    other, _ = load("timm/test_resnet", pretrained=False)
    assert not spec.pretrained
    assert spec.class_names == ()
    assert spec.license is None
    assert not torch.equal(network.fc.weight, other.fc.weight)


def test_the_fields_left_to_others_are_empty_and_the_network_is_in_eval_mode():
    network, spec = load("torchvision/squeezenet1_1", pretrained=False)
    assert (spec.stages, spec.weights_id, spec.parameters) == ((), "", 0)
    assert not any(module.training for module in network.modules())
    assert {(value.dtype, value.device.type) for value in network.parameters()} == {(torch.float32, "cpu")}
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("name", "fixed"), [("deit_tiny_patch16_224", True), ("test_vit", False), ("test_resnet", False)]
)
def test_fixed_size_is_whether_another_size_fails(name, fixed):
    network, spec = load(f"timm/{name}", pretrained=False)
    network(torch.zeros(1, 3, spec.preprocessing.size, spec.preprocessing.size))
    images = torch.zeros(1, 3, 64, 64)
    assert spec.fixed_size is fixed
    if fixed:
        with pytest.raises(AssertionError, match="height \\(64\\)"):
            network(images)
    else:
        assert network(images).shape == (1, 1000)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_that_renormalise_do_so_with_random_weights_too(name):
    network, spec = load(f"torchvision/{name}", pretrained=False)
    assert network.transform_input
    assert spec.preprocessing.mean == (0.485, 0.456, 0.406)


def test_a_network_without_classifier_has_no_classes():
    network, spec = load("timm/vit_small_patch14_dinov2.lvd142m", pretrained=False)
    assert isinstance(network.head, nn.Identity)
    assert spec.num_classes == 0


def test_the_given_preprocessing_overrides_the_sources():
    _, spec = load("timm/test_resnet", pretrained=False, preprocessing=PLAIN)
    assert (spec.preprocessing.size, spec.preprocessing.mean) == (PLAIN.size, PLAIN.mean)
    assert spec.preprocessing.origin == "as given by the caller"


def test_a_given_size_that_the_network_cannot_take_is_an_error():
    with pytest.raises(BackboneError, match="accepts only images of 224 pixels, but its preprocessing has size 32"):
        load("timm/deit_tiny_patch16_224", pretrained=False, preprocessing=PLAIN)


def test_a_module_is_copied_and_left_as_it_was():
    module = Small().train()
    network, spec = load(module, preprocessing=PLAIN)
    assert module.training
    assert not network.training
    network.fc.weight.data.zero_()
    assert module.fc.weight.abs().sum() > 0
    assert (spec.name, spec.source, spec.architecture, spec.num_classes) == ("module/Small", "module", "Small", 7)
    assert spec.preprocessing.origin == "as given by the caller"


@pytest.mark.parametrize("pretrained", [True, False])
def test_whether_a_module_is_pretrained_is_the_callers_word(pretrained):
    assert load(Small(), pretrained=pretrained, preprocessing=PLAIN)[1].pretrained is pretrained


def test_a_module_of_timm_brings_its_facts():
    module = timm.create_model("deit_tiny_patch16_224", num_classes=5)
    _, spec = load(module)
    assert (spec.num_classes, spec.fixed_size, spec.preprocessing.size) == (5, True, 224)
    assert spec.preprocessing.origin == "timm pretrained_cfg of deit_tiny_patch16_224"


def test_a_module_without_facts_needs_preprocessing():
    with pytest.raises(
        BackboneError, match=r"Small does not define its preprocessing. Pass preprocessing=Preprocessing\("
    ):
        load(Small())


def test_a_module_whose_last_layer_is_not_linear_has_no_known_outputs():
    assert load(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), preprocessing=PLAIN)[1].num_classes == 0


def test_imagenet_names_go_with_imagenet_weights_only():
    assert describe("timm/resnet18.a1_in1k").class_names == tuple(ImageNetInfo().label_descriptions())
    assert describe("timm/resnetv2_50x1_bit.goog_in21k").class_names == ()
    assert describe("torchvision/resnet18").class_names[0] == "tench"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet18", "has no source. Did you mean 'timm/resnet18' or 'torchvision/resnet18'"),
        ("resnet18.a1_in1k", "Did you mean 'timm/resnet18' or 'torchvision/resnet18'"),
        ("tf_efficientnet_lite0", "Did you mean 'packaged/tf_efficientnet_lite0' or 'timm/tf_efficientnet_lite0'"),
        ("convnext_tinyy", "Unknown model 'convnext_tinyy'. Closest known: convnext_tiny,"),
        ("tim/resnet18", "Unknown model source 'tim'. Closest known: timm."),
        ("timm/resnt18", "Unknown timm model 'resnt18'. Closest known: resnet18"),
        ("timm/", "Unknown timm model ''"),
        ("timm/resnet18.a1_in2k", "Unknown weights tag 'resnet18.a1_in2k'. Closest known: resnet18.a"),
        ("timm/convnext_tiny_in22ft1k", "Use 'timm/convnext_tiny.fb_in22k_ft_in1k'"),
        ("timm/vit_base_patch16_sapiens2", "3 x 1024 x 768 .* expected a square with 3 channels"),
        ("torchvision/resnet81", "Unknown torchvision model 'resnet81'. Closest known: resnet18"),
        ("torchvision/resnet18:IMAGENET1K_V2", "weights of torchvision/resnet18 .* Closest known: IMAGENET1K_V1"),
        ("torchvision/fasterrcnn_resnet50_fpn", "belongs to torchvision.models.detection"),
        ("torchvision/r3d_18", "belongs to torchvision.models.video; expected an image classification network"),
        ("packaged/tf_efficientnet_lite3", "Unknown packaged model .* Closest known: tf_efficientnet_lite"),
        ("best.pth", "looks like a weights file; .* checkpoint='best.pth'"),
        (Path("best.pth"), "A model is a name or a torch.nn.Module, got PosixPath"),
        ("timm/resnet10t_nope", "Unknown timm model"),
    ],
)
def test_a_wrong_name_is_met_with_the_right_one(model, message):
    with pytest.raises(BackboneError, match=message):
        load(model)


def test_an_architecture_without_weights_says_so_instead_of_staying_random():
    without = sorted(set(timm.list_models()) - {name.split(".")[0] for name in timm.list_pretrained()})
    with pytest.raises(BackboneError, match=f"no pretrained weights of 'timm/{without[0]}'. Pass pretrained=False"):
        load(f"timm/{without[0]}")


def test_a_crop_beyond_the_image_is_kept():
    assert describe("timm/volo_d4_448").preprocessing.crop_pct == 1.15


def test_importing_the_zoo_imports_no_zoo_library():
    code = "import sys, transferkit.zoo; print({'timm', 'torchvision', 'huggingface_hub'} & set(sys.modules))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "set()"
