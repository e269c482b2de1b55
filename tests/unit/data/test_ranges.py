"""One range of values for a data set, and what is said of what files lose."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageCms, TiffImagePlugin
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision import datasets as torchvision_datasets
from torchvision import transforms

from tests.unit.data.deep_files import FLOAT, SIGNED, UNSIGNED, png16, saved, tiff
from transferkit.core.errors import DataError
from transferkit.data import Data, decode, open_data
from transferkit.data.image_errors import ImageError
from transferkit.records import Finding, Preprocessing

WANTS = Preprocessing(size=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="nearest")


def pattern(seed: int) -> npt.NDArray[np.float64]:
    """(16, 16) in [0, 1], both ends reached."""
    values = np.random.default_rng(seed).random((16, 16))
    return (values - values.min()) / (values.max() - values.min())


def write_folder(root: Path, encode: Any, suffix: str, *, train: int = 6, test: int = 2) -> Path:
    """ROOT/{train,test}/{a,b}/*: the file of image number i is `encode(i)`."""
    number = 0
    for split, count in (("train", train), ("test", test)):
        for name in "ab":
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for _ in range(count):
                (root / split / name / f"{number}{suffix}").write_bytes(encode(number))
                number += 1
    return root


def finding(data: Data, kind: str) -> Finding:
    (found,) = [found for found in data.summary.findings if found.kind == kind]
    return found


def kinds(data: Data) -> set[str]:
    return {found.kind for found in data.summary.findings if found.severity == "warning"}


def levels(data: Data, index: int = 0) -> npt.NDArray[Any]:
    return data.pixels(index, WANTS)[0]


ENCODERS: dict[str, tuple[Any, str, tuple[float, float]]] = {
    "u16-png": (lambda i: saved((1000 + 100 * pattern(i)).round().astype(np.uint16)), ".png", (1000, 1100)),
    "u16-be-tiff": (lambda i: tiff((1000 + 100 * pattern(i)).round().astype(np.uint16), UNSIGNED, order=">"), ".tif",
                    (1000, 1100)),
    "i16-tiff": (lambda i: tiff((3000 * pattern(i) - 1000).round().astype(np.int16), SIGNED), ".tif", (-1000, 2000)),
    "i8-tiff": (lambda i: tiff((60 * pattern(i) - 30).round().astype(np.int8), SIGNED), ".tif", (-30, 30)),
    "u32-tiff": (lambda i: tiff((3e9 + 1e9 * pattern(i)).astype(np.uint32), UNSIGNED), ".tif", (3e9, 4e9)),
    "f32-tiff": (lambda i: tiff((pattern(i) * (5 if i % 2 else 10) - 2).astype(np.float32), FLOAT), ".tif", (-2, 8)),
    "rgb16-png": (lambda i: png16((1000 + 100 * np.stack([pattern(i)] * 3, 2)).round().astype(np.uint16)), ".png",
                  (1000, 1100)),
    "rgb16-tiff": (lambda i: tiff((1000 + 100 * np.stack([pattern(i)] * 3, 2)).round().astype(np.uint16), UNSIGNED,
                                  order=">", colour=True), ".tif", (1000, 1100)),
    "rgb16-deflated-tiff": (lambda i: tiff((1000 + 100 * np.stack([pattern(i)] * 3, 2)).round().astype(np.uint16),
                                           UNSIGNED, colour=True, deflated=True), ".tif", (1000, 1100)),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_deep_files_share_one_range_and_keep_their_levels(name: str, tmp_path: Path) -> None:
    encode, suffix, expected = ENCODERS[name]
    data = open_data(write_folder(tmp_path, encode, suffix), progress=False)
    assert data.value_range == pytest.approx(expected)
    black, white = expected
    stored = 1000 + 100 * pattern(0) if black == 1000 else None
    shown = levels(data)
    assert len(np.unique(shown)) > 50
    if stored is not None:
        assert np.array_equal(shown, np.rint((stored.round() - black) * 255 / (white - black)))
    assert data.adapt_preprocessing(WANTS).value_range == data.value_range
    assert np.array_equal(np.asarray(data.image(0))[..., 0], shown)


def test_neighbours_stay_comparable(tmp_path: Path) -> None:
    peaks = [1, 1, 100, 255, 1, 300] * 4
    encode = lambda i: tiff((peaks[i] * pattern(i)).round().astype(np.int32), SIGNED)  # noqa: E731
    data = open_data(write_folder(tmp_path, encode, ".tif"), progress=False)
    assert data.value_range == (0, 300)
    for index in range(6):
        assert levels(data, index).max() == round(peaks[index] * 255 / 300)


def test_only_training_images_are_measured_and_others_are_told_of(tmp_path: Path) -> None:
    encode = lambda i: saved((1000 + (100 if i < 12 else 900) * pattern(i)).round().astype(np.uint16))  # noqa: E731
    data = open_data(write_folder(tmp_path, encode, ".png"), progress=False)
    assert data.value_range == (1000, 1100)
    clipped = finding(data, "clipped")
    assert clipped.message.startswith("Clipped: 4 images (4 in test) with values beyond black (1,000) or white (1,100)")
    assert len(clipped.items) == 4


@pytest.mark.parametrize("how", ["value", "tag", "inf", "nan"])
def test_missing_values_do_not_count(how: str, tmp_path: Path) -> None:
    bad = {"value": -9999.0, "tag": 0.5, "inf": np.inf, "nan": np.nan}[how]
    info = TiffImagePlugin.ImageFileDirectory_v2()
    if how == "tag":
        info[42113] = "0.5"

    def encode(number: int) -> bytes:
        values = (300 + 100 * pattern(number)).astype(np.float32)
        values[:4, :4] = bad
        return saved(values, "TIFF", tiffinfo=info)

    data = open_data(write_folder(tmp_path, encode, ".tif"), progress=False)
    assert data.value_range is not None
    assert 300 <= data.value_range[0] < data.value_range[1] <= 400
    assert len(np.unique(levels(data))) > 50
    assert levels(data)[0, 0] == (255 if how == "inf" else 0)
    found = finding(data, "missing_values")
    assert found.severity == ("info" if how == "tag" else "warning")
    said = {"value": "-9,999 in 16 images (far from all others)", "tag": "0.5 in 16 images (by its files)"}
    assert said.get(how, "NaN or infinity in 16 images") in found.message


def test_little_of_the_declared_range_is_a_warning_and_all_of_it_is_not(tmp_path: Path) -> None:
    narrow = open_data(write_folder(tmp_path / "narrow", ENCODERS["u16-png"][0], ".png"), progress=False)
    said = finding(narrow, "little_range_used").message
    assert "black is 1,000 and white is 1,100, measured on the training images" in said
    assert "0.15 % of the range of the files (0 to 65,535)" in said
    whole = lambda i: saved((65535 * pattern(i)).round().astype(np.uint16))  # noqa: E731
    wide = open_data(write_folder(tmp_path / "wide", whole, ".png"), progress=False)
    assert wide.value_range == (0, 65535)
    assert finding(wide, "value_range").severity == "info"
    assert not kinds(wide) & {"little_range_used", "clipped", "missing_values", "mixed_depth"}


def test_a_given_range_is_obeyed(tmp_path: Path) -> None:
    root = write_folder(tmp_path, ENCODERS["u16-png"][0], ".png")
    data = open_data(root, value_range=(0, 4095), progress=False)
    assert data.value_range == (0, 4095)
    assert "white is 4,095, as given" in finding(data, "value_range").message
    assert levels(data).max() == round(1100 * 255 / 4095)


def test_several_depths_in_one_data_set_are_told_of(tmp_path: Path) -> None:
    encode = lambda i: saved((255 * pattern(i)).astype(np.uint8 if i % 2 else np.uint16))  # noqa: E731
    said = finding(open_data(write_folder(tmp_path, encode, ".png"), progress=False), "mixed_depth").message
    assert "8 images of 16-bit unsigned values" in said or "8 of 16-bit unsigned values" in said
    assert "8 of 8-bit values" in said


def test_deep_images_in_test_alone_are_told_of(tmp_path: Path) -> None:
    encode = lambda i: saved((255 * pattern(i)).astype(np.uint16 if i >= 12 else np.uint8))  # noqa: E731
    data = open_data(write_folder(tmp_path, encode, ".png"), progress=False)
    assert data.value_range is None
    assert "in val or test, none in train" in finding(data, "value_range").message


def test_near_duplicates_are_found_among_narrow_values(tmp_path: Path) -> None:
    smooth = [np.asarray(Image.fromarray(pattern(i)[:4, :4].astype(np.float32)).resize((32, 32))) for i in range(16)]
    smooth[12] = smooth[0] + 0.01
    encode = lambda i: saved((1000 + 100 * smooth[i]).round().astype(np.uint16))  # noqa: E731
    data = open_data(write_folder(tmp_path, encode, ".png"), progress=False)
    assert "1 held-back image" in finding(data, "near_duplicate").message


# ---- Datasets of arrays ----------------------------------------------------------------------------------------------


class Arrays(Dataset[Any]):
    def __init__(self, convert: Any, count: int = 20) -> None:
        self.images = [convert(pattern(number)) for number in range(count)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images[index], index % 2


@pytest.mark.parametrize(
    ("convert", "expected"),
    [
        (lambda v: (1000 + 100 * v).round().astype(np.uint16), (1000, 1100)),
        (lambda v: (1000 + 100 * v).round().astype(np.uint16)[..., None], (1000, 1100)),
        (lambda v: np.stack([(1000 + 100 * v).round()] * 3, 2).astype(np.int32), (1000, 1100)),
        (lambda v: (255 * v).round().astype(np.int64), (0, 255)),
        (lambda v: (40 * v - 20).astype(np.float64), (-20, 20)),
        (lambda v: torch.from_numpy((1000 + 100 * v).round().astype(np.int16))[None], (1000, 1100)),
        (lambda v: Image.fromarray((1000 + 100 * v).round().astype(np.uint16)), (1000, 1100)),
        (lambda v: Image.fromarray((40 * v - 20).astype(np.float32)), (-20, 20)),
    ],
    ids=["u16", "u16-hw1", "i32-rgb", "i64", "f64", "i16-tensor", "pil-I16", "pil-F"],
)
def test_deep_arrays_are_measured_as_files_are(convert: Any, expected: tuple[float, float]) -> None:
    data = open_data(Arrays(convert), progress=False)
    assert data.value_range == pytest.approx(expected)
    values = 255 * pattern(0)
    assert np.abs(levels(data) - values).max() <= 1.8
    assert len(set(data.content_ids)) == 20


@pytest.mark.parametrize(
    "convert",
    [
        lambda v: np.stack([v] * 3, 2),
        lambda v: torch.from_numpy(np.stack([v] * 3)).float(),
        lambda v: (255 * v).round().astype(np.uint8),
    ],
    ids=["f64-rgb", "f32-tensor", "u8"],
)
def test_unit_colours_and_bytes_need_no_range(convert: Any) -> None:
    data = open_data(Arrays(convert), progress=False)
    assert data.value_range is None
    assert np.abs(levels(data) - 255 * pattern(0)).max() <= 0.51


def test_masks_of_true_and_false_are_black_and_white() -> None:
    assert set(np.unique(levels(open_data(Arrays(lambda v: v > 0.5), progress=False)))) == {0, 255}


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (
            lambda v: torch.from_numpy(v)[None].float() * 255,
            r"in \[0, 255\].*divide by 255, or pass them as uint8, or pass",
        ),
        (lambda v: torch.from_numpy(v)[None].float() * 2 - 1, r"in \[-1, 1\].*pass \(x \+ 1\) / 2"),
        (lambda v: torch.from_numpy(np.stack([v] * 3)).float() * 9 - 4, r"before Normalize, or pass preprocessed=True"),
        (lambda v: np.stack([v] * 4, 2).astype(np.uint16), "expected 1 or 3 channels of uint16 values"),
    ],
    ids=["bytes-as-float", "minus-one-to-one", "normalised", "four-deep-channels"],
)
def test_floats_that_are_no_pictures_are_refused_with_what_to_do(convert: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(Arrays(convert), progress=False)


# ---- What files lose on the way --------------------------------------------------------------------------------------


def noisy(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def several(number: int, format_name: str) -> bytes:
    buffer = io.BytesIO()
    noisy(number).save(buffer, format=format_name, save_all=True, append_images=[noisy(90), noisy(91)])
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("format_name", "suffix", "severity"),
    [("TIFF", ".tif", "warning"), ("GIF", ".gif", "warning"), ("WEBP", ".webp", "warning"), ("PNG", ".png", "warning"),
     ("MPO", ".jpg", "info")],
)  # fmt: skip
def test_later_frames_are_told_of(format_name: str, suffix: str, severity: str, tmp_path: Path) -> None:
    data = open_data(write_folder(tmp_path, lambda i: several(i, format_name), suffix, train=3, test=1), progress=False)
    found = finding(data, "several_frames")
    assert found.severity == severity
    assert "8 files" in found.message
    assert "up to 3 in one. The first is used" in found.message


def test_smaller_versions_of_a_page_are_no_frames(tmp_path: Path) -> None:
    def encode(number: int) -> bytes:
        small = TiffImagePlugin.ImageFileDirectory_v2()
        small[254] = 1
        overview = noisy(number).resize((8, 8))
        overview.encoderinfo = {"tiffinfo": small}
        buffer = io.BytesIO()
        noisy(number).save(buffer, "TIFF", save_all=True, append_images=[overview])
        return buffer.getvalue()

    assert Image.open(io.BytesIO(encode(0))).n_frames == 2  # type: ignore[attr-defined]
    data = open_data(write_folder(tmp_path, encode, ".tif", train=3, test=1), progress=False)
    assert "several_frames" not in kinds(data)


def test_bands_that_are_not_read_are_told_of(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 5), dtype=np.uint8)
    encode = lambda i: tiff(values[i], UNSIGNED, extra=2, colour=True)  # noqa: E731
    data = open_data(write_folder(tmp_path, encode, ".tif"), progress=False)
    assert "16 images" in finding(data, "dropped_bands").message
    assert "up to 2 each" in finding(data, "dropped_bands").message
    assert np.array_equal(data.pixels(0, WANTS), values[0, ..., :3].transpose(2, 0, 1))


def test_a_tiff_beyond_pillow_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(
        ImageError, match="a TIFF with 1 band of 64-bit floats, which Pillow cannot read: save one band"
    ):
        decode(tiff(np.zeros((4, 4)), FLOAT))
    encode = lambda i: tiff(np.full((4, 4), i + 1.0), FLOAT) if i == 3 else saved(np.asarray(noisy(i)), "TIFF")  # noqa: E731
    data = open_data(write_folder(tmp_path, encode, ".tif"), progress=False)
    assert "a TIFF with 1 band of 64-bit floats" in finding(data, "unreadable").message


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_throughout_shows_its_colours_and_says_so(mode: str, tmp_path: Path) -> None:
    def encode(number: int) -> bytes:
        buffer = io.BytesIO()
        picture = noisy(number).convert("L") if mode == "LA" else noisy(number)
        if mode == "P":
            picture.quantize(16).save(buffer, "PNG", transparency=bytes(16))
        else:
            picture.putalpha(0)
            picture.save(buffer, "PNG")
        return buffer.getvalue()

    data = open_data(write_folder(tmp_path, encode, ".png"), progress=False)
    assert "Fully transparent: 16 images" in finding(data, "transparent").message
    assert len(np.unique(levels(data))) > 5


def test_16_bit_colours_that_cannot_be_read_whole_are_told_of(tmp_path: Path) -> None:
    encode = lambda i: png16((65535 * np.stack([pattern(i), 0.5 + pattern(i) / 2], 2)).astype(np.uint16))  # noqa: E731
    data = open_data(write_folder(tmp_path, encode, ".png"), progress=False)
    assert "Read with 8 of 16 bits: 16 images" in finding(data, "reduced_depth").message


def test_lab_becomes_rgb() -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    picture = Image.new("RGB", (4, 4), (200, 30, 30))
    buffer = io.BytesIO()
    converted = ImageCms.profileToProfile(picture, srgb, lab, outputMode="LAB")
    assert converted is not None
    converted.save(buffer, "TIFF")
    assert decode(buffer.getvalue()).getpixel((0, 0)) == pytest.approx((200, 30, 30), abs=3)


# ---- What a dataset does by itself -----------------------------------------------------------------------------------


def folder_dataset(root: Path, steps: list[Any]) -> Dataset[Any]:
    encode = lambda i: saved(np.asarray(noisy(i)))  # noqa: E731
    if not root.exists():
        write_folder(root, encode, ".png")
    return torchvision_datasets.ImageFolder(root / "train", transforms.Compose(steps))


def test_a_transform_outside_the_model_is_named(tmp_path: Path) -> None:
    root, to_tensor = tmp_path / "images", transforms.ToTensor()
    plain = open_data(folder_dataset(root, [to_tensor]), progress=False)
    assert "outside_transform" not in kinds(plain)
    steps = [transforms.Grayscale(3), transforms.Resize(8), to_tensor]
    for dataset in (
        folder_dataset(root, steps),
        Subset(folder_dataset(root, steps), range(12)),
        ConcatDataset([folder_dataset(root, steps)]),
    ):
        said = finding(open_data(dataset, progress=False), "outside_transform").message
        assert "Grayscale" in said
        assert "Resize(size=8" in said
        assert "ToTensor" not in said
        assert "not saved with the model" in said


def test_prepared_tensors_keep_how_they_came_about(tmp_path: Path) -> None:
    steps = [transforms.ToTensor(), transforms.Normalize([0.9, 0.1, 0.2], [0.1, 0.1, 0.1])]
    data = open_data(folder_dataset(tmp_path / "images", steps), preprocessed=True, progress=False)
    fitted = data.adapt_preprocessing(WANTS)
    assert (fitted.prepared, fitted.shape, fitted.value_range) == (True, (16, 16), None)
    assert "Normalize(mean=[0.9, 0.1, 0.2]" in fitted.origin
    assert "predict(tensors, preprocessed=True)" in finding(data, "prepared").message


def test_images_must_be_what_a_model_was_fitted_on(tmp_path: Path) -> None:
    to_tensor = transforms.ToTensor()
    prepared = open_data(folder_dataset(tmp_path / "images", [to_tensor]), preprocessed=True, progress=False)
    wants = prepared.adapt_preprocessing(WANTS)
    assert prepared.adapt_preprocessing(wants) == wants
    with pytest.raises(DataError, match="fitted on preprocessed tensors"):
        open_data(folder_dataset(tmp_path / "images", [to_tensor]), progress=False).adapt_preprocessing(wants)
    with pytest.raises(DataError, match=r"have shape \(16, 16\), and the model was fitted on \(8, 8\)"):
        prepared.adapt_preprocessing(replace(wants, shape=(8, 8)))


def test_torchvisions_own_loader_clips_deep_files_and_is_told_of(tmp_path: Path) -> None:
    root = write_folder(tmp_path, ENCODERS["u16-png"][0], ".png")
    dataset = torchvision_datasets.ImageFolder(root / "train")
    assert "clips images deeper than 8 bits at 255" in finding(open_data(dataset, progress=False), "clipped").message


def test_prepared_tensors_of_two_shapes_are_told_apart() -> None:
    class Two(Arrays):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            return torch.randn(3, 8 + index % 2, 8), index % 2

    torch.manual_seed(0)
    data = open_data(Two(lambda v: v), preprocessed=True, test=0.0, progress=False)
    with pytest.raises(DataError, match=r"one shape, got 10 of \(3, 8, 8\), e.g. image\[0\]; 10 of \(3, 9, 8\)"):
        data.adapt_preprocessing(WANTS)
