"""Many threads, one result: each gets the bits that it would get alone, whatever the others do to the model."""

from __future__ import annotations

import copy
import itertools
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.unit.nn.toy_networks import Pyramid
from tests.unit.result.result_toys import (
    CLASSES,
    Gate,
    Remembering,
    Stopping,
    draw_pictures,
    make_model,
    make_result,
)
from transferkit.nn import Blend
from transferkit.nn.norm import swap_norm
from transferkit.records import View
from transferkit.result import Result
from transferkit.result import result as result_module

SIZES = (1, 3, 33, 2, 7, 40, 1, 5)
"""Images per call: fewer and more than run at once."""


def fine_tuned() -> Result:
    """After steps on all parameters; a hook has kept an activation that gradients flowed through."""
    model = make_model()
    model.backbone.trunk.middle.register_forward_hook(lambda module, _, output: setattr(module, "seen", output))
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        model(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))).square().sum().backward()
        optimiser.step()
    assert not model.backbone.trunk.middle.seen.is_leaf
    return make_result(model.eval())


def with_views() -> Result:
    model = make_model()
    views = (View(name="pad", crop_mode="border"), View(name="crop+mirror", crop_mode="center", mirrored=True))
    model.backbone = model.backbone.with_preprocessing(replace(model.preprocessing, views=views))
    return make_result(model)


MODELS: dict[str, Callable[[], Result]] = {
    "plain": make_result,
    "groups": lambda: make_result(make_model(swap_norm(Pyramid(), "group"))),
    "fine-tuned": fine_tuned,
    "blend": lambda: make_result(Blend([make_model(), make_model(seed=1)])),
    "views": with_views,
}


def predict_all(result: Result, batches: list[np.ndarray], *, threads: int) -> list[np.ndarray]:
    """The probabilities of each batch; the threads begin together."""
    together = threading.Barrier(threads)

    def work(first: int) -> list[tuple[int, np.ndarray]]:
        together.wait(20)
        mine = range(first, len(batches), threads)
        return [(at, result.predict(batches[at], device="cpu").probabilities) for at in mine]

    with ThreadPoolExecutor(threads) as pool:
        found = dict(itertools.chain.from_iterable(pool.map(work, range(threads))))
    return [found[at] for at in range(len(batches))]


@pytest.mark.parametrize("name", MODELS)
def test_threads_get_the_bits_of_one_call_after_the_other(name: str) -> None:
    batches = [draw_pictures(count, seed=seed) for seed, count in enumerate(SIZES * 4)]
    result = MODELS[name]()
    expected = [make_result(result.model).predict(batch, device="cpu").probabilities for batch in batches]
    assert len({row.tobytes() for rows in expected for row in rows}) == sum(map(len, batches))  # all of them differ
    for found, wanted in zip(predict_all(result, batches, threads=8), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@contextmanager
def stopped_halfway(result: Result, gate: Gate) -> Iterator[list[np.ndarray]]:
    """Inside the block a thread is in the middle of a prediction; what it found is in the list afterwards."""
    found: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: found.append(result.predict(draw_pictures(3), device="cpu").probabilities))
    gate.stopping = thread
    thread.start()
    try:
        assert gate.stopped.wait(20)
        yield found
    finally:
        gate.open.set()
        thread.join(20)


def stop(make: Callable[[Gate], nn.Module]) -> tuple[Result, Gate, np.ndarray]:
    """A result, its gate, and what it predicts when nobody disturbs it."""
    gate = Gate()
    result = make_result(make_model(make(gate)))
    return result, gate, make_result(result.model).predict(draw_pictures(3), device="cpu").probabilities


def test_a_prediction_on_another_device_moves_nothing_under_one_that_runs() -> None:
    result, gate, expected = stop(Stopping)
    with stopped_halfway(result, gate) as found:
        with pytest.raises(NotImplementedError, match="meta"):  # which has no values that could be read
            result.predict(draw_pictures(2), device="meta")
        assert {tensor.device.type for tensor in result.model.state_dict().values()} == {"cpu"}
    np.testing.assert_array_equal(found[0], expected)


def test_training_mode_does_not_reach_a_prediction_that_runs_nor_the_next_one() -> None:
    result, gate, expected = stop(Stopping)
    with stopped_halfway(result, gate) as found:
        result.model.train()
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_array_equal(result.predict(draw_pictures(3), device="cpu").probabilities, expected)
    assert all(module.training for module in result.model.modules())


