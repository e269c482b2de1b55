"""Cached activations against the same layers applied by hand, and training from them against training without."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from tests.unit.features.features_toys import (
    Reader,
    draw_images,
    list_files,
    make_backbone,
    make_network,
    name_images,
    pool_by_hand,
)
from tests.unit.nn.toy_networks import Isotropic
from transferkit.core.errors import BackboneError, CacheError, OptionError
from transferkit.features import ActivationTable, activation_bytes, activations, cache_activations
from transferkit.features.bank import FeatureBank
from transferkit.nn import Backbone, TransferModel
from transferkit.nn.model import normalise
from transferkit.nn.tail import Tail, cut

COUNT = 11
ROWS = np.array([7, 0, 10, 3, 3])
BEFORE = ["0", "1"]


def run(bank: FeatureBank, tail: Tail, read: Any, ids: np.ndarray, **options: Any) -> ActivationTable:
    given = {"stages": BEFORE, "device": "cpu", "batch_size": 3, "workers": 2, "progress": False, **options}
    return cache_activations(tail, read, ids, bank=bank, **given)


def first_two_blocks(pixels: np.ndarray, network: nn.Sequential | None = None) -> torch.Tensor:
    network = make_network() if network is None else network
    with torch.no_grad():
        return network[:2].eval()(normalise(torch.from_numpy(pixels), make_backbone().spec.preprocessing))


@pytest.fixture
def tail() -> Tail:
    return cut(make_backbone(), "1")


@pytest.fixture
def reader() -> Reader:
    return Reader(draw_images(COUNT))


IDS = name_images(*range(COUNT))


# What comes out


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_a_batch_equals_the_layers_applied_by_hand(bank: FeatureBank, tail: Tail, reader: Reader, dtype: str) -> None:
    table = run(bank, tail, reader, IDS, dtype=dtype)
    assert (table.stage, table.shape, table.dtype, table.computed, len(table)) == ("1", (6, 8, 8), "float32", 11, 11)
    activation, pooled = table.batch(ROWS)
    torch.testing.assert_close(activation, first_two_blocks(reader.images)[ROWS], rtol=1e-4, atol=1e-5)
    by_hand = pool_by_hand(make_network(), reader.images, pooling="avg+max")[ROWS]
    np.testing.assert_allclose(torch.cat([pooled["0"], pooled["1"]], dim=1), by_hand[:, :20], rtol=1e-4, atol=1e-5)
    assert activation.dtype == pooled["0"].dtype == torch.float32
    assert activation.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_two_bytes_round_activations_and_leave_pooled_vectors_exact(
    bank: FeatureBank, tail: Tail, reader: Reader, dtype: str, bits: int
) -> None:
    exact, pooled = run(bank, tail, reader, IDS).batch(ROWS)
    rounded, same = run(bank, tail, reader, IDS, dtype=dtype).batch(ROWS)
    torch.testing.assert_close(rounded, exact, rtol=2.0**-bits, atol=1e-6)
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(same, pooled, rtol=0, atol=0)


def test_tokens_come_back_in_their_own_order(bank: FeatureBank, reader: Reader) -> None:
    backbone = make_backbone(Isotropic(3))
    tail = cut(backbone, "blocks.0")
    activation, pooled = run(bank, tail, reader, IDS, stages=["blocks.0"], pooling="avg").batch(ROWS)
    with torch.no_grad():
        images = normalise(torch.from_numpy(reader.images[ROWS]), backbone.spec.preprocessing)
        expected = backbone.forward_stages(images)
        torch.testing.assert_close(tail(activation), backbone(images))
    assert activation.shape == (5, 17, 8)
    torch.testing.assert_close(activation[:, 1:].transpose(1, 2), expected["blocks.0"])
    torch.testing.assert_close(pooled["blocks.0"], expected["blocks.0"].mean(2))


def test_without_stages_there_are_activations_only(bank: FeatureBank, tail: Tail, reader: Reader) -> None:
    _, pooled = run(bank, tail, reader, IDS, stages=()).batch(ROWS)
    assert pooled == {}
    assert len(bank.list_shelves()) == 1


def test_what_a_batch_holds_is_the_callers_own(bank: FeatureBank, tail: Tail, reader: Reader) -> None:
    table = run(bank, tail, reader, IDS)
    before = table.batch(ROWS)[0].clone()
    table.batch(ROWS)[0].zero_()
    assert torch.equal(table.batch(ROWS)[0], before)


def test_views_are_images_of_their_own(bank: FeatureBank, tail: Tail, reader: Reader) -> None:
    """Position COUNT + i is image i mirrored, under a name of its own."""

    def read(index: int) -> np.ndarray:
        image = reader(index % COUNT)
        return image[..., ::-1].copy() if index >= COUNT else image

    table = run(bank, tail, read, name_images(*range(2 * COUNT)))
    mirrored, _ = table.batch(ROWS + COUNT)
    expected = first_two_blocks(np.ascontiguousarray(reader.images[..., ::-1]))[ROWS]
    torch.testing.assert_close(mirrored, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mirrored, table.batch(ROWS)[0])


# What is computed


def test_nothing_is_computed_twice(bank: FeatureBank, tail: Tail, reader: Reader) -> None:
    assert run(bank, tail, reader, IDS[[0, 1, 1, 0, 4]]).computed == 3
    assert run(bank, tail, reader, IDS).computed == COUNT - 3
    again = run(bank, tail, reader, IDS[::-1])
    assert again.computed == 0
    assert max(reader.asked.values()) == 1
    expected = first_two_blocks(reader.images).flip(0)[ROWS]
    torch.testing.assert_close(again.batch(ROWS)[0], expected, rtol=1e-4, atol=1e-5)


def test_stages_asked_for_later_are_computed_alone(bank: FeatureBank, tail: Tail, reader: Reader) -> None:
    run(bank, tail, reader, IDS, stages=())
    later = run(bank, tail, reader, IDS, stages=["0"])
    assert later.computed == COUNT
    assert list(later.batch(ROWS)[1]) == ["0"]
    assert sorted(info.images for info in bank.list_shelves()) == [COUNT, COUNT]


def test_training_what_is_behind_the_cut_keeps_the_activations(bank: FeatureBank, tail: Tail, reader: Reader) -> None:
    run(bank, tail, reader, IDS)
    with torch.no_grad():
        tail.backbone.trunk[2][0].weight.add_(1)
        tail.backbone.trunk[2][1].running_mean.add_(1)
    assert run(bank, tail, reader, IDS).computed == 0
    with torch.no_grad():
        tail.backbone.trunk[1][1].running_mean.add_(1)
    assert run(bank, tail, reader, IDS).computed == COUNT


def test_another_cut_activation_function_or_dtype_has_rows_of_its_own(bank: FeatureBank, reader: Reader) -> None:
    tails = [cut(make_backbone(), "1"), cut(make_backbone(), "0"), cut(make_backbone(make_network(act=nn.ELU)), "1")]
    for tail in tails:
        assert run(bank, tail, reader, IDS, stages=()).computed == COUNT
    assert run(bank, tails[0], reader, IDS, stages=(), dtype="bfloat16").computed == COUNT
    assert len(bank.list_shelves()) == 4


def test_only_what_is_before_the_cut_runs(bank: FeatureBank, tail: Tail, reader: Reader) -> None:
    tail.backbone.trunk[2].register_forward_pre_hook(lambda *_: pytest.fail("ran behind the cut"))
    run(bank, tail, reader, IDS)


def test_the_backbone_is_left_as_it_was(bank: FeatureBank, tail: Tail, reader: Reader) -> None:
    backbone = tail.backbone.train()
    backbone.trunk[0].eval()
    modes, weights = [m.training for m in backbone.modules()], copy.deepcopy(backbone.state_dict())
    run(bank, tail, reader, IDS)
    assert [m.training for m in backbone.modules()] == modes
    torch.testing.assert_close(backbone.state_dict(), weights, rtol=0, atol=0)


# Size


@pytest.mark.parametrize("dtype", ["auto", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stages", [(), BEFORE])
def test_the_size_is_known_beforehand(
    bank: FeatureBank, tail: Tail, reader: Reader, dtype: str, stages: list[str]
) -> None:
    run(bank, tail, reader, IDS, dtype=dtype, stages=stages)
    on_disk = sum(path.stat().st_size for path in bank.folder.rglob("*") if path.suffix in (".rows", ".ids"))
    assert activation_bytes(tail, COUNT, dtype=dtype, stages=stages) == on_disk


def test_auto_keeps_float32_as_long_as_that_is_small(monkeypatch: pytest.MonkeyPatch, tail: Tail) -> None:
    exact = 4 * 6 * 8 * 8
    largest = 2**30 // exact
    assert activations.choose_dtype(tail, largest) == "float32"
    assert activations.choose_dtype(tail, largest + 1) == "float16"
    assert activations.choose_dtype(tail, 10**9, "float32") == "float32"
    assert activation_bytes(tail, largest + 1) < activation_bytes(tail, largest)


def test_what_float16_cannot_hold_is_kept_in_bfloat16(
    bank: FeatureBank, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make_network()
    with torch.no_grad():
        network[1][1].weight.mul_(1e6)
    tail = cut(make_backbone(network), "1")
    with pytest.raises(OptionError, match="stage '1' do not fit: float16 holds values up to 65504, .*dtype=bfloat16"):
        run(bank, tail, reader, IDS, dtype="float16")
    monkeypatch.setattr(activations, "EXACT_LIMIT", 0)
    table = run(bank, tail, reader, IDS)
    assert table.dtype == "bfloat16"
    torch.testing.assert_close(
        table.batch(ROWS)[0], first_two_blocks(reader.images, network)[ROWS], rtol=2.0**-7, atol=1
    )


def test_more_than_is_allowed_is_refused_before_any_image_is_read(
    bank: FeatureBank, tail: Tail, reader: Reader
) -> None:
    needed = activation_bytes(tail, COUNT, stages=BEFORE)
    with pytest.raises(CacheError, match=r"at stage '1' of 11 images take 0 MB, but 0 MB are allowed\. Freeze up to"):
        run(bank, tail, reader, IDS, limit=needed - 1)
    assert not reader.asked
    assert run(bank, tail, reader, IDS, limit=needed).computed == COUNT
    assert run(bank, tail, reader, IDS, limit=0).computed == 0  # nothing is lacking any more


class Begun(Exception):
    """The pass would run now."""


@pytest.mark.parametrize(("free", "limit"), [(4, 1000), (1000, 2)])
@pytest.mark.parametrize(("spare", "expected"), [(-8, CacheError), (8, Begun)])
def test_a_quarter_of_the_disk_and_half_of_the_bank_are_allowed(
    bank: FeatureBank,
    tail: Tail,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    limit: int,
    spare: int,
    expected: type[Exception],
) -> None:
    """In units of what is needed, but for a few bytes."""

    def begin(*_: object, **__: object) -> int:
        raise Begun("MB are allowed: a quarter of the free disk, and half of cache_limit. ")

    needed = activation_bytes(tail, 100_000, dtype="float32")
    usage = shutil.disk_usage("/")._replace(free=free * needed + spare)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(activations, "fill_shelves", begin)
    bank.limit = limit * needed + spare
    with pytest.raises(expected, match="MB are allowed: a quarter of the free disk, and half of cache_limit. "):
        run(bank, tail, None, name_images(*range(100_000)), stages=(), dtype="float32")


# Errors


def test_a_stage_behind_the_cut_has_no_pooled_vectors_here(bank: FeatureBank, tail: Tail, reader: Reader) -> None:
    with pytest.raises(OptionError, match="Stage 'top' is not before the cut. Stages before it: 0, 1."):
        run(bank, tail, reader, IDS, stages=["top"])
    with pytest.raises(OptionError, match="Unknown dtype 'float8'"):
        run(bank, tail, reader, IDS, dtype="float8")


def test_activations_that_are_not_finite_are_an_error(bank: FeatureBank, reader: Reader) -> None:
    backbone = make_backbone()
    tail = cut(backbone, "1")
    with torch.no_grad():
        backbone.trunk[1][1].bias[1] = float("inf")
    for dtype in ("float32", "float16", "bfloat16"):
        with pytest.raises(BackboneError, match="Stage '1' of toy gives values that are not finite"):
            run(bank, tail, reader, IDS, dtype=dtype)
    assert list_files(bank.folder) == {".json"}


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_an_overflow_in_read_is_not_taken_for_one_of_ours(bank: FeatureBank, tail: Tail, dtype: str) -> None:
    def read(_: int) -> np.ndarray:
        raise OverflowError("of the reader's own")

    with pytest.raises(OverflowError, match="of the reader's own"):
        run(bank, tail, read, IDS, dtype=dtype)


# Training from it


def train(model: TransferModel, logits: Any, targets: torch.Tensor, *, behind: list[str], steps: int) -> list[float]:
    """Losses of SGD over all images, with only the modules `behind` and the head in training."""
    model.requires_grad_(False).eval()
    for part in (*(model.backbone.trunk.get_submodule(path) for path in behind), model.classifier):
        part.requires_grad_(True).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        rows = np.random.default_rng(step).permutation(len(targets))[:16]
        loss = nn.functional.cross_entropy(logits(rows), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def make_model(seed: int = 0) -> TransferModel:
    torch.manual_seed(seed)
    network = timm.create_model("test_efficientnet", pretrained=False, drop_path_rate=0.2)
    model = TransferModel(
        Backbone(network, make_backbone().spec),
        stages=["blocks.1", "blocks.4", "top"],
        pooling="avg+max",
        classes="abc",
    )
    return model.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-4), ("float16", 0.02)])
def test_the_loss_curve_is_that_of_training_without_a_cache(bank: FeatureBank, dtype: str, close: float) -> None:
    reader, ids, targets = Reader(draw_images(32)), name_images(*range(32)), torch.arange(32) % 3
    plain, cached = make_model(), make_model()
    tail = cut(cached.backbone, "blocks.3")
    behind = list(tail.modules_behind)
    pixels = torch.from_numpy(reader.images)
    table = run(bank, tail, reader, ids, stages=["blocks.1"], dtype=dtype)

    def from_pixels(rows: np.ndarray) -> torch.Tensor:
        return plain(plain.normalise(pixels[rows]).contiguous(memory_format=torch.channels_last))

    def from_cache(rows: np.ndarray) -> torch.Tensor:
        activation, pooled = table.batch(rows)
        pooled |= tail.pooled_stages(activation, pooling="avg+max", names=["blocks.4", "top"])
        return cached.classifier(torch.cat([pooled[name] for name in cached.stages], dim=1))

    expected = train(plain, from_pixels, targets, behind=behind, steps=20)
    found = train(cached, from_cache, targets, behind=behind, steps=20)
    assert expected[-1] < 0.7 * expected[0]
    assert found == pytest.approx(expected, abs=close)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(cached.state_dict()[name], value, rtol=close, atol=close)
