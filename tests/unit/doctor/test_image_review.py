"""Copies of photographs are found, explained, and put into symptoms."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from sklearn.datasets import load_sample_images

from transferkit.core.errors import DataError
from transferkit.doctor import review_images
from transferkit.doctor.session_review import review_session, small_pictures
from transferkit.options import PassOptions
from transferkit.records import Preprocessing
from transferkit.workflow.session import open_session

CLASSES = ["temple", "flower"]


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """48 tiles of two photographs that do not overlap; blank ones of the sky are left out."""
    found = []
    for photo in load_sample_images().images:
        tiles = [photo[y : y + 100, x : x + 100] for y in range(0, 400, 100) for x in range(0, 600, 100)]
        found += [Image.fromarray(tile) for tile in sorted(tiles, key=lambda tile: -tile.std())[:24]]
    return found


def small(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def review(images, labels=None, splits=None, names=None, groups=None):
    pictures = [small(one) for one in images]
    features = np.stack([one.reshape(3, 8, 8, 8, 8).mean(axis=(2, 4)).reshape(-1) for one in pictures])
    count = len(images)
    labels = np.arange(count) % 2 if labels is None else labels
    splits = np.array(["train"] * count) if splits is None else splits
    names = [f"{n}.png" for n in range(count)] if names is None else names
    return review_images(features, labels, splits, names, picture=lambda n: pictures[n], classes=CLASSES, groups=groups)


def jpeg(image):
    encoded = io.BytesIO()
    image.save(encoded, format="JPEG", quality=30)
    return Image.open(encoded).convert("RGB")


CHANGES = {
    "mirrored": ImageOps.mirror,
    "turned by 90 degrees": lambda image: image.rotate(90),
    "upside down": ImageOps.flip,
    "turned by 5 degrees": lambda image: image.rotate(5, Image.Resampling.BICUBIC),
    "cropped to 80 %": lambda image: image.crop((5, 12, 85, 92)),
    "mirrored, cropped to 85 %": lambda image: ImageOps.mirror(image.crop((10, 3, 95, 88))),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "turned to grey": lambda image: image.convert("L").convert("RGB"),
    "the same": jpeg,
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_changed_copy_is_found_and_explained(photos, how):
    found = review([*photos, CHANGES[how](photos[30])])
    (pair,) = found.copies
    assert set(pair.rows) == {30, 48}
    if how != "the same":
        assert how in pair.how
    if "cropped" in how:
        assert (pair.original, pair.copy) == ("30.png", "48.png")


def test_a_blurred_page_of_text_is_found():
    rng = np.random.default_rng(0)
    pages = []
    for _ in range(40):
        page = np.full((96, 96), 240, dtype=np.uint8)
        for line in range(4, 92, 7):
            words = np.repeat(rng.random(44) < 0.6, 2)
            page[line : line + 4, 4:92] = np.where(words & (rng.random((4, 88)) < 0.8), 30, 240)
        pages.append(Image.fromarray(page).convert("RGB"))
    found = review([*pages, pages[7].filter(ImageFilter.GaussianBlur(1.44))])
    (pair,) = found.copies
    assert set(pair.rows) == {7, 40}
    assert "less sharp" in pair.how or "sharper" in pair.how


def test_tiles_as_they_are_have_no_copies(photos):
    found = review(photos)
    assert found.copies == ()
    assert found.sentences == ("48 images: no copies and no outliers found.",)


def test_a_copy_of_a_copy_is_in_one_group(photos):
    found = review([*photos, ImageOps.mirror(photos[3]), jpeg(photos[3])])
    assert found.groups == ((3, 48, 49),)


def test_frames_of_a_video_are_called_shifted_and_one_group(photos):
    photo = load_sample_images().images[0]
    frames = [Image.fromarray(photo[100:300, 8 * number : 8 * number + 200]) for number in range(8)]
    found = review([*photos, *frames], labels=np.zeros(56, dtype=int))
    (group,) = found.groups
    assert group == tuple(range(48, 56))
    assert {pair.how for pair in found.copies} == {"shifted"}
    (symptom,) = found.symptoms
    assert "Up to 8 images hang together, as frames of a video do: such a series is one group." in symptom.remedy


def test_a_leak_is_an_alarm(photos):
    splits = np.array(["train"] * 48 + ["test"])
    found = review([*photos, ImageOps.mirror(photos[3])], splits=splits)
    (symptom,) = found.symptoms
    assert (symptom.cause, symptom.severity) == ("leak_across_splits", "alarm")
    assert symptom.items == ("3.png ~ 48.png (mirrored)",)
    assert "1 test image is a copy of an image of another split (1 mirrored)" in symptom.sentence
    assert found.conflicts == ()
    (leak,) = found.leaks
    assert (leak.splits, leak.labels) == (("train", "test"), ("flower", "temple"))


@pytest.mark.parametrize(("change", "severity"), [(jpeg, "alarm"), (ImageOps.mirror, "note")])
def test_copies_with_two_labels(photos, change, severity):
    labels = np.array([0] * 24 + [1] * 24 + [1])
    found = review([*photos, change(photos[3])], labels=labels)
    (symptom,) = found.symptoms
    assert (symptom.cause, symptom.severity) == ("conflicting_copies", severity)
    assert symptom.items[0].endswith(": temple, flower")
    assert ("may rightly differ" in symptom.remedy) == (severity == "note")


def test_copies_that_have_one_group_already_need_no_note(photos):
    images, labels = [*photos, ImageOps.mirror(photos[3])], np.zeros(49, dtype=int)
    assert [one.cause for one in review(images, labels).symptoms] == ["copies_in_training"]
    found = review(images, labels, groups=np.array([*range(48), 3]))
    assert len(found.copies) == 1
    assert found.sentences == (
        "49 images: 1 pair of copies that are held back together, or within one held-back split; no outliers found.",
    )


def test_blank_and_equal_pictures_are_no_copies(photos):
    blank = [Image.new("RGB", (50, 50), colour) for colour in ("white", "white", "black", "red", "blue")]
    found = review([*photos, *blank])
    assert found.copies == ()
    assert [one.row for one in found.blanks] == [48, 49, 50, 51, 52]
    (symptom,) = (one for one in found.symptoms if one.cause == "blank_images")
    assert symptom.evidence.startswith("5 images show one flat colour, e.g. 48.png (temple)")
    assert {row.split(",")[0] for row in found.to_csv().splitlines()[1:]} == {"blank"}
    assert review(blank).copies == ()


@pytest.mark.parametrize("images", [1, 2, 3])
def test_few_images(photos, images):
    assert review(photos[:images]).copies == ()


def test_two_images_that_are_copies(photos):
    assert len(review([photos[30], ImageOps.mirror(photos[30])]).copies) == 1


def test_refusals(photos):
    with pytest.raises(DataError, match="one entry per image"):
        review(photos, labels=np.zeros(3, dtype=int))
    with pytest.raises(DataError, match=r"Labels must be integers in \[0, 2\)"):
        review(photos, labels=np.full(48, 2))
    with pytest.raises(DataError, match=r"shape \(3, 64, 64\)"):
        review_images(
            np.ones((2, 3)),
            np.zeros(2, dtype=int),
            np.array(["train"] * 2),
            ["a", "b"],
            picture=lambda _: np.zeros((64, 64), dtype=np.uint8),
            classes=["a"],
        )


def test_a_session_is_reviewed_with_its_test_images(photos, tmp_path):
    root = tmp_path / "Bilder für alle"
    for number, photo in enumerate(photos):
        split, kind = "test" if number % 4 == 0 else "train", CLASSES[number // 24]
        folder = root / split / kind
        folder.mkdir(parents=True, exist_ok=True)
        photo.save(folder / f"größe {number}.png")
    ImageOps.mirror(photos[5]).save(root / "test" / CLASSES[0] / "spiegel.png")
    options = PassOptions(image_size=32, progress=False, geometry="crop", views=1)
    found = review_session(open_session("packaged/tf_efficientnet_lite0", root, options))
    assert found.images == 49
    (leak,) = found.leaks
    assert leak.how == "mirrored"
    assert set(found.pictures) == set(leak.rows)
    assert (found.backbone, found.data.size("test")) == ("packaged/tf_efficientnet_lite0", 13)
    assert {leak.original.split("/")[-1], leak.copy.split("/")[-1]} == {"größe 5.png", "spiegel.png"}


def test_pictures_of_normalised_tensors():
    class Tensors:
        normalised = True

        def pixels(self, index, preprocessing):
            return np.full((3, 32, 32), 0.5, dtype=np.float32)

    own = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    assert small_pictures(Tensors(), own)(0).tolist() == np.full((3, 64, 64), 191).tolist()
