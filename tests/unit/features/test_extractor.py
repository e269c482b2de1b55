"""An extractor that is no network goes through the bank like one; the key is its identity and nothing else."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit.features.features_toys import Reader, draw_images, make_backbone, name_images
from transferkit.core.errors import BackboneError
from transferkit.features import Extractor, FeatureBank, Identity, run_extractor
from transferkit.features.engines import TorchExtractor, stage_extractor
from transferkit.features.extraction import open_shelves
from transferkit.nn import Backbone

IDS = name_images(*range(7))
PIXELS = draw_images(7)


class Colours:
    """Mean and spread of each channel, as if they were two stages; and how often each of its methods was called."""

    name = "colours"
    batch_size = 3

    def __init__(self, *, is_threaded: bool = False, version: int = 1) -> None:
        self.is_threaded = is_threaded
        self.version = version
        self.calls: list[tuple[int, str]] = []
        self.is_ready = False

    def identity(self) -> dict[str, Identity]:
        return {"features": Identity({"code": "colours", "version": self.version}, {"mean": 3, "spread": 3})}

    def ready(self) -> AbstractContextManager[object]:
        self.is_ready = True
        return nullcontext()

    def extract(self, pixels: np.ndarray, kinds: frozenset[str]) -> dict[str, np.ndarray]:
        assert self.is_ready
        assert kinds == {"features"}
        self.calls.append((len(pixels), threading.current_thread().name))
        rows = np.concatenate([pixels.mean((2, 3)), pixels.std((2, 3))], axis=1)
        return {"features": rows.astype(np.float32)}


def test_toys_and_networks_are_extractors() -> None:
    assert isinstance(Colours(), Extractor)
    assert isinstance(stage_extractor(make_backbone(), pooling="avg", device=torch.device("cpu")), Extractor)
    assert not isinstance(make_backbone(), Extractor)


@pytest.mark.parametrize("is_threaded", [False, True])
def test_a_toy_fills_the_bank_and_is_not_asked_again(bank: FeatureBank, is_threaded: bool) -> None:
    toy = Colours(is_threaded=is_threaded)
    done = run_extractor(toy, Reader(PIXELS), IDS, bank=bank, workers=2)
    assert (done.computed, done.moments) == (7, None)
    np.testing.assert_allclose(done.table.load(["mean"]), PIXELS.mean((2, 3)), rtol=1e-6)
    np.testing.assert_allclose(done.table.load(["spread"]), PIXELS.std((2, 3)), rtol=1e-6)
    assert sorted(count for count, _ in toy.calls) == [1, 3, 3]
    in_main_thread = {thread == threading.current_thread().name for _, thread in toy.calls}
    assert in_main_thread == {not is_threaded}  # one batch at a time where it is not threaded
    again = Colours()
    assert run_extractor(again, Reader(PIXELS), IDS, bank=bank).computed == 0
    assert again.calls == []


def test_another_identity_is_another_shelf_and_what_people_are_told_is_not(bank: FeatureBank) -> None:
    def key(identity: Identity) -> str:
        return open_shelves(bank, {"features": identity})["features"].folder.name

    plain = Colours().identity()["features"]
    imprinted = replace(plain, imprint=np.ones((2, 256)))
    others = [
        Colours(version=2).identity()["features"],
        replace(plain, widths={"mean": 6}),
        replace(plain, dtype="float16"),
        imprinted,
        replace(plain, imprint=np.full((2, 256), 1.01)),
    ]
    assert len({key(plain), *map(key, others)}) == 6
    assert key(replace(plain, about={"backbone": "another"})) == key(plain)
    assert key(replace(imprinted, imprint=np.full((2, 256), 1.01), close=0.1)) == key(imprinted)


def test_keys_are_what_they_have_always_been(bank: FeatureBank) -> None:
    """Rows that were computed by an earlier version are found: neither the digest nor the names may change."""
    names = {"weights": "w", "preprocessing": {"size": 32, "mean": (0.5, 0.4, 0.3)}, "engine": 2, "pooling": "avg"}
    plain = Identity(names, {"early": 3, "top": 2})
    assert open_shelves(bank, {"features": plain})["features"].folder.name == "b22760e7e9826428e0dceb91"
    half = replace(plain, dtype="float16", imprint=np.ones((2, 256)))
    assert open_shelves(bank, {"features": half})["features"].folder.name == "41bfdef8e9fa5ef1c005a9be-0"
    found = stage_extractor(make_backbone(), pooling="avg", moments=True, device=torch.device("cpu")).identity()
    common = {"architecture", "layers", "weights", "preprocessing", "engine", "libraries", "device", "precision"}
    assert {kind: set(identity.names) for kind, identity in found.items()} == {
        "features": common | {"pooling"},
        "moments": common | {"pooling", "places"},
    }
    assert set(found["features"].names["preprocessing"]) == {
        "size",
        "mean",
        "std",
        "interpolation",
        "crop_pct",
        "crop_mode",
    }
    assert set(found["features"].names["libraries"]) == {"torch", "torchvision", "timm", "pillow", "libjpeg"}


def test_values_that_are_not_finite_are_named_by_their_stage_whoever_computed_them(bank: FeatureBank) -> None:
    class Broken(Colours):
        def extract(self, pixels: np.ndarray, kinds: frozenset[str]) -> dict[str, np.ndarray]:
            rows = dict(super().extract(pixels, kinds))
            rows["features"][-1, 4] = np.inf
            return rows

    with pytest.raises(BackboneError, match="Stage 'spread' of colours gives values that are not finite"):
        run_extractor(Broken(), Reader(PIXELS), IDS, bank=bank)
    assert run_extractor(Colours(), Reader(PIXELS), IDS, bank=bank).computed == 7  # nothing of it was kept


def test_the_networks_identity_is_taken_as_it_is_now_and_leaves_it_as_it_was() -> None:
    backbone = make_backbone().train()
    extractor = stage_extractor(backbone, pooling="avg", device=torch.device("cpu"))
    before = extractor.identity()["features"]
    with torch.no_grad():
        backbone.trunk[0][0].weight.mul_(1.5)
    after = extractor.identity()["features"]
    assert before.names["weights"] != after.names["weights"]
    assert not np.allclose(before.imprint, after.imprint)
    assert backbone.training


def test_rows_of_another_width_than_the_identitys_are_an_error(bank: FeatureBank) -> None:
    backbone: Backbone = make_backbone()
    honest = stage_extractor(backbone, pooling="avg", device=torch.device("cpu"))
    lying = TorchExtractor(
        backbone,
        lambda images, kinds: {"features": {"top": images.mean((2, 3))}},
        honest._kinds,
        device=torch.device("cpu"),
    )
    with pytest.raises(BackboneError, match=r"expected 2 rows of 18 numbers for 2 images, got the shapes top \(2, 3\)"):
        lying.identity()
