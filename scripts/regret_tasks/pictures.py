"""Tasks from existing pictures: their classes, and the groups that must stay on one side of a split."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from regret_tasks.task import Places, Sample, SourceMissing

TRAIN_SHARE = 0.6
"""Share of train in sources without their own split: regret also needs a test set of some size."""

STAMP_SIDE = 160
"""Longest side of a stamp in pixels; above the sizes that the benchmark runs at."""


def split_groups(groups: dict[str, list[str]], rng: np.random.Generator) -> dict[str, str]:
    """Assign splits by group, until train has its share.

    Args:
        groups: Members of each group; a member belongs to one group.
        rng: Decides the order of the groups.

    Returns:
        "train" or "test" for each member; with two groups or more, neither is empty.

    Example:
        >>> found = split_groups({"cat": ["cat1", "cat2"], "dog": ["dog"]}, np.random.default_rng(0))
        >>> found["cat1"] == found["cat2"] != found["dog"]
        True
    """
    names = sorted(groups)
    order = [names[i] for i in rng.permutation(len(names))]
    # The largest groups first, so that no large one comes last and overshoots; ties stay in random order.
    order.sort(key=lambda name: -len(groups[name]))
    total, splits = sum(map(len, groups.values())), {}
    counts = {"train": 0, "test": 0}
    shares = {"train": TRAIN_SHARE, "test": 1 - TRAIN_SHARE}
    for name in order:
        split = max(counts, key=lambda side: shares[side] - counts[side] / total)
        counts[split] += len(groups[name])
        splits.update(dict.fromkeys(groups[name], split))
    return splits


def base_name(stem: str) -> str:
    """The common name of variants of one drawing: the first word of the file's name that has three letters.

    Example:
        >>> [base_name(stem) for stem in ("gnu-baby-stand", "gnu-sitting", "flower10", "t_shirt", "tender_mirror", "a")]
        ['gnu', 'gnu', 'flower', 'shirt', 'tender', 'a']
    """
    words = re.findall(r"[a-z]{3,}", stem.lower())
    return words[0] if words else stem.lower()


def is_copy(stem: str) -> bool:
    """Whether the file's name says that it is another picture flipped or rotated.

    Example:
        >>> is_copy("tugboat_mirror"), is_copy("tugboat")
        (True, False)
    """
    return stem.endswith(("_mirror", "_flip", "_mirror_flip"))


def on_white(image: Image.Image, side: int) -> Image.Image:
    """The image without its alpha channel, on white, its transparent border cut off, at most `side` pixels long."""
    rgba = image.convert("RGBA")
    box = rgba.getchannel("A").getbbox()
    rgba = rgba.crop(box) if box else rgba
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    flat.thumbnail((side, side), Image.Resampling.LANCZOS)
    return flat


def split_rows(count: int, rng: np.random.Generator) -> list[str]:
    """The split of each of `count` independent rows."""
    return ["train" if place < TRAIN_SHARE * count else "test" for place in rng.permutation(count)]


def digits(places: Places, rng: np.random.Generator) -> Iterator[Sample]:
    from sklearn.datasets import load_digits

    data = load_digits()
    splits = split_rows(len(data.target), rng)
    for number, (pixels, label, split) in enumerate(zip(data.images, data.target, splits, strict=True)):
        grey = (pixels * (255 / 16)).astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)
        yield Sample(split=split, label=str(label), name=f"{number:04d}", image=Image.fromarray(grey))


FASHION_CLASSES = (
    *("tshirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle_boot"),
)
"""The class names of the labels 0 to 9."""

FASHION_COUNTS = {"train": ("train", 600), "test": ("t10k", 200)}
"""The files' prefix and the images per class of each split."""


