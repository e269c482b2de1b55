"""Every registered engine gives the rows of the network itself, whatever the network, the images and the threads."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.unit.features.features_toys import PLAIN, draw_images, make_backbone
from tests.unit.nn.toy_networks import ChannelsLast, Isotropic, Pyramid, SharedRelu, spec_of, stir
from transferkit.features.engines import ENGINES, EngineExtractor, Engines, stage_extractor
from transferkit.features.engines.engine import is_installed
from transferkit.nn import Backbone

CPU = torch.device("cpu")
FEATURES, BOTH = frozenset({"features"}), frozenset({"features", "moments"})
QUICK = [name for name in ENGINES if name != "compile"]
ALL = [*QUICK, pytest.param("compile", marks=pytest.mark.slow)]
NETWORKS = {"pyramid": Pyramid, "shared": SharedRelu, "channels last": ChannelsLast, "isotropic": lambda: Isotropic(4)}


def open_engine(name: str, backbone: Backbone, images: np.ndarray, *, workers: int = 2) -> EngineExtractor:
    if not is_installed(name):
        pytest.skip(f"{name} is not installed")
    reference = stage_extractor(backbone, pooling="avg+max", moments=True, device=CPU)
    engines = Engines(name)
    opened = engines.extractor(
        reference, images, images=len(images), kinds=[FEATURES, BOTH], pooling="avg+max", workers=workers
    )
    assert isinstance(opened, EngineExtractor)
    assert engines.use is not None
    assert (engines.use.name, engines.use.same_class, engines.use.reasons) == (name, 1.0, ())
    assert engines.use.difference < 1e-4
    return opened


def assert_same_rows(backbone: Backbone, opened: EngineExtractor, images: np.ndarray) -> None:
    reference = stage_extractor(backbone, pooling="avg+max", moments=True, device=CPU)
    for kinds in (FEATURES, BOTH):
        with reference.ready(), opened.ready():
            expected, found = reference.extract(images, kinds), opened.extract(images, kinds)
        assert set(found) == set(expected) == kinds
        for kind, rows in expected.items():
            assert found[kind].dtype == np.float32
            scale = np.abs(rows).max()
            np.testing.assert_allclose(found[kind], rows, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("network", list(NETWORKS))
def test_rows_are_those_of_the_network(name: str, network: str) -> None:
    net = NETWORKS[network]()
    stir(net, 3)
    backbone = Backbone(net, spec_of())
    opened = open_engine(name, backbone, draw_images(8))
    for count in (1, 5, 8, 33):
        assert_same_rows(backbone, opened, draw_images(count))


@pytest.mark.parametrize("name", ALL)
def test_threads_share_an_engine(name: str) -> None:
    backbone, images = make_backbone(), draw_images(24)
    opened = open_engine(name, backbone, images, workers=4)
    with opened.ready(), ThreadPoolExecutor(4) as pool:
        alone = opened.extract(images, FEATURES)["features"]
        parts = [images[start : start + 1 + start % 5] for start in range(20)] * 5
        together = list(pool.map(lambda part: opened.extract(part, FEATURES)["features"], parts))
    for start, rows in enumerate(together):
        begin = start % 20
        np.testing.assert_allclose(rows, alone[begin : begin + len(rows)], rtol=1e-4, atol=1e-5)


LEAVES = """
import faulthandler, gc, signal, sys
from threading import Thread
from tests.contract.test_engines import draw_images, make_backbone, open_engine

faulthandler.enable()  # signals have a stack of their own
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
for _ in range(3):
    last = [open_engine(sys.argv[1], make_backbone(), draw_images(8))]
    thread = Thread(target=lambda kept: (kept.clear(), gc.collect()), args=[last])
    thread.start()
    thread.join()
    signal.raise_signal(signal.SIGTERM)
print(len(heard))
"""


@pytest.mark.parametrize("name", ALL)
def test_signals_are_heard_after_a_thread_let_go_of_an_engine(name: str) -> None:
    if not is_installed(name):
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([sys.executable, "-c", LEAVES, name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr[-2000:]


@pytest.mark.parametrize("name", ALL)
def test_float_images_that_are_normalised_already_stay_as_they_are(name: str) -> None:
    backbone = make_backbone()
    images = np.random.default_rng(0).normal(size=(8, 3, PLAIN.size, PLAIN.size)).astype(np.float32)
    assert_same_rows(backbone, open_engine(name, backbone, images), images)


@pytest.mark.parametrize("name", QUICK)
def test_images_of_another_shape_go_to_the_network_itself(name: str) -> None:
    backbone = make_backbone()
    opened = open_engine(name, backbone, draw_images(8))
    wide = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 48), dtype=np.uint8)
    assert_same_rows(backbone, opened, wide)
