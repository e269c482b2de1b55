"""The moments of a sample come out of the same pass as the features, and are kept apart from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.features.features_toys import Reader, draw_images, make_backbone, make_network, name_images
from transferkit.features import FeatureBank, FrozenPass, frozen_pass
from transferkit.nn.model import normalise

COUNT = 12


def run(bank: FeatureBank, reader: Reader, ids: np.ndarray, sample: np.ndarray | None, **options: int) -> FrozenPass:
    return frozen_pass(
        make_backbone(),
        reader,
        ids,
        bank=bank,
        sample=sample,
        device="cpu",
        progress=False,
        batch_size=options.get("batch_size", 3),
        workers=2,
    )


def moments_by_hooks(pixels: np.ndarray) -> np.ndarray:
    """(N, 36): what goes into the three norms of the toy, all images in one batch of the bare network."""
    network, seen = make_network().eval(), []
    for block in list(network)[:3]:
        block[1].register_forward_pre_hook(
            lambda _m, inputs: seen.append(torch.cat([inputs[0].mean((2, 3)), inputs[0].square().mean((2, 3))], dim=1))
        )
    with torch.no_grad():
        network(normalise(torch.from_numpy(pixels), make_backbone().spec.preprocessing))
    return torch.cat(seen, dim=1).numpy()


@pytest.fixture
def bank(tmp_path: Path) -> FeatureBank:
    return FeatureBank(tmp_path / "bank")


def test_moments_are_those_of_plain_hooks_in_the_order_of_the_sample(bank):
    images, sample = draw_images(COUNT), np.array([7, 0, 11, 3])
    done = run(bank, Reader(images), name_images(*range(COUNT)), sample)
    found = done.moments.load(["0", "1", "top"])
    np.testing.assert_allclose(found, moments_by_hooks(images)[sample], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5, 50])
def test_features_are_the_same_with_and_without(tmp_path, batch_size):
    images, ids = draw_images(COUNT), name_images(*range(COUNT))
    one = run(FeatureBank(tmp_path / "a"), Reader(images), ids, None, batch_size=batch_size)
    two = run(FeatureBank(tmp_path / "b"), Reader(images), ids, np.arange(4), batch_size=batch_size)
    assert one.moments is None
    np.testing.assert_allclose(one.table.load(["0", "1", "top"]), two.table.load(["0", "1", "top"]), atol=1e-6)


def test_each_image_runs_once_and_a_second_pass_runs_nothing(bank):
    reader, ids, sample = Reader(draw_images(COUNT)), name_images(*range(COUNT)), np.array([2, 5])
    assert run(bank, reader, ids, sample).computed == COUNT
    assert set(reader.asked.values()) == {1}
    again = run(bank, reader, ids, sample)
    assert again.computed == 0
    assert sum(reader.asked.values()) == COUNT
    assert len(again.moments) == 2


def test_a_bank_that_has_features_only_computes_the_sample(bank):
    reader, ids = Reader(draw_images(COUNT)), name_images(*range(COUNT))
    run(bank, reader, ids, None)
    assert run(bank, reader, ids, np.array([2, 5, 6])).computed == 3
    assert [index for index, times in reader.asked.items() if times == 2] == [2, 5, 6]
    (rows,) = (shelf for shelf in bank.list_shelves() if shelf.pooling == "avg+max")
    assert rows.images == COUNT


def test_images_added_later_leave_the_sample_as_it_was(bank):
    reader, ids = Reader(draw_images(COUNT)), name_images(*range(COUNT))
    run(bank, reader, ids[:6], np.arange(3))
    assert run(bank, reader, ids, np.arange(4)).computed == 6 + 1


def test_equal_images_run_once_wherever_the_sample_points(bank):
    reader, ids = Reader(draw_images(COUNT)), name_images(*range(COUNT - 1), 0)
    done = run(bank, reader, ids, np.array([COUNT - 1]))
    assert done.computed == COUNT - 1
    assert set(reader.asked.values()) == {1}
    assert len(done.moments) == 1


def test_moments_lie_on_a_shelf_of_their_own_that_says_so(bank):
    run(bank, Reader(draw_images(COUNT)), name_images(*range(COUNT)), np.arange(5))
    assert {shelf.pooling: shelf.images for shelf in bank.list_shelves()} == {"avg+max": COUNT, "moments": 5}
    run(bank, Reader(draw_images(COUNT)), name_images(*range(COUNT)), None)
    assert len(bank.list_shelves()) == 2
