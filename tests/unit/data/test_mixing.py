"""Pictures of one grey level a class: how much of each class is in a mixture can be read off its pixels."""

from __future__ import annotations

import pytest
import torch

from transferkit.core.errors import DataError, OptionError
from transferkit.data import Mixing

LABELS = torch.tensor([0, 1, 1, 0, 1, 0])
KINDS = [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}]


def pictures(labels: torch.Tensor = LABELS, *, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Black is class 0, white is class 1."""
    return (255 * labels).to(dtype).view(-1, 1, 1, 1).expand(-1, 3, 16, 16).contiguous()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_targets_are_the_shares_that_pixels_show(kind, dtype):
    mix = Mixing(classes=2, **kind)
    for draw in range(30):
        mixed, targets = mix(pictures(dtype=dtype), LABELS, draw)
        assert mixed.dtype == dtype
        assert torch.allclose(targets.sum(dim=1), torch.ones(6))
        white = mixed.float().mean(dim=(1, 2, 3)) / 255
        assert torch.allclose(targets[:, 1], white, atol=0.51 / 255)


def test_each_picture_goes_with_its_neighbour():
    mixed, targets = Mixing(classes=2, mixup=1.0)(pictures(), LABELS, 4)
    alike = LABELS.roll(1) == LABELS
    assert torch.equal(mixed[alike], pictures()[alike])
    assert ((targets > 0).sum(dim=1) == 1)[alike].all()
    assert ((targets > 0).sum(dim=1) == 2)[~alike].all()


def test_with_both_each_batch_is_mixed_in_one_way_or_the_other():
    mix = Mixing(classes=2, mixup=1.0, cutmix=1.0)
    grey = [bool(((mixed > 0) & (mixed < 255)).any()) for mixed, _ in (mix(pictures(), LABELS, d) for d in range(200))]
    assert 60 < sum(grey) < 140


def test_the_draw_alone_tells_the_mixture_and_the_generator_stays():
    mix = Mixing(classes=2, mixup=1.0, cutmix=1.0)
    before = torch.get_rng_state()
    first = mix(pictures(), LABELS, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    again = mix(pictures(), LABELS, 5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], mix(pictures(), LABELS, 6)[1])


def test_several_labels_an_image_are_mixed_as_shares():
    shares = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    _, targets = Mixing(classes=2, mixup=1.0)(pictures(LABELS[:2]), shares, 5)
    assert torch.allclose(targets[:, 1], torch.ones(2))
    assert torch.allclose(targets[:, 0].sum(), torch.tensor(1.0))


def test_switched_off_it_changes_nothing():
    off = Mixing(classes=2)
    assert not off
    batch, labels = pictures(), LABELS
    mixed, targets = off(batch, labels, 3)
    assert mixed is batch
    assert targets is labels


def test_numbers_as_targets_are_an_error():
    with pytest.raises(DataError, match="need classes as targets"):
        Mixing(classes=2, mixup=1.0)(pictures(), LABELS.float(), 3)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_strength_below_zero_is_an_error(name, value):
    with pytest.raises(OptionError, match=f"Mixing.{name} must be >= 0, got"):
        Mixing(classes=2, **{name: value})
