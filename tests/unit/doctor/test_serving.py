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


TURNED = {
    "upside down": (lambda x: x.flip(2), "flip", "top to bottom"),
    "half turn": (lambda x: x.rot90(2, (2, 3)), "rotation", "180 degrees"),
    "quarter turn": (lambda x: x.rot90(-1, (2, 3)), "rotation", "90 degrees clockwise"),
    "back turn": (lambda x: x.rot90(1, (2, 3)), "rotation", "90 degrees anticlockwise"),
    "transposed": (lambda x: x.transpose(2, 3), "transpose", "rows are columns"),
    "other diagonal": (lambda x: x.transpose(2, 3).flip(2, 3), "transpose", "other diagonal"),
}


@pytest.mark.parametrize("name", sorted(TURNED))
def test_turned_images(photos, name):
    turn, cause, words = TURNED[name]
    images = normalise(prepare(photos))
    (found,) = check_serving(images, turn(images))
    assert (found.cause, words in found.evidence) == (cause, True)


def test_a_few_turned_images_are_counted(photos):
    images = normalise(prepare(photos))
    served = images.clone()
    served[[2, 7]] = images[[2, 7]].rot90(1, (2, 3))
    (found,) = check_serving(images, served)
    assert found.cause == "rotation"
    assert "2 of 12" in found.evidence
    assert "EXIF" in found.remedy


@pytest.mark.parametrize(("down", "right", "words"), [(0, 1, "1 pixels right"), (-3, 5, "3 pixels up, 5 pixels right")])
def test_shifted_images(photos, down, right, words):
    wide = normalise(prepare(photos, size=112))
    served = wide[:, :, 8 - down : 104 - down, 8 - right : 104 - right]
    (found,) = check_serving(wide[:, :, 8:104, 8:104], served)
    assert found.cause == "shift"
    assert words in found.evidence


def test_greyscale(photos):
    colours = prepare(photos)
    grey = colours.mean(dim=1, keepdim=True).expand_as(colours)
    (found,) = check_serving(normalise(colours), normalise(grey))
    assert found.cause == "greyscale"
    assert "in use are grey" in found.evidence
    (found,) = check_serving(normalise(grey), normalise(colours))
    assert "in training are grey" in found.evidence
    assert causes(normalise(grey), normalise(grey)) == []


def test_other_images_and_another_order(photos):
    images = normalise(prepare(photos))
    (found,) = check_serving(images, images.roll(1, 0))
    assert found.cause == "other_images"
    assert "12 of 12" in found.evidence
    assert "at another place" in found.evidence
    swapped = images[[1, 0, *range(2, 12)]]
    (found,) = check_serving(images, swapped)
    assert "2 of 12" in found.evidence
    strange = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    blurred = F.interpolate(F.avg_pool2d(strange, 12), 96, mode="bilinear")
    (found,) = check_serving(images, blurred)
    assert found.cause == "other_images"
    assert "found nowhere" in found.evidence


@pytest.mark.parametrize("dims", [(1, 2, 3), (2, 3)])
def test_standardisation_per_image(photos, dims):
    images = prepare(photos)
    own = (images - images.mean(dims, keepdim=True)) / images.std(dims, keepdim=True)
    assert causes(normalise(images), own) == ["per_image_scale"]


@pytest.mark.parametrize("gamma", [1 / 2.2, 1.2, 2.2])
def test_gamma(photos, gamma):
    images = prepare(photos).clamp(0, 1)
    assert causes(normalise(images), normalise(images**gamma)) == ["gamma"]


@pytest.mark.parametrize("levels", [4, 16, 32])
def test_few_levels(photos, levels):
    images = prepare(photos).clamp(0, 1)
    rough = (images * (levels - 1)).round() / (levels - 1)
    (found,) = check_serving(normalise(images), normalise(rough))
    assert found.cause == "quantisation"
    assert f"use have {levels} levels" in found.evidence
    assert causes(normalise(images), normalise((images * 255).round() / 255)) == []


def test_swapped_sides(photos):
    tall = F.interpolate(prepare(photos), (96, 72), mode="bilinear", antialias=True)
    (found,) = check_serving(tall, tall.transpose(2, 3))
    assert found.cause == "swapped_sides"
    assert "rows are columns" in found.evidence
    squeezed = F.interpolate(tall, (72, 96), mode="bilinear", antialias=True)
    assert "squeezed" in check_serving(tall, squeezed)[0].evidence
    assert "wrong width" in check_serving(tall, tall.reshape(12, 3, 72, 96))[0].evidence


def test_axes_in_another_layout(photos):
    images = prepare(photos)
    (found,) = check_serving(normalise(images), normalise(images.permute(0, 2, 3, 1).reshape(images.shape)))
    assert found.cause == "layout"
    assert "stored as (H, W, C)" in found.evidence


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_channels_that_were_normalised_by_each_others_constants_are_one_fault(photos, order):
    images = prepare(photos)
    (found,) = check_serving(normalise(images), normalise(images[:, list(order)]))
    assert found.cause == "channel_order"


def test_bytes_where_normalised_values_were_meant(photos):
    images = prepare(photos)
    assert causes(normalise(images), 255 * images) == ["range"]
    assert causes(255 * images, normalise(images)) == ["range"]


