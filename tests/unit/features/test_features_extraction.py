"""The frozen pass against the same layers applied by hand, and everything that can interrupt it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.unit.features.features_toys import (
    AT_REST,
    PLAIN,
    SIDE,
    Reader,
    draw_images,
    list_files,
    make_backbone,
    make_network,
    name_images,
    pool_by_hand,
)
from transferkit.core.errors import BackboneError, CacheError, DataError, OptionError
from transferkit.features import FeatureBank, choose_device, frozen_pass
from transferkit.features import shelf as shelf_module
from transferkit.features.engines import stage_extractor
from transferkit.features.engines import torch as torch_engine
from transferkit.features.extraction import open_shelves
from transferkit.features.forward import Forward
from transferkit.nn import Backbone
from transferkit.nn.model import normalise

STAGES = ["0", "1", "top"]
CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def run(
    bank: FeatureBank,
    read: Callable[[int], Any],
    ids: np.ndarray,
    *,
    backbone: Backbone | None = None,
    pooling: str = "avg+max",
    batch_size: int | None = 3,
    workers: int | None = 2,
    one_reader: bool = False,
) -> tuple[np.ndarray, int]:
    """Rows of all stages, and how many were computed."""
    done = frozen_pass(
        make_backbone() if backbone is None else backbone,
        read,
        ids,
        bank=bank,
        pooling=pooling,
        device="cpu",
        batch_size=batch_size,
        workers=workers,
        one_reader=one_reader,
        progress=False,
    )
    return done.table.load(STAGES), done.computed


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    before, at_once = set(threading.enumerate()), torch.get_num_threads()
    yield
    assert set(threading.enumerate()) <= before
    assert torch.get_num_threads() == at_once


# What comes out


@pytest.mark.parametrize("pooling", ["avg", "avg+max"])
def test_rows_equal_the_layers_applied_by_hand(bank: FeatureBank, pooling: str) -> None:
    images, network = draw_images(11), make_network()
    rows, computed = run(bank, Reader(images), name_images(*range(11)), pooling=pooling)
    assert computed == 11
    np.testing.assert_allclose(rows, pool_by_hand(network, images, pooling=pooling), **CLOSE)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100, None])
@pytest.mark.parametrize("workers", [1, 3, None])
def test_batches_and_workers_do_not_change_the_rows(
    bank: FeatureBank, batch_size: int | None, workers: int | None
) -> None:
    images = draw_images(9)
    rows, _ = run(bank, Reader(images), name_images(*range(9)), batch_size=batch_size, workers=workers)
    np.testing.assert_allclose(rows, pool_by_hand(make_network(), images, pooling="avg+max"), **CLOSE)


def test_rows_keep_the_order_asked_for_when_early_batches_finish_last(bank: FeatureBank) -> None:
    images = draw_images(8)

    def read(index: int) -> np.ndarray:
        time.sleep(0.02 if index < 3 else 0)
        return images[index]

    rows, _ = run(bank, read, name_images(*range(8))[::-1], batch_size=1, workers=4)
    np.testing.assert_allclose(rows, pool_by_hand(make_network(), images, pooling="avg+max"), **CLOSE)


def test_float_images_are_taken_as_normalised(bank: FeatureBank, tmp_path) -> None:
    images, ids = draw_images(4), name_images(*range(4))
    floats = normalise(torch.from_numpy(images), PLAIN).numpy()
    expected, _ = run(bank, Reader(images), ids)
    rows, _ = run(FeatureBank(tmp_path / "other"), Reader(floats), ids)
    np.testing.assert_allclose(rows, expected, **CLOSE)


def test_rows_can_be_trained_on(bank: FeatureBank) -> None:
    rows = torch.from_numpy(run(bank, Reader(draw_images(6)), name_images(*range(6)))[0])
    assert not rows.requires_grad
    assert not rows.is_inference()
    head = nn.Linear(rows.shape[1], 2)
    head(rows).sum().backward()
    assert torch.allclose(head.weight.grad, rows.sum(dim=0).expand(2, -1), rtol=1e-4)


class Remembering(nn.Module):
    """Keeps a tensor of its first call, as position embeddings and attention masks are kept."""

    kept: torch.Tensor | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            self.kept = torch.full_like(images[:1], 2.0)
        return images * self.kept


def test_what_a_network_keeps_of_the_pass_can_be_trained_through(bank: FeatureBank) -> None:
    network = make_network()
    network[1].append(Remembering())
    backbone = make_backbone(network)
    remembering = next(part for part in backbone.modules() if isinstance(part, Remembering))
    remembering.kept = None
    run(bank, Reader(draw_images(2)), name_images(0, 1), backbone=backbone)
    assert remembering.kept is not None
    backbone(torch.ones(1, 3, SIDE, SIDE)).sum().backward()
    assert backbone.trunk[0][0].weight.grad is not None


# Nothing twice


def test_only_missing_images_are_read(bank: FeatureBank) -> None:
    images = draw_images(10)
    first, second = Reader(images), Reader(images)
    run(bank, first, name_images(*range(6)))
    assert sorted(first.asked) == list(range(6))
    rows, computed = run(bank, second, name_images(*range(10)))
    assert computed == 4
    assert second.asked == dict.fromkeys(range(6, 10), 1)
    np.testing.assert_allclose(rows, pool_by_hand(make_network(), images, pooling="avg+max"), **CLOSE)


def test_a_full_bank_needs_no_images_and_of_the_network_two_to_know_it_by(
    bank: FeatureBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, backbone, seen = name_images(*range(5)), make_backbone(), []
    expected, _ = run(bank, Reader(draw_images(5)), ids, backbone=backbone)
    real = Backbone.pooled_stages
    monkeypatch.setattr(
        Backbone, "pooled_stages", lambda b, images, **how: seen.append(len(images)) or real(b, images, **how)
    )
    rows, computed = run(bank, lambda _: pytest.fail("read"), ids, backbone=backbone)
    assert computed == 0
    assert seen == [2]
    np.testing.assert_array_equal(rows, expected)


def test_equal_images_are_read_once(bank: FeatureBank) -> None:
    images = draw_images(3)
    reader = Reader(images[[0, 1, 0, 2, 0, 1]])
    rows, computed = run(bank, reader, name_images(7, 8, 7, 9, 7, 8), batch_size=2)
    assert computed == 3
    assert reader.asked == {0: 1, 1: 1, 3: 1}
    np.testing.assert_array_equal(rows[[2, 4, 5]], rows[[0, 0, 1]])
    np.testing.assert_allclose(rows[[0, 1, 3]], pool_by_hand(make_network(), images, pooling="avg+max"), **CLOSE)


def test_damaged_rows_are_computed_again(bank: FeatureBank) -> None:
    ids, images, backbone = name_images(*range(4)), draw_images(4), make_backbone()
    expected, _ = run(bank, Reader(images), ids, backbone=backbone)
    (rows_file,) = bank.folder.rglob("*.rows")
    os.truncate(rows_file, 100)
    rows, computed = run(bank, Reader(images), ids, backbone=backbone)
    assert computed == 4
    np.testing.assert_allclose(rows, expected, **CLOSE)


# The key


def _keys(bank: FeatureBank, *backbones: Backbone, pooling: str = "avg") -> list[str]:
    extractors = [stage_extractor(backbone, pooling=pooling, device=CPU) for backbone in backbones]
    return [open_shelves(bank, extractor.identity())["features"].folder.name for extractor in extractors]


def test_the_key_ignores_what_things_are_called(bank: FeatureBank) -> None:
    renamed = dataclasses.replace(PLAIN, origin="elsewhere")
    keys = _keys(bank, make_backbone(), make_backbone(name="another"), make_backbone(preprocessing=renamed))
    assert len(set(keys)) == 1
    assert [info.backbone for info in bank.list_shelves()] == ["toy"]


def test_the_shelf_names_its_backbone_for_people(bank: FeatureBank) -> None:
    _keys(bank, make_backbone(name="packaged/x"))
    (info,) = bank.list_shelves()
    assert (info.backbone, info.image_size, info.pooling) == ("packaged/x", SIDE, "avg")


@pytest.mark.parametrize(
    "change",
    [
        {"size": 40},
        {"mean": (0.5, 0.4, 0.31)},
        {"std": (0.2, 0.25, 0.31)},
        {"interpolation": "bicubic"},
        {"crop_pct": 0.9},
        {"crop_mode": "squash"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_key_changes_with_preprocessing(bank: FeatureBank, change: dict[str, Any]) -> None:
    other = make_backbone(preprocessing=dataclasses.replace(PLAIN, **change))
    first, second = _keys(bank, make_backbone(), other)
    assert first != second


def test_the_key_changes_with_weights_buffers_and_pooling(bank: FeatureBank, monkeypatch: pytest.MonkeyPatch) -> None:
    shifted, drifted = make_network(), make_network()
    with torch.no_grad():
        shifted[0][0].bias[0] += 1e-6
        drifted[2][1].running_var[0] += 1e-6
    keys = _keys(bank, make_backbone(), make_backbone(shifted), make_backbone(drifted))
    keys += _keys(bank, make_backbone(), pooling="avg+max")
    monkeypatch.setattr(torch_engine, "ENGINE_VERSION", -1)
    keys += _keys(bank, make_backbone())
    assert len(set(keys)) == 5


def test_the_key_ignores_the_classifier(bank: FeatureBank) -> None:
    other = make_network()
    nn.init.zeros_(other[-1].weight)
    first, second = _keys(bank, make_backbone(), make_backbone(other))
    assert first == second


def test_networks_of_equal_weights_but_other_layers_do_not_share_rows(bank: FeatureBank) -> None:
    images, ids = draw_images(3), name_images(*range(3))
    relu, tanh = make_backbone(), make_backbone(make_network(act=nn.Tanh))
    assert relu.spec.weights_id == tanh.spec.weights_id
    first, _ = run(bank, Reader(images), ids, backbone=relu)
    second, computed = run(bank, Reader(images), ids, backbone=tanh)
    assert computed == 3
    assert not np.allclose(first, second)


def test_a_backbone_that_was_trained_in_place_does_not_get_its_old_rows(bank: FeatureBank) -> None:
    images, ids, backbone = draw_images(3), name_images(*range(3)), make_backbone()
    run(bank, Reader(images), ids, backbone=backbone)
    with torch.no_grad():
        for parameter in backbone.trunk.parameters():
            parameter.mul_(1.1)
    rows, computed = run(bank, Reader(images), ids, backbone=backbone)
    assert computed == 3
    changed = make_network()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.1)
    np.testing.assert_allclose(rows, pool_by_hand(changed, images, pooling="avg+max"), **CLOSE)


def test_the_key_survives_a_pass(bank: FeatureBank) -> None:
    backbone = make_backbone()
    before = _keys(bank, backbone)
    run(bank, Reader(draw_images(2)), name_images(0, 1), backbone=backbone)
    assert _keys(bank, backbone) == before


# The backbone is left as it was


@pytest.mark.parametrize("fails", [False, True])
def test_the_backbone_is_left_as_it_was(bank: FeatureBank, fails: bool) -> None:
    backbone = make_backbone()
    backbone.train()
    backbone.trunk[1].eval()
    backbone.trunk[0][0].weight.requires_grad_(False)

    def state() -> tuple[dict[str, bool], dict[str, bool], dict[str, torch.Tensor], object]:
        return (
            {path: module.training for path, module in backbone.named_modules()},
            {path: parameter.requires_grad for path, parameter in backbone.named_parameters()},
            {path: tensor.clone() for path, tensor in backbone.state_dict().items()},
            [parameter.grad for parameter in backbone.parameters()],
        )

    def read(index: int) -> np.ndarray:
        if fails and index == 5:
            raise DataError("broken")
        return images[index]

    images, before = draw_images(8), state()
    if fails:
        with pytest.raises(DataError, match="broken"):
            run(bank, read, name_images(*range(8)), backbone=backbone)
    else:
        rows, _ = run(bank, read, name_images(*range(8)), backbone=backbone)
        np.testing.assert_allclose(rows, pool_by_hand(make_network(), images, pooling="avg+max"), **CLOSE)
    after = state()
    assert after[0] == before[0]
    assert after[1] == before[1]
    assert all(torch.equal(after[2][path], tensor) for path, tensor in before[2].items())
    assert after[3] == before[3]
    assert torch.is_grad_enabled()


# Errors


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_features_that_are_not_finite_are_an_error_that_names_the_stage(bank: FeatureBank, stage: int) -> None:
    backbone = make_backbone()
    with torch.no_grad():
        backbone.trunk[stage][1].bias[1] = float("inf")
    with pytest.raises(BackboneError, match=f"Stage '{STAGES[stage]}' of toy gives values that are not finite"):
        run(bank, Reader(draw_images(4)), name_images(*range(4)), backbone=backbone)
    assert list_files(bank.folder) == {".json"}


@pytest.mark.usefixtures("no_threads_left")
@pytest.mark.parametrize("one_reader", [False, True])
def test_no_thread_outlives_rows_that_are_refused_while_others_are_computed(
    bank: FeatureBank, one_reader: bool
) -> None:
    backbone, ids = make_backbone(), name_images(*range(40))
    with torch.no_grad():
        backbone.trunk[0][1].bias[1] = float("inf")
    with pytest.raises(BackboneError, match="not finite") as held:
        run(bank, Reader(draw_images(40)), ids, backbone=backbone, batch_size=2, one_reader=one_reader)
    assert held.tb  # it holds the frames of the pass
    assert [thread.name for thread in threading.enumerate() if "Pool" in thread.name] == []


def test_a_network_that_cannot_take_the_images_is_an_error_that_says_so(bank: FeatureBank) -> None:
    grey = draw_images(2)[:, :1]
    with pytest.raises(BackboneError, match=r"toy failed on images of shape \(1, 32, 32\): it .*on \(3, 32, 32\)"):
        run(bank, Reader(grey), name_images(0, 1), backbone=make_backbone())


class Custom(Exception):
    """Nothing that the engine could know."""


ERRORS = [
    Custom("read"),
    RuntimeError("decoder"),
    OSError("cannot identify image file"),
    FileNotFoundError(2, "gone"),
    DataError("no such image"),
    torch.OutOfMemoryError("of the reader's own"),
    KeyboardInterrupt(),
    SystemExit(3),
]


@pytest.mark.usefixtures("no_threads_left")
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_exception_in_read_surfaces_unchanged(bank: FeatureBank, error: BaseException, workers: int) -> None:
    images = draw_images(1)

    def read(index: int) -> np.ndarray:
        if index == 13:
            raise error
        return images[0]

    with pytest.raises(type(error)) as caught:
        run(bank, read, name_images(*range(40)), workers=workers, batch_size=2)
    assert caught.value is error
    assert list_files(bank.folder) == {".json"}


@pytest.mark.usefixtures("no_threads_left")
def test_what_was_committed_before_an_interruption_is_not_computed_again(
    bank: FeatureBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf_module, "SEGMENT_ROWS", 4)
    images, ids = draw_images(20), name_images(*range(20))

    def read(index: int) -> np.ndarray:
        if index == 11:
            raise KeyboardInterrupt
        return images[index]

    with pytest.raises(KeyboardInterrupt):
        run(bank, read, ids, batch_size=2)
    assert list_files(bank.folder) == AT_REST
    rows, computed = run(bank, Reader(images), ids)
    assert computed == 12  # 8 were in full segments before image 11's batch
    np.testing.assert_allclose(rows, pool_by_hand(make_network(), images, pooling="avg+max"), **CLOSE)


@pytest.mark.usefixtures("no_threads_left")
@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_stops_the_workers_and_leaves_nothing(bank: FeatureBank) -> None:
    images, asked = draw_images(1), []

    def read(index: int) -> np.ndarray:
        asked.append(index)
        if index == 9:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.005)
        return images[0]

    with pytest.raises(KeyboardInterrupt):
        run(bank, read, name_images(*range(500)), batch_size=2)
    assert len(asked) < 100
    assert list_files(bank.folder) == {".json"}


@pytest.mark.usefixtures("no_threads_left")
def test_a_disk_that_fills_up_in_the_middle_stops_the_pass(bank: FeatureBank, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CacheError, match="No space left on device. Free some space"):
        run(bank, Reader(draw_images(6)), name_images(*range(6)))
    assert list_files(bank.folder) == {".json"}


@pytest.mark.usefixtures("no_threads_left")
def test_room_is_made_before_any_image_is_read(bank: FeatureBank, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, ids = Reader(draw_images(4)), name_images(*range(4))
    with pytest.raises(CacheError, match="4 more images .*cache_limit"):
        run(FeatureBank(bank.folder, limit=100), reader, ids)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    with pytest.raises(CacheError, match="only 0 MB are free"):
        run(bank, reader, ids)
    assert not reader.asked


# Threads and memory


@pytest.mark.parametrize("fails", [False, True])
def test_the_thread_count_of_torch_is_restored(bank: FeatureBank, fails: bool) -> None:
    images, inside, before = draw_images(1), set(), torch.get_num_threads()

    def read(index: int) -> np.ndarray:
        inside.add(torch.get_num_threads())
        if fails and index == 0:
            raise Custom
        return images[0]

    torch.set_num_threads(3)
    try:
        if fails:
            with pytest.raises(Custom):
                run(bank, read, name_images(*range(20)), workers=8, batch_size=1)
        else:
            run(bank, read, name_images(*range(20)), workers=4, batch_size=1)
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:  # what later threads start from
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
    assert inside == {1}


def test_a_worker_that_starts_late_does_not_undo_the_thread_count(
    bank: FeatureBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = torch.set_num_threads

    def set_threads(threads: int) -> None:
        if threading.current_thread() is threading.main_thread():
            order.append("restored")
        elif order:
            time.sleep(0.3)
            order.append("late worker")
        else:
            order.append("worker")
        real(threads)

    def read(_: int) -> np.ndarray:
        time.sleep(0.1)  # the second worker is on its way
        raise Custom

    monkeypatch.setattr(torch, "set_num_threads", set_threads)
    with pytest.raises(Custom):
        run(bank, read, name_images(*range(8)), workers=2, batch_size=1)
    assert order == ["worker", "late worker", "restored"]


@pytest.mark.parametrize(("workers", "batch_size"), [(1, 1), (2, 3), (4, 2)])
def test_no_more_batches_are_in_flight_than_two_per_worker(
    bank: FeatureBank, monkeypatch: pytest.MonkeyPatch, workers: int, batch_size: int
) -> None:
    reader, peak, written = Reader(draw_images(80)), [0], [0]
    real = shelf_module.Writer.append

    def slow_append(writer: Any, ids: np.ndarray, rows: np.ndarray) -> None:
        time.sleep(0.003)
        peak[0] = max(peak[0], sum(reader.asked.values()) - written[0])
        written[0] += len(ids)
        real(writer, ids, rows)

    monkeypatch.setattr(shelf_module.Writer, "append", slow_append)
    run(bank, reader, name_images(*range(80)), workers=workers, batch_size=batch_size)
    assert batch_size < peak[0] <= 2 * workers * batch_size


def test_threads_do_not_mix_up_each_others_stages(bank: FeatureBank) -> None:
    """Images that differ by far, many small batches: a row read from another thread's pass would show."""
    images = np.stack([np.full((3, SIDE, SIDE), value, dtype=np.uint8) for value in range(0, 240, 3)])
    rows, _ = run(bank, Reader(images), name_images(*range(80)), batch_size=1, workers=8)
    np.testing.assert_allclose(rows, pool_by_hand(make_network(), images, pooling="avg+max"), **CLOSE)


