"""A weights file comes back as it was saved, whatever wraps it; one that does not fit says how and what to do."""

from __future__ import annotations

import argparse
import gzip
import os

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from transferkit.core.errors import BackboneError, CheckpointError
from transferkit.records import Preprocessing
from transferkit.zoo import load


@pytest.fixture(scope="module")
def trained():
    """A tiny network whose every tensor differs from a fresh one's."""
    network = timm.create_model("test_resnet")
    with torch.no_grad():
        for value in network.state_dict().values():
            value.copy_(torch.randint_like(value, 5) if value.dtype == torch.int64 else torch.rand_like(value))
    return network


def assert_same(network, state):
    assert network.state_dict().keys() == state.keys()
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


WRAPPINGS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"state": {}}},
    "ddp": lambda state: prefixed(state, "module."),
    "compiled ddp": lambda state: {"model": prefixed(state, "_orig_mod.module.")},
    "lightning": lambda state: {"state_dict": prefixed(state, "model."), "hyper_parameters": {"lr": 0.1}},
    "lightning with a loss": lambda state: {
        "state_dict": {"loss.weight": torch.ones(3), **prefixed(state, "backbone.")},
    },
    "averaged": lambda state: {"state_dict": {key: value + 1 for key, value in state.items()}, "state_dict_ema": state},
    "timm training": lambda state: {
        "state_dict": state,
        "args": argparse.Namespace(lr=0.1),
        "metric": np.float64(71.3),
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_file_comes_back_from_under_its_wrapping(trained, tmp_path, wrapping):
    torch.save(WRAPPINGS[wrapping](trained.state_dict()), tmp_path / "x.ckpt")
    network, spec = load("timm/test_resnet", checkpoint=tmp_path / "x.ckpt")
    assert_same(network, trained.state_dict())
    assert not network.training
    assert (spec.name, spec.source, spec.pretrained, spec.num_classes) == ("timm/test_resnet", "checkpoint", True, 1000)
    assert (spec.class_names, spec.license) == ((), None)
    said = "; from 'state_dict_ema', not from 'state_dict'" if wrapping == "averaged" else ""
    assert spec.preprocessing.origin.endswith(f"of test_resnet.r160_in1k; the weights are those of x.ckpt{said}")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_every_format_comes_back(trained, tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    save_file(trained.state_dict(), path) if suffix == ".safetensors" else torch.save(trained.state_dict(), path)
    assert_same(load("timm/test_resnet", checkpoint=str(path))[0], trained.state_dict())


@pytest.mark.parametrize("classes", [1, 2, 7, 1001])
def test_the_classifier_has_as_many_classes_as_the_files(tmp_path, classes):
    trained = timm.create_model("test_resnet", num_classes=classes)
    torch.save({"state_dict": prefixed(trained.state_dict(), "model.")}, tmp_path / "x.ckpt")
    network, spec = load("timm/test_resnet", checkpoint=tmp_path / "x.ckpt")
    assert spec.num_classes == classes
    assert_same(network, trained.state_dict())
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(network(images), trained.eval()(images))


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"])
def test_torchvision_classifiers_of_another_width_are_found(tmp_path, name):
    trained = models.get_model(name, weights=None, num_classes=4)
    save_file(trained.state_dict(), tmp_path / "x.safetensors")
    network, spec = load(f"torchvision/{name}", checkpoint=tmp_path / "x.safetensors")
    assert_same(network, trained.state_dict())
    assert spec.num_classes == 4


@pytest.mark.parametrize("auxiliary", [True, False])
def test_googlenet_has_auxiliary_classifiers_if_the_file_has(tmp_path, auxiliary):
    trained = models.googlenet(num_classes=3, aux_logits=auxiliary, init_weights=False)
    torch.save(trained.state_dict(), tmp_path / "x.pth")
    network, spec = load("torchvision/googlenet", checkpoint=tmp_path / "x.pth")
    assert_same(network, trained.state_dict())
    assert spec.num_classes == 3
    assert network.transform_input


def test_a_trunk_without_classifier_loads_without_one(tmp_path):
    trained = timm.create_model("test_resnet", num_classes=0)
    torch.save(trained.state_dict(), tmp_path / "x.pth")
    network, spec = load("timm/test_resnet", checkpoint=tmp_path / "x.pth")
    assert_same(network, trained.state_dict())
    assert spec.num_classes == 0


def test_a_classifier_on_an_architecture_that_has_none_is_found(tmp_path):
    name = "convnextv2_atto.fcmae"
    assert timm.get_pretrained_cfg(name).num_classes == 0
    trained = timm.create_model(name, num_classes=6)
    torch.save(trained.state_dict(), tmp_path / "x.pth")
    network, spec = load(f"timm/{name}", checkpoint=tmp_path / "x.pth")
    assert spec.num_classes == 6
    torch.testing.assert_close(network.head.fc.weight, trained.head.fc.weight)


def test_files_without_batch_counters_load(trained, tmp_path):
    state = {key: value for key, value in trained.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "x.pth")
    network, _ = load("timm/test_resnet", checkpoint=tmp_path / "x.pth")
    torch.testing.assert_close(network.bn1.running_var, trained.bn1.running_var)


def test_half_precision_is_widened(trained, tmp_path):
    save_file({key: value.half() for key, value in trained.state_dict().items()}, tmp_path / "x.safetensors")
    network, _ = load("timm/test_resnet", checkpoint=tmp_path / "x.safetensors")
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    torch.testing.assert_close(network.fc.weight, trained.fc.weight.half().float())


def test_a_packaged_name_takes_a_file_too(tmp_path):
    trained = timm.create_model("tf_efficientnet_lite0", num_classes=3)
    torch.save(trained.state_dict(), tmp_path / "x.pth")
    network, spec = load("packaged/tf_efficientnet_lite0", checkpoint=tmp_path / "x.pth")
    assert_same(network, trained.state_dict())
    assert (spec.num_classes, spec.source) == (3, "checkpoint")
    assert spec.preprocessing.mean[0] == pytest.approx(127 / 255)


def test_a_module_takes_a_file_too(tmp_path):
    facts = Preprocessing(size=32, mean=(0, 0, 0), std=(1, 1, 1), interpolation="nearest")
    trained = nn.Sequential(nn.Linear(3, 4))
    torch.save({"model": trained.state_dict()}, tmp_path / "x.pth")
    mine = nn.Sequential(nn.Linear(3, 4))
    network, spec = load(mine, checkpoint=tmp_path / "x.pth", preprocessing=facts)
    assert_same(network, trained.state_dict())
    assert not torch.equal(mine[0].weight, trained[0].weight)
    assert (spec.source, spec.num_classes) == ("checkpoint", 4)


def test_a_misfit_names_the_tensors_and_the_architecture_that_fits(tmp_path):
    torch.save(prefixed(timm.create_model("resnet34", num_classes=7).state_dict(), "model."), tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        load("timm/resnet18", checkpoint=tmp_path / "x.pth")
    message = str(caught.value)
    assert "x.pth does not fit timm/resnet18:" in message
    assert "80 tensors are unexpected: layer1.2.conv1.weight, layer1.2.bn1.weight" in message
    assert message.count(",") < 12
    assert message.endswith("It fits 'timm/resnet34': load it under that name.")


def test_a_misfit_looks_for_the_name_in_the_other_source(tmp_path):
    torch.save(models.convnext_tiny(num_classes=2).state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="It fits 'torchvision/convnext_tiny': load it under that name"):
        load("timm/convnext_tiny", checkpoint=tmp_path / "x.pth")


def test_missing_unexpected_and_wrongly_shaped_tensors_are_told_apart(trained, tmp_path):
    state = dict(trained.state_dict())
    del state["bn1.bias"]
    state["extra"] = torch.ones(1)
    state["layer1.0.conv2.weight"] = torch.ones(1, 2, 3)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as caught:
        load("timm/test_resnet", checkpoint=tmp_path / "x.pth")
    *found, remedy = str(caught.value).splitlines()[1:]
    assert found == [
        "- found: 92 tensors, such as conv1.0.weight (16x3x3x3), conv1.1.weight (16), conv1.1.bias (16)",
        "- without a prefix they cover 74 of the 75 tensors of the trunk by name, 73 by name and shape",
        "- 1 tensor is missing: bn1.bias",
        "- 1 tensor is unexpected: extra",
        "- 1 tensor is of another shape: layer1.0.conv2.weight 1x2x3 instead of 32x32x3x3",
    ]
    assert remedy.startswith("Check the model name: the file must come from the same architecture. If the network was")


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    torch.save({"model": Trap()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"contains pickled code \(posix.mkdir\).*save only its weights"):
        load("timm/test_resnet", checkpoint=tmp_path / "x.pth")
    assert not (tmp_path / "run").exists()


def test_a_pickled_module_is_refused_with_a_remedy(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"contains pickled code \(torch.nn.modules.linear.Linear\)"):
        load("timm/test_resnet", checkpoint=tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.pth", b"\x00\x01\x02", "is not a checkpoint, or is truncated"),
        ("x.pth", b"hello world", "is a text file, not a checkpoint; it begins with 'hello world'"),
        ("x.safetensors", "grüße".encode() * 200, "is a text file"),
        ("x.pth", b"", "is empty: the copy or the download did not finish"),
        ("x.safetensors", b"", "is empty"),
        ("x.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "is a Git LFS pointer.*git lfs pull"),
        ("x.ckpt", b"\n<!DOCTYPE html><html>", "is a web page, downloaded instead of the file"),
        ("x.pth", gzip.compress(b"weights", mtime=0), "is a gzip file.*gunzip"),
        ("x.h5", b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras writes them"),
        ("x.safetensors", (90).to_bytes(8, "little") + b'{"a"', "is truncated or damaged"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_an_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load("timm/test_resnet", checkpoint=tmp_path / name)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_was_cut_short_is_an_error(trained, tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    save_file(trained.state_dict(), path) if suffix == ".safetensors" else torch.save(trained.state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load("timm/test_resnet", checkpoint=path)


@pytest.mark.parametrize("content", [torch.ones(3), [1, 2], {"epoch": 3}, {"state_dict": {}}])
def test_a_file_without_named_tensors_is_an_error(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="contains no named tensors"):
        load("timm/test_resnet", checkpoint=tmp_path / "x.pth")


def test_a_path_that_is_no_file_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no file .* checkpoint= takes the path of one weights file"):
        load("timm/test_resnet", checkpoint=tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match=r"has no model.safetensors. It contains no weights file"):
        load("timm/test_resnet", checkpoint=tmp_path)
    (tmp_path / "epoch=3.ckpt").touch()
    with pytest.raises(CheckpointError, match=r"Name one of its files: epoch=3.ckpt"):
        load("timm/test_resnet", checkpoint=tmp_path)


def test_a_file_and_random_weights_contradict_each_other(tmp_path):
    with pytest.raises(BackboneError, match=r"contradict each other. Leave pretrained out"):
        load("timm/test_resnet", checkpoint=tmp_path / "x.pth", pretrained=False)


def test_a_networks_own_name_that_looks_like_a_wrapper_is_kept(tmp_path):
    facts = Preprocessing(size=32, mean=(0, 0, 0), std=(1, 1, 1), interpolation="nearest")
    trained = nn.ModuleDict({"model": nn.Conv2d(3, 4, 1), "fc": nn.Linear(4, 2)})
    torch.save(trained.state_dict(), tmp_path / "x.pth")
    mine = nn.ModuleDict({"model": nn.Conv2d(3, 4, 1), "fc": nn.Linear(4, 2)})
    assert_same(load(mine, checkpoint=tmp_path / "x.pth", preprocessing=facts)[0], trained.state_dict())