def test_what_a_network_keeps_on_itself_stays_within_a_thread() -> None:
    result, gate, expected = stop(Remembering)
    with stopped_halfway(result, gate) as found:
        other = result.predict(draw_pictures(3, seed=9), device="cpu").probabilities
    np.testing.assert_array_equal(found[0], expected)
    assert not np.array_equal(other, expected)


def test_saving_meanwhile_writes_the_weights_and_disturbs_nobody(tmp_path) -> None:
    result, gate, expected = stop(Stopping)
    with stopped_halfway(result, gate) as found:
        before = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
        result.save(tmp_path / "run")
    np.testing.assert_array_equal(found[0], expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in result.model.state_dict().items())


def test_export_waits_for_predictions_that_run_and_later_ones_wait_for_it(tmp_path, monkeypatch) -> None:
    """While it traces, torch runs networks in another way, in all threads."""
    result, gate, _ = stop(Stopping)
    events: list[str] = []
    exporting, let_go = threading.Event(), threading.Event()
    real = result.predict

    def export(model: nn.Module, path: object) -> object:
        from transferkit.nn import tracing

        exporting.set()
        with tracing():
            events.append("traced")
            assert let_go.wait(20)
        return path

    monkeypatch.setitem(result_module.EXPORTS, "onnx", export)
    with ThreadPoolExecutor(2) as pool:
        with stopped_halfway(result, gate) as found:
            exported = pool.submit(result.export, tmp_path / "model.onnx")
            assert exporting.wait(20)
            later = pool.submit(real, draw_pictures(1), device="cpu")
            assert not events  # it waits for the prediction
        assert len(found) == 1
        assert not later.done()  # and this one for it
        let_go.set()
        exported.result(20)
        assert len(later.result(20)) == 1


def test_exporting_and_evaluating_change_no_bit_of_predictions_beside_them(tmp_path) -> None:
    pytest.importorskip("onnxscript")
    for number, name in enumerate(CLASSES * 2):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_pictures(1, seed=number)[0]).save(folder / f"{number}.png")
    result, done = make_result(), threading.Event()
    batch = draw_pictures(5)
    expected = result.predict(batch, device="cpu").probabilities

    def predict_until_done() -> list[np.ndarray]:
        found = []
        while not done.is_set():
            found.append(result.predict(batch, device="cpu").probabilities)
        return found

    with ThreadPoolExecutor(2) as pool:
        predicting = [pool.submit(predict_until_done) for _ in range(2)]
        try:
            result.export(tmp_path / "model.onnx")
            metrics = result.evaluate(tmp_path / "images", split="val", device="cpu", progress=False)
        finally:
            done.set()
        rows = [row for future in predicting for row in future.result(60)]
    assert len(rows) > 2
    for row in rows:
        np.testing.assert_array_equal(row, expected)
    assert metrics.images == 6


def test_two_splits_that_are_evaluated_at_once_are_both_recorded(tmp_path, monkeypatch) -> None:
    """Each reads the record, makes its own, and puts it in place: neither may lose the other's."""
    result, together = make_result(), threading.Barrier(2, timeout=20)
    result.record = replace(result.record, metrics={})
    real = result_module.evaluate

    def at_once(*given, **options):
        found = real(*given, **options)
        together.wait()
        return found

    monkeypatch.setattr(result_module, "evaluate", at_once)

    def slow(*given, **new):
        time.sleep(0.1)
        return replace(*given, **new)

    monkeypatch.setattr(result_module, "replace", slow)
    pictures = [(Image.fromarray(picture), at % 3) for at, picture in enumerate(draw_pictures(6))]
    for at, (picture, label) in enumerate(pictures):
        (tmp_path / CLASSES[label]).mkdir(exist_ok=True)
        picture.save(tmp_path / CLASSES[label] / f"{at}.png")
    with ThreadPoolExecutor(2) as pool:
        list(
            pool.map(
                lambda split: result.evaluate(tmp_path, split=split, device="cpu", progress=False), ("test", "val")
            )
        )
    assert set(result.metrics) == {"test", "val"}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda result: pickle.loads(pickle.dumps(result))])
def test_a_result_that_has_predicted_can_be_copied_and_pickled(copied) -> None:
    result = make_result()
    expected = result.predict(draw_pictures(3), device="cpu").probabilities
    other = copied(result)
    with torch.no_grad():
        result.model.linear.bias.add_(torch.tensor([1.0, 0.0, 0.0]))
    np.testing.assert_array_equal(other.predict(draw_pictures(3), device="cpu").probabilities, expected)
    assert other.classes == CLASSES
