"""What an image costs: the same question whatever the bank holds, asked where and how a pass runs."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from tests.unit.features.features_toys import PLAIN, make_backbone, make_network
from transferkit.api import analyze
from transferkit.data import Data
from transferkit.features import image_seconds, pace
from transferkit.features.engines import stage_extractor
from transferkit.features.engines import torch as torch_engine
from transferkit.features.workers import default_workers
from transferkit.nn import Backbone
from transferkit.records import Preprocessing

SLOW = 0.004


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, int, bool]]:
    """(images, thread, torch's threads, channels last) of each forward pass, which takes `SLOW` seconds an image."""
    seen: list[tuple[int, str, int, bool]] = []
    real = Backbone.pooled_stages

    def slow(backbone: Backbone, images: torch.Tensor, **how: object) -> dict[str, torch.Tensor]:
        last = images.is_contiguous(memory_format=torch.channels_last)
        seen.append((len(images), threading.current_thread().name, torch.get_num_threads(), last))
        time.sleep(SLOW * len(images))
        return real(backbone, images, **how)

    monkeypatch.setattr(Backbone, "pooled_stages", slow)
    monkeypatch.setattr(torch_engine, "CPU_PIXELS", 5 * 32 * 32)
    return seen


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_it_is_the_time_of_a_batch_shared_among_workers(calls: list[tuple[int, str, int, bool]], workers: int) -> None:
    seconds = image_seconds(make_backbone(), device="cpu", workers=workers)
    assert SLOW / workers <= seconds < 3 * SLOW / workers
    assert {images for images, *_ in calls} == {5}
    assert len({thread for _, thread, *_ in calls}) == workers
    assert {(threads, last) for *_, threads, last in calls} == {(1, True)}
    assert len(calls) % workers == 0
    assert len(calls) >= 2 * workers  # one round to warm up


def test_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[float] = []
    real = Backbone.pooled_stages

    def colder_at_first(backbone: Backbone, images: torch.Tensor, **how: object) -> dict[str, torch.Tensor]:
        rounds.append(0.5 if not rounds else 0.0)
        time.sleep(rounds[-1])
        return real(backbone, images, **how)

    monkeypatch.setattr(Backbone, "pooled_stages", colder_at_first)
    assert (
        image_seconds(make_backbone(), device="cpu", workers=1)
        * stage_extractor(make_backbone(), pooling="avg", device=torch.device("cpu")).batch_size
        < 0.4
    )


def test_a_hiccup_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 10.0, 10.25, 20.0, 20.01, 30.0, 30.2])
    monkeypatch.setattr(pace.time, "perf_counter", lambda: next(clock))
    batch = stage_extractor(make_backbone(), pooling="avg", device=torch.device("cpu")).batch_size
    assert image_seconds(make_backbone(), device="cpu", workers=1) == pytest.approx(0.01 / batch)


def test_the_backbone_is_left_as_it_was() -> None:
    backbone = make_backbone(make_network())
    backbone.train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    threads = torch.get_num_threads()
    image_seconds(backbone, device="cpu")
    assert backbone.training
    assert torch.get_num_threads() == threads
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert np.isfinite(image_seconds(backbone, device="cpu", pooling="avg"))


@pytest.mark.usefixtures("calls")
def test_cold_or_warm_the_evidence_names_the_same_cost(stripes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is slow here, and only a cold run reads."""
    real = Data.pixels

    def slow(data: Data, index: int, preprocessing: Preprocessing) -> np.ndarray:
        time.sleep(20 * SLOW)
        return real(data, index, preprocessing)

    monkeypatch.setattr(Data, "pixels", slow)
    found = [
        analyze(make_network(), stripes, preprocessing=PLAIN, similarity=0.5, device="cpu", progress=False)
        for _ in range(2)
    ]
    workers = default_workers()
    assert [evidence.images_computed for evidence in found] == [24, 0]  # no test image is needed
    for evidence in found:
        assert SLOW / workers <= evidence.image_seconds < 4 * SLOW / workers
        assert "pace" in evidence.seconds