def test_two_places_are_both_named(photos):
    served = prepare(photos, size=128).flip(2).flip(1)
    assert causes(normalise(prepare(photos)), normalise(served))[:3] == ["size", "flip", "channel_order"]


def test_one_image_and_tiny_images_are_compared(photos):
    images = normalise(prepare(photos))[:1]
    assert causes(images, images.flip(2)) == ["flip"]
    tiny = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert causes(tiny, tiny.clone()) == []


@pytest.fixture(scope="module")
def wide_photos() -> list[Image.Image]:
    """Of several shapes, so that letterboxes have their borders at different sides."""
    rng = np.random.default_rng(1)
    found = []
    for photo in load_sample_images().images:
        for height, width in ((200, 320), (320, 211), (256, 256), (301, 240)):
            top, left = rng.integers(0, photo.shape[0] - height), rng.integers(0, photo.shape[1] - width)
            found.append(Image.fromarray(photo[top : top + height, left : left + width]))
    return found


def letterbox(photo: Image.Image, colour: int, size: int = 96) -> Image.Image:
    scale = size / max(photo.size)
    small = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BILINEAR)
    out = Image.new("RGB", (size, size), (colour,) * 3)
    out.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    return out


def as_pixels(photos) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(one, dtype=np.float32) / 255).permute(2, 0, 1) for one in photos])


@pytest.mark.parametrize("colour", [0, 114, 255])
def test_letterboxes_of_several_shapes(wide_photos, colour):
    stretched = as_pixels([one.resize((96, 96)) for one in wide_photos])
    boxed = as_pixels([letterbox(one, colour) for one in wide_photos])
    (found,) = check_serving(normalise(stretched), normalise(boxed))
    assert found.cause == "padding"
    assert "6 of 8 images in use" in found.evidence
    assert causes(normalise(boxed), normalise(stretched)) == ["padding"]


def test_padding_of_another_colour(wide_photos):
    black, white = (as_pixels([letterbox(one, colour) for one in wide_photos]) for colour in (0, 255))
    (found,) = check_serving(normalise(black), normalise(white))
    assert found.cause == "background"
    assert "(-2.12, -2.04, -1.8) in training and (2.25, 2.43, 2.64) in use" in found.evidence


def test_transparent_areas_on_another_colour(photos):
    images = prepare(photos)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="ij")
    alpha = (40 * (0.8 - (rows**2 + columns**2).sqrt())).clamp(0, 1)  # a soft edge
    white, black = images * alpha + 1 - alpha, images * alpha
    assert causes(normalise(white), normalise(black)) == ["background"]
    assert causes(white, black) == ["background"]


def test_drawings_of_few_colours_are_no_backgrounds():
    rng = np.random.default_rng(2)
    ink = torch.from_numpy((rng.random((8, 1, 12, 12)) < 0.2).astype(np.float32)).repeat_interleave(8, 2)
    ink = ink.repeat_interleave(8, 3)
    red = torch.cat([torch.ones_like(ink), 1 - ink, 1 - ink], dim=1)
    assert causes(red, red.flip(1)) == ["channel_order"]
    assert causes(red, 1.4 * red) == ["mean_std"]
    assert causes(red, red.mean(dim=1, keepdim=True).expand_as(red))[:1] == ["greyscale"]


def test_noise_on_plain_borders_is_no_difference():
    rng = np.random.default_rng(3)
    digits = torch.zeros(4, 3, 32, 32)
    digits[:, :, 8:24, 8:24] = torch.from_numpy(rng.random((4, 1, 16, 16)).astype(np.float32))
    assert causes(digits, digits + 0.004 * torch.randn(digits.shape, generator=torch.Generator().manual_seed(0))) == []


def test_rounding_of_odd_margins_shifts_some_images(photos):
    wide = normalise(prepare(photos, size=112))
    served = wide[:, :, 8:104, 8:104].clone()
    served[::3] = wide[::3, :, 9:105, 8:104]
    (found,) = check_serving(wide[:, :, 8:104, 8:104], served)
    assert found.cause == "shift"
    assert "4 of 12" in found.evidence


def test_another_colour_space(photos):
    images = prepare(photos)
    other = as_pixels([Image.fromarray((255 * one.permute(1, 2, 0).numpy()).astype(np.uint8)) for one in images])
    ycbcr = as_pixels(
        [Image.fromarray((255 * one.permute(1, 2, 0).numpy()).astype(np.uint8)).convert("YCbCr") for one in images]
    )
    assert causes(normalise(other), normalise(ycbcr)) == ["colour_space"]
    pale = 0.5 * images + 0.5 * images.mean(dim=1, keepdim=True)
    assert causes(normalise(images), normalise(pale)) == ["colour_space"]


def test_grey_pictures_tell_whose_constants_they_got(photos):
    grey = prepare(photos).mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    assert causes(normalise(grey), normalise(grey).flip(1)) == ["channel_order"]
    assert causes(normalise(grey), normalise(grey, STD, MEAN)) == ["mean_std"]
    assert causes(normalise(grey), 1.2 * normalise(grey)) == ["mean_std"]


def test_faint_channels_bear_rounding(photos):
    images = prepare(photos)[:1]
    images[:, 2] = 0.97 + 0.001 * images[:, 2]
    noise = torch.randint(-1, 2, images.shape, generator=torch.Generator().manual_seed(0)) / 255
    assert causes(normalise(images), normalise((images + noise).clamp(0, 1))) == []
