"""Pretrained weights through the real code of timm, huggingface_hub, torchvision and torch.hub, without their hubs."""

from __future__ import annotations

import dataclasses
import hashlib
import time

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.models import PretrainedCfg
from torchvision import models

from transferkit.core.errors import HubError
from transferkit.zoo import catalog, load

TINY = "timm/test_resnet.r160_in1k"
WEIGHTS = models.SqueezeNet1_1_Weights.IMAGENET1K_V1
OFFLINE_WAYS = "packaged/tf_efficientnet_lite0.*checkpoint=PATH.*pretrained=False"


def assert_same(network, other):
    for mine, theirs in zip(network.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.fixture
def tiny():
    return timm.create_model("test_resnet")


@pytest.fixture
def squeezenet():
    return models.squeezenet1_1()


def test_timm_weights_come_from_the_cache_without_network(tiny, cache_hf_file, network_down):
    save_file(tiny.state_dict(), cache_hf_file(TINY, "model.safetensors"))
    network, spec = load(TINY)
    assert_same(network, tiny)
    assert (spec.pretrained, spec.num_classes, len(spec.class_names)) == (True, 1000, 1000)
    assert spec.preprocessing.origin == "timm pretrained_cfg of test_resnet.r160_in1k"
    assert spec.license == timm.get_pretrained_cfg("test_resnet.r160_in1k").license == "apache-2.0"
    assert [entry.name for entry in catalog(source="timm", offline=True)] == [TINY]


def test_timm_weights_come_from_the_hub(tiny, caches, server, monkeypatch):
    folder, address = server
    files = folder / TINY / "resolve" / "main"
    files.mkdir(parents=True)
    (files / "config.json").write_text("{}")
    save_file(tiny.state_dict(), files / "model.safetensors")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    network, _ = load(TINY)
    assert_same(network, tiny)
    assert len(list((caches / "hf").rglob("model.safetensors"))) == 1


def test_a_repository_that_the_hub_does_not_have_is_one_error(caches, server, monkeypatch):
    _, address = server
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(HubError, match=f"weights of {TINY} .* could not be fetched: .*404.*{OFFLINE_WAYS}"):
        load(TINY)


def test_torchvision_weights_come_from_the_cache_without_network(squeezenet, caches, network_down):
    file = caches / "torch" / "hub" / "checkpoints" / WEIGHTS.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(squeezenet.state_dict(), file)
    network, spec = load("torchvision/squeezenet1_1")
    assert_same(network, squeezenet)
    assert spec.class_names == tuple(WEIGHTS.meta["categories"])
    assert spec.preprocessing.origin == "torchvision transforms of squeezenet1_1:IMAGENET1K_V1"
    assert spec.pretrained
    assert [entry.name for entry in catalog(source="torchvision", offline=True)] == [
        "torchvision/squeezenet1_1:IMAGENET1K_V1"
    ]


@pytest.mark.parametrize("damaged", [False, True])
def test_torchvision_weights_come_from_their_server_and_are_verified(squeezenet, caches, server, monkeypatch, damaged):
    folder, address = server
    torch.save(squeezenet.state_dict(), folder / "new.pth")
    digest = "0" * 8 if damaged else hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()[:8]
    file = (folder / "new.pth").rename(folder / f"squeezenet-{digest}.pth")
    monkeypatch.setattr(WEIGHTS, "_value_", dataclasses.replace(WEIGHTS.value, url=f"{address}/{file.name}"))
    if damaged:
        with pytest.raises(HubError, match=r"the file that arrived is damaged .*invalid hash value"):
            load("torchvision/squeezenet1_1")
    else:
        assert_same(load("torchvision/squeezenet1_1")[0], squeezenet)


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        (TINY, rf"{TINY} \(huggingface.co/{TINY}\)"),
        ("timm/test_resnet", rf"{TINY} \("),
        ("timm/gcvit_xxtiny", r"timm/gcvit_xxtiny.in1k \(https://github.com"),
        ("torchvision/squeezenet1_1", r"torchvision/squeezenet1_1:IMAGENET1K_V1 \(https://download.pytorch.org/"),
    ],
)
def test_without_network_there_is_one_error_at_once(caches, network_down, model, weights):
    start = time.monotonic()
    with pytest.raises(HubError, match=f"weights of {weights}.* Name or service not known. Ways .*{OFFLINE_WAYS}"):
        load(model)
    # Left alone, huggingface_hub would retry for 46 s.
    assert time.monotonic() - start < 5


def test_the_hubs_own_offline_mode_is_named(caches, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"offline mode is enabled.*HF_HUB_OFFLINE"):
        load(TINY)


def test_a_damaged_file_in_the_cache_is_named(tiny, cache_hf_file):
    file = cache_hf_file(TINY, "model.safetensors")
    save_file(tiny.state_dict(), file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(HubError, match=r"is damaged .*; delete it from the cache"):
        load(TINY)


def test_other_errors_are_not_taken_for_a_network_that_is_down(cache_hf_file, monkeypatch):
    def fail(*args, **kwargs):
        raise TypeError("a bug")

    cache_hf_file(TINY, "model.safetensors").touch()
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(TypeError, match="a bug"):
        load(TINY)


def test_a_local_file_of_a_timm_entry_asks_no_hub(tiny, tmp_path, network_down, monkeypatch):
    torch.save(tiny.state_dict(), tmp_path / "own.pth")
    entry = dataclasses.replace(timm.get_pretrained_cfg("test_resnet"), file=str(tmp_path / "own.pth"))
    assert isinstance(entry, PretrainedCfg)
    registry = timm.models._registry._model_pretrained_cfgs
    monkeypatch.setitem(registry, "test_resnet", entry)
    assert_same(load("timm/test_resnet")[0], tiny)
