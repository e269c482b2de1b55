"""Which engine runs a pass, what is remembered of it, and what happens when one cannot be trusted."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.features.features_toys import Reader, draw_images, make_backbone, make_network, name_images
from transferkit.core.errors import MissingDependencyError, OptionError
from transferkit.features import FeatureBank, frozen_pass
from transferkit.features.engines import ENGINES, Engine, EngineExtractor, EngineJob, Engines, opening, stage_extractor
from transferkit.features.engines.opening import Speed, _by_speed, check_engine
from transferkit.features.engines.speeds import SpeedRecord, machine_key
from transferkit.features.extractor import FEATURES
from transferkit.nn import Backbone

CPU = torch.device("cpu")
ROWS = 9
TORCH = ENGINES["torch"]


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch):
    """A function that registers an engine until the test is over."""

    def add(name: str, engine: Engine) -> None:
        monkeypatch.setattr(ENGINES, "_entries", {**ENGINES._entries, name: engine})

    return add


def ask(engines: Engines, backbone: Backbone, *, images: int = ROWS, kinds=(FEATURES,)) -> Any:
    reference = stage_extractor(backbone, pooling="avg", moments=True, device=CPU)
    return engines.extractor(reference, draw_images(ROWS), images=images, kinds=kinds, pooling="avg", workers=2)


def honest(job: EngineJob):
    return TORCH.open(job)


def lying(job: EngineJob):
    run = honest(job)
    return lambda pixels: {kind: rows * 1.01 for kind, rows in run(pixels).items()}


def broken(job: EngineJob):
    raise RuntimeError("no such operator: Wobble\nand a second line")


# Which one


def test_a_little_work_is_done_by_the_network_as_it_is() -> None:
    engines = Engines()
    assert not isinstance(ask(engines, make_backbone()), EngineExtractor)
    assert engines.use is None


def test_more_work_is_done_by_torch_and_much_by_the_fastest(monkeypatch, added, tmp_path: Path) -> None:
    monkeypatch.setattr(opening, "FEWEST_PIXELS", 0)
    monkeypatch.setattr(opening, "FOLD_WORK", 1.0)
    monkeypatch.setattr(opening, "TRIAL_WORK", 1e15)
    engines = Engines(folder=tmp_path)
    ask(engines, make_backbone())
    assert engines.use.name == "torch"
    monkeypatch.setattr(opening, "TRIAL_WORK", 0.0)
    monkeypatch.setattr(ENGINES, "_entries", {"slow": Engine(honest, automatic=True)})
    added("quick", Engine(honest, automatic=True))
    added("never", Engine(honest))
    rates = iter([100.0] * 3 + [100.0, 200.0, 300.0])
    monkeypatch.setattr(opening, "image_rate", lambda *_, **__: next(rates))
    ask(engines, make_backbone(), images=10**6)
    assert engines.use.name == "quick"
    (speeds,) = json.loads((tmp_path / "engines.json").read_text()).values()
    assert set(speeds) == {"slow", "quick"}
    assert speeds["quick"]["images_per_second"] == 300.0
    assert speeds["quick"]["batch_size"] == 2 * speeds["slow"]["batch_size"]


def test_speeds_are_measured_once_per_machine_and_network(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(opening, "FEWEST_PIXELS", 0)
    monkeypatch.setattr(opening, "FOLD_WORK", 1.0)
    monkeypatch.setattr(opening, "TRIAL_WORK", 0.0)
    monkeypatch.setattr(ENGINES, "_entries", {"torch": TORCH})
    measured = []
    monkeypatch.setattr(opening, "image_rate", lambda *_, **__: measured.append(1) or 100.0)
    for _ in range(2):
        opened = ask(Engines(folder=tmp_path), make_backbone(), images=10**6)
    assert len(measured) == 3
    assert opened.batch_size == stage_extractor(make_backbone(), pooling="avg", device=CPU).batch_size
    ask(Engines(folder=tmp_path), make_backbone(make_network(act=torch.nn.SiLU)), images=10**6)
    assert len(measured) == 6


def test_work_adds_up_over_passes(monkeypatch) -> None:
    monkeypatch.setattr(opening, "FEWEST_PIXELS", 2.5 * ROWS * 3 * 32 * 32)
    monkeypatch.setattr(opening, "FOLD_WORK", 1.0)
    engines = Engines()
    assert [isinstance(ask(engines, make_backbone()), EngineExtractor) for _ in range(3)] == [False] * 3
    backbone = make_backbone()
    found = [isinstance(ask(engines, backbone), EngineExtractor) for _ in range(3)]
    assert found == [False, False, True]


def test_speeds_that_differ_by_noise_do_not_change_the_choice() -> None:
    def speeds(**rates: float) -> dict[str, Speed]:
        return {name: Speed(rate, 8, 0.0) for name, rate in rates.items()}

    assert _by_speed(speeds(torch=100, openvino=110, onnxruntime=105), 1000) == ["onnxruntime", "openvino", "torch"]
    assert _by_speed(speeds(torch=200, openvino=110, onnxruntime=105), 1000)[0] == "torch"
    opening_costs = {"torch": Speed(100, 8, 0.1), "onnxruntime": Speed(200, 8, 60.0)}
    assert _by_speed(opening_costs, 1000)[0] == "torch"
    assert _by_speed(opening_costs, 100_000)[0] == "onnxruntime"
    assert _by_speed({}, 10) == []


@pytest.mark.parametrize("text", ["", "[]", "{", '{"key": 5}', '{"key": {"torch": {"speed": 1}}}'])
def test_a_record_that_cannot_be_read_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "engines.json").write_text(text)
    record = SpeedRecord(tmp_path)
    assert record.load("key") is None
    record.store("other", {"torch": Speed(1.0, 2, 3.0)})
    assert record.load("other") == {"torch": Speed(1.0, 2, 3.0)}


def test_a_record_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    record = SpeedRecord(tmp_path / "file")
    record.store("key", {"torch": Speed(1.0, 2, 3.0)})
    assert record.load("key") is None


def test_a_machine_key_knows_network_shape_and_workers() -> None:
    reference = stage_extractor(make_backbone(), pooling="avg", device=CPU)
    other = stage_extractor(make_backbone(make_network(act=torch.nn.SiLU)), pooling="avg", device=CPU)
    keys = [
        machine_key(reference, (3, 32, 32), "avg", 2),
        machine_key(reference, (3, 48, 48), "avg", 2),
        machine_key(reference, (3, 32, 32), "avg", 4),
        machine_key(reference, (3, 32, 32), "avg+max", 2),
        machine_key(other, (3, 32, 32), "avg", 2),
    ]
    assert len(set(keys)) == len(keys)
    assert machine_key(reference, (3, 32, 32), "avg", 2) == keys[0]


# Which can be asked for


def test_unknown_engines_are_refused() -> None:
    with pytest.raises(OptionError, match="Unknown engine 'onnx'. Closest known: onnxruntime"):
        check_engine("onnx")
    for name in ("auto", "eager", "torch", "compile"):
        check_engine(name)


def test_an_engine_that_is_not_installed_says_how_to_get_it(added) -> None:
    added("absent", Engine(honest, packages=("surely_not_here",), extra="absent"))
    with pytest.raises(MissingDependencyError, match=r"pip install 'transferkit\[absent\]'.*engine=torch"):
        Engines("absent")


# What is not trusted


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (lying, "its features differ by up to 1.0e-02 of the largest"),
        (broken, "it raised RuntimeError: no such operator"),
    ],
)
def test_an_engine_that_fails_its_check_gives_way_to_torch_and_says_so(added, caplog, engine, reason: str) -> None:
    added("odd", Engine(engine))
    engines = Engines("odd")
    with caplog.at_level(logging.WARNING, logger="transferkit"):
        opened = ask(engines, make_backbone())
    assert isinstance(opened, EngineExtractor)
    assert engines.use.name == "torch"
    assert engines.use.reasons[0].startswith("The engine odd was not used: ")
    assert reason in engines.use.reasons[0]
    assert "The engine odd is not used for toy" in caplog.text
    caplog.clear()
    ask(engines, make_backbone())
    assert caplog.text == ""  # said once


def test_without_any_engine_that_can_be_trusted_the_network_runs_as_it_is(added, monkeypatch, caplog) -> None:
    monkeypatch.setattr(ENGINES, "_entries", {"torch": Engine(lying)})
    engines = Engines("torch")
    assert not isinstance(ask(engines, make_backbone()), EngineExtractor)
    assert engines.use is None
    assert "engine torch is not used" in caplog.text


def test_another_class_for_one_image_is_a_mismatch(added) -> None:
    """Features that differ by half of what is allowed, and a classifier that decides just there."""

    def halfway(job: EngineJob):
        run = honest(job)
        return lambda pixels: {kind: rows * (1 - 5e-5) for kind, rows in run(pixels).items()}

    backbone = make_backbone()
    reference = stage_extractor(backbone, pooling="avg", device=CPU)
    top = reference.extract(draw_images(1), FEATURES)["features"][0, -8:]
    largest = int(np.abs(top).argmax())
    with torch.no_grad():
        backbone.head.weight.zero_()
        backbone.head.bias.zero_()
        backbone.head.weight[0, largest] = 1e6
        backbone.head.bias[0] = -1e6 * float(top[largest]) * (1 - 2.5e-5)
    added("halfway", Engine(halfway))
    engines = Engines("halfway")
    ask(engines, backbone)
    assert engines.use.name == "torch"
    assert "89% of the classes are the same" in engines.use.reasons[0] or "88%" in engines.use.reasons[0]


# In a pass


@pytest.mark.parametrize("engine", ["torch", "eager"])
@pytest.mark.parametrize("one_reader", [False, True])
def test_a_pass_by_an_engine_reads_each_image_once_and_fills_the_same_shelf(
    bank: FeatureBank, engine: str, one_reader: bool
) -> None:
    images, ids = draw_images(30), name_images(*range(30))
    plain = frozen_pass(make_backbone(), Reader(images), ids, bank=bank, sample=np.arange(7), device="cpu")
    other = FeatureBank(bank.folder / "other")
    read = Reader(images)
    done = frozen_pass(
        make_backbone(),
        read,
        ids,
        bank=other,
        sample=np.arange(7),
        device="cpu",
        engines=Engines(engine),
        one_reader=one_reader,
    )
    assert read.asked == dict.fromkeys(range(30), 1)
    assert done.computed == 30
    np.testing.assert_allclose(done.table.load(["0", "top"]), plain.table.load(["0", "top"]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(done.moments.load(["0"]), plain.moments.load(["0"]), rtol=1e-4, atol=1e-5)
    assert set(done.worker_seconds) == {"reading", "computing"}
    again = frozen_pass(make_backbone(), read, ids, bank=other, device="cpu", engines=Engines("eager"))
    assert again.computed == 0  # the same shelf, whatever computed it
    assert again.worker_seconds == {}