# Memory of the device


FEATURES = frozenset({"features"})


def make_pass(backbone: Backbone) -> Forward:
    def compute(images: torch.Tensor, wanted: frozenset[str]) -> dict[str, dict[str, torch.Tensor]]:
        return {kind: backbone.pooled_stages(images, pooling="avg") for kind in wanted}

    return Forward(backbone, torch.device("cpu"), compute)


class Device:
    """A pass whose device holds `capacity` images."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capacity: int) -> None:
        self.sizes: list[int] = []
        self.backbone = make_backbone()
        self.frozen = make_pass(self.backbone)
        real = self.frozen.rows

        def rows(pixels: np.ndarray, wanted: frozenset[str]) -> Any:
            self.sizes.append(len(pixels))
            if len(pixels) > capacity:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return real(pixels, wanted)

        monkeypatch.setattr(self.frozen, "rows", rows)


@pytest.mark.parametrize(("count", "capacity"), [(1, 1), (7, 7), (7, 3), (8, 1), (13, 2)])
def test_batches_are_halved_until_they_fit(monkeypatch: pytest.MonkeyPatch, count: int, capacity: int) -> None:
    device, images = Device(monkeypatch, capacity), draw_images(count)
    rows = device.frozen.rows_within_memory(images, FEATURES)["features"]
    np.testing.assert_allclose(rows, pool_by_hand(make_network(), images, pooling="avg"), **CLOSE)
    assert sum(size for size in device.sizes if size <= capacity) == count


def test_a_single_image_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackboneError, match=r"out of memory on cpu with a single image.*Choose a smaller image_size"):
        Device(monkeypatch, 0).frozen.rows_within_memory(draw_images(4), FEATURES)


def test_what_did_not_fit_is_let_go_before_the_halves_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the halves meet a device that is still full of the failed batch's activations."""
    import gc
    import weakref

    frozen = make_pass(make_backbone())
    real, held = frozen.rows, []

    class Activations:
        pass

    def rows(pixels: np.ndarray, wanted: frozenset[str]) -> Any:
        if len(pixels) > 2:
            activations = Activations()
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert all(reference() is None for reference in held)
        return real(pixels, wanted)

    monkeypatch.setattr(frozen, "rows", rows)
    gc.disable()
    try:
        assert frozen.rows_within_memory(draw_images(4), FEATURES)["features"].shape == (4, 18)
    finally:
        gc.enable()
    assert len(held) == 1


