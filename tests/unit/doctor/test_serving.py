"""Every mismatch between training and use is found and named, on photographs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_images

from transferkit.core.errors import DataError
from transferkit.doctor import check_serving

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def normalise(pixels: torch.Tensor, mean=MEAN, std=STD) -> torch.Tensor:
    return (pixels - mean[:, None, None]) / std[:, None, None]


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    found = []
    for photo in load_sample_images().images:
        for _ in range(6):
            top, left = rng.integers(0, photo.shape[0] - 224), rng.integers(0, photo.shape[1] - 224)
            found.append(Image.fromarray(photo[top : top + 224, left : left + 224]))
    return found


def prepare(photos, *, size=96, crop=1.0, resample=Image.Resampling.BICUBIC) -> torch.Tensor:
    out = []
    for photo in photos:
        side = round(photo.width * crop)
        edge = (photo.width - side) // 2
        part = photo.crop((edge, edge, edge + side, edge + side)).resize((size, size), resample)
        out.append(torch.from_numpy(np.asarray(part, dtype=np.float32) / 255).permute(2, 0, 1))
    return torch.stack(out)


def causes(trained, served) -> list[str]:
    return [one.cause for one in check_serving(trained, served)]


def test_equal_images_are_no_mismatch(photos):
    images = normalise(prepare(photos))
    assert causes(images, images.clone()) == []
    noisy = images + 0.01 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert causes(images, noisy) == []


def test_reversed_channels(photos):
    images = prepare(photos)
    assert causes(normalise(images), normalise(images.flip(1)))[:1] == ["channel_order"]


def test_another_mean_and_scale(photos):
    images = prepare(photos)
    half = torch.full((3,), 0.5)
    (found,) = check_serving(normalise(images), normalise(images, half, half))
    assert found.cause == "mean_std"
    assert "times (0.458, 0.448, 0.45)" in found.evidence


def test_no_normalisation_at_all(photos):
    images = prepare(photos)
    assert causes(normalise(images), images) == ["mean_std"]


@pytest.mark.parametrize("to_bytes", [True, False])
def test_another_range(photos, to_bytes):
    images = prepare(photos)
    pair = (images, 255 * images) if to_bytes else (255 * images, images)
    assert causes(*pair) == ["range"]


def test_another_size(photos):
    found = causes(normalise(prepare(photos)), normalise(prepare(photos, size=128)))
    assert found[0] == "size"


@pytest.mark.parametrize("crop", [0.7, 0.8, 0.875])
def test_another_crop(photos, crop):
    (found,) = check_serving(normalise(prepare(photos)), normalise(prepare(photos, crop=crop)))
    assert found.cause == "crop"
    assert float(found.evidence.split("motif ")[1].split(" times")[0]) == pytest.approx(1 / crop, rel=0.06)


def test_another_crop_the_other_way(photos):
    assert causes(normalise(prepare(photos, crop=0.8)), normalise(prepare(photos))) == ["crop"]


@pytest.mark.parametrize("resample", [Image.Resampling.NEAREST, Image.Resampling.BOX])
def test_another_interpolation(photos, resample):
    found = causes(normalise(prepare(photos)), normalise(prepare(photos, resample=resample)))
    assert found in (["interpolation"], [])
    if resample is Image.Resampling.NEAREST:
        assert found == ["interpolation"]


def test_blur_is_told_from_sharpness(photos):
    images = normalise(prepare(photos))
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    (found,) = check_serving(images, blurred)
    assert found.cause == "interpolation"
    assert "blurred" in found.evidence


def test_letterboxing(photos):
    images = prepare(photos)
    padded = F.pad(F.interpolate(images, (72, 96), mode="bilinear", antialias=True), (0, 0, 12, 12))
    assert causes(normalise(images), normalise(padded)) == ["padding"]
    assert causes(normalise(padded), normalise(images)) == ["padding"]


def test_mirroring(photos):
    images = normalise(prepare(photos))
    assert causes(images, images.flip(3)) == ["flip"]


def test_two_faults_are_both_named(photos):
    images = prepare(photos)
    found = causes(normalise(images), 255 * images.flip(1))
    assert found[0] == "channel_order"
    assert len(found) == 2


def test_grey_images(photos):
    images = prepare(photos).mean(dim=1, keepdim=True)
    assert causes(images, images) == []
    assert causes(images, 255 * images) == ["range"]


def test_what_cannot_be_compared_is_refused(photos):
    images = prepare(photos)
    with pytest.raises(DataError, match="the same images twice"):
        list(check_serving(images, images[:3]))
    with pytest.raises(DataError, match="All pixels are equal"):
        list(check_serving(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)))