def read_idx(path: Path, header: int) -> np.ndarray:
    """The bytes of an IDX file after its header (8 bytes for labels, 16 for images)."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def fashion(places: Places, rng: np.random.Generator) -> Iterator[Sample]:
    if not places.fashion.is_dir():
        raise SourceMissing(f"{places.fashion} is not here; install the Debian package dataset-fashion-mnist.")
    for split, (prefix, count) in FASHION_COUNTS.items():
        labels = read_idx(places.fashion / f"{prefix}-labels-idx1-ubyte.gz", 8)
        images = read_idx(places.fashion / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(len(labels), 28, 28)
        for label, word in enumerate(FASHION_CLASSES):
            for row in np.flatnonzero(labels == label)[:count]:
                yield Sample(split=split, label=word, name=f"{row:05d}", image=Image.fromarray(images[row]))


def hand_signs(places: Places, rng: np.random.Generator) -> Iterator[Sample]:
    if places.hand_signs is None:
        raise SourceMissing("give the archive with --hand-signs TAR.")
    with tarfile.open(places.hand_signs) as archive:
        members = sorted((m for m in archive.getmembers() if m.isfile()), key=lambda m: m.name)
        for member in members:
            parts = Path(member.name).parts
            if len(parts) == 4 and parts[0] == "sign" and parts[3].endswith(".jpg"):
                content = archive.extractfile(member)
                assert content is not None  # isfile() said so
                image = Image.open(io.BytesIO(content.read())).convert("RGB")
                yield Sample(split=parts[1], label=parts[2], name=Path(parts[3]).stem, image=image)


ANIMAL_STAMPS = ("animals/birds", "animals/fish", "animals/insects", "animals/mammals")

FINE_STAMPS = (
    *ANIMAL_STAMPS,
    "food/fruit",
    "food/vegetables",
    "household/tools",
    "plants/flowers",
    "seasonal/halloween",
    "town/houses",
    "town/roadsigns",
)
"""Folders of the stamps below the top level with about ten pictures or more."""

NATURAL = ("animals", "food/fruit", "food/vegetables", "food/nuts", "plants")
"""Folders whose pictures outside `cartoon` folders are photographs, with few exceptions."""

FEWEST_STAMPS, FEWEST_FINE_STAMPS = 16, 8
"""Minimum number of pictures of a class of the stamps; narrow subjects have few."""


def top_folder(path: str) -> str | None:
    # The alphabets are the same letters in several styles: most of `symbols`, and a separate task elsewhere.
    return None if path.startswith("symbols/alphabets/") else path.split("/")[0]


def animal_folder(path: str) -> str | None:
    return next((name.split("/")[1] for name in ANIMAL_STAMPS if path.startswith(name + "/")), None)


def fine_folder(path: str) -> str | None:
    if "/cartoon/" in path and not path.startswith("town/houses/"):
        return None
    return next((name.split("/")[1] for name in FINE_STAMPS if path.startswith(name + "/")), None)


def drawing_or_photo(path: str) -> str | None:
    if "/cartoon/" in path:
        return "drawing"
    return "photo" if path.startswith(tuple(name + "/" for name in NATURAL)) else None


def stamp_task(
    classify: Callable[[str], str | None], *, fewest: int
) -> Callable[[Places, np.random.Generator], Iterator[Sample]]:
    """Samples of the stamps for which `classify` (of the path below the stamps' folder) returns a class."""

    def samples(places: Places, rng: np.random.Generator) -> Iterator[Sample]:
        if not places.stamps.is_dir():
            raise SourceMissing(f"{places.stamps} is not here; install the Debian package tuxpaint-stamps-default.")
        classes: dict[str, list[Path]] = {}
        for path in sorted(places.stamps.rglob("*.png")):
            label = classify(path.relative_to(places.stamps).as_posix())
            if label is not None and not is_copy(path.stem):
                classes.setdefault(label, []).append(path)
        for label, paths in classes.items():
            if len(paths) < fewest:
                continue
            groups: dict[str, list[str]] = {}
            for path in paths:
                groups.setdefault(base_name(path.stem), []).append(str(path))
            splits = split_groups(groups, rng)
            for path in paths:
                name = "-".join(path.relative_to(places.stamps).with_suffix("").parts)
                with Image.open(path) as image:
                    yield Sample(split=splits[str(path)], label=label, name=name, image=on_white(image, STAMP_SIDE))

    return samples


PHOTO_WIDTH, PHOTO_TILE = 960, 96
"""A photograph is resized to this width and cut into tiles of this side: about sixty, each with some detail."""

REGION_TILE = 32
"""Side of the tiles of scikit-learn's photographs, which are only 640 by 427 pixels."""

REGIONS = (2, 3)
"""Rows and columns of regions that each of scikit-learn's photographs is divided into."""


def tiles(photo: Image.Image, side: int) -> Iterator[tuple[float, float, Image.Image]]:
    """The non-overlapping square tiles of a photograph, each with its centre as shares of height and width."""
    for top in range(0, photo.height - side + 1, side):
        for left in range(0, photo.width - side + 1, side):
            tile = photo.crop((left, top, left + side, top + side))
            yield (top + side / 2) / photo.height, (left + side / 2) / photo.width, tile


def photo_tiles(places: Places, rng: np.random.Generator) -> Iterator[Sample]:
    paths = sorted(places.photos.glob("*.jpg"))
    if not paths:
        raise SourceMissing(f"{places.photos} has no photographs; install the Debian package mate-backgrounds.")
    for path in paths:
        with Image.open(path) as image:
            height = round(image.height * PHOTO_WIDTH / image.width)
            photo = image.convert("RGB").resize((PHOTO_WIDTH, height), Image.Resampling.LANCZOS)
        cut = [tile for *_, tile in tiles(photo, PHOTO_TILE)]
        for number, (tile, split) in enumerate(zip(cut, split_rows(len(cut), rng), strict=True)):
            yield Sample(split=split, label=path.stem.lower(), name=f"{number:03d}", image=tile)


def photo_regions(places: Places, rng: np.random.Generator) -> Iterator[Sample]:
    from sklearn.datasets import load_sample_images

    data = load_sample_images()
    for filename, pixels in zip(data.filenames, data.images, strict=True):
        cut = list(tiles(Image.fromarray(pixels), REGION_TILE))
        for number, ((down, across, tile), split) in enumerate(zip(cut, split_rows(len(cut), rng), strict=True)):
            region = f"{int(down * REGIONS[0])}{int(across * REGIONS[1])}"
            yield Sample(split=split, label=f"{Path(filename).stem}_{region}", name=f"{number:03d}", image=tile)