# Devices


def test_the_cpu_is_always_there() -> None:
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cpu1", "tpu"])
def test_an_unknown_device_is_an_error_with_a_remedy(name: str) -> None:
    with pytest.raises(OptionError, match=f"The device {name!r} cannot be used here: .*device=cpu"):
        choose_device(name)


def test_a_device_that_is_not_here_is_an_error_before_anything_is_dropped_or_read(
    bank: FeatureBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = next(name for name in ("cuda:99", "mps") if name != "mps" or not torch.backends.mps.is_available())
    monkeypatch.setattr(FeatureBank, "make_room", lambda *_: pytest.fail("made room"))
    reader = Reader(draw_images(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about drivers
        with pytest.raises(OptionError, match=f"'{absent}' cannot be used here"):
            frozen_pass(make_backbone(), reader, name_images(0), bank=bank, device=absent, progress=False)
    assert not reader.asked


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_fastest_device(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto").type == expected


@pytest.mark.gpu
def test_the_gpu_gives_the_same_rows_and_the_backbone_comes_home(bank: FeatureBank) -> None:
    images, backbone = draw_images(20), make_backbone()
    table = frozen_pass(
        backbone, Reader(images), name_images(*range(20)), bank=bank, device="cuda", batch_size=6, progress=False
    ).table
    expected = pool_by_hand(make_network(), images, pooling="avg+max")
    np.testing.assert_allclose(table.load(STAGES), expected, rtol=1e-2, atol=1e-2)
    assert {parameter.device.type for parameter in backbone.parameters()} == {"cpu"}
