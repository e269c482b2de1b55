"""Near twins: found through re-encoding and rescaling, not among different pictures, and not by brute force."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from transferkit.data import fingerprints
from transferkit.data.fingerprints import array_digest, difference_hash, near_twins, thumb


def blurred(seed: int, side: int = 128) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def recompressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=40)
    return Image.open(buffer)


def pairs_among(images: list[Image.Image]) -> list[tuple[int, int]]:
    hashes = np.array([difference_hash(image) for image in images], dtype=np.uint64)
    return [(a, b) for a, b in near_twins(hashes, np.stack([thumb(image) for image in images])).tolist()]


@pytest.mark.parametrize(
    "copy",
    [
        recompressed,
        lambda image: image.resize((64, 64), Image.Resampling.LANCZOS),
        lambda image: image.resize((200, 200), Image.Resampling.BILINEAR),
        lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    ],
    ids=["jpeg", "half", "larger", "darker"],
)
def test_copies_are_found_and_nothing_else(copy: Callable[[Image.Image], Image.Image]) -> None:
    train = [blurred(seed) for seed in range(12)]
    assert pairs_among([*train, copy(train[4]), blurred(100), copy(train[9])]) == [(4, 12), (9, 14)]


def test_a_mirrored_picture_is_another_picture() -> None:
    assert pairs_among([blurred(1), blurred(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT)]) == []


def test_flat_pictures_are_no_twins() -> None:
    assert pairs_among([Image.new("L", (32, 32), 200)] * 3) == []


def test_tables_find_every_pair_that_brute_force_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_CHUNK", 50)  # several chunks
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 40, dtype=np.uint64)
    # Within a base, one or two bits are flipped, so pairs differ in up to four: on both sides of the limit.
    flips = np.array([sum(1 << int(bit) for bit in rng.choice(63, 1 + i // 40 % 2, replace=False)) for i in range(200)])
    hashes = base[np.arange(200) % 40] ^ flips.astype(np.uint64)
    thumbs = np.repeat(rng.integers(0, 256, (1, 256), dtype=np.uint8), 200, axis=0)  # all alike: only bits decide
    expected = [(a, b) for a, b in combinations(range(200), 2) if bin(int(hashes[a] ^ hashes[b])).count("1") <= 3]
    assert [(a, b) for a, b in near_twins(hashes, thumbs).tolist()] == expected
    assert len(expected) > 20


def test_array_digests_tell_shape_and_dtype_apart() -> None:
    values = np.zeros((2, 3), dtype=np.uint8)
    different = [values, values.T, values.view(np.int8), values + 1]
    assert len({array_digest(array) for array in different}) == 4
    assert array_digest(np.asfortranarray(values)) == array_digest(values)


def test_twins_are_found_in_every_split_the_smaller_index_first():
    images = [blurred(1), blurred(2), recompressed(blurred(1)), blurred(3), blurred(2).resize((64, 64))]
    assert pairs_among(images) == [(0, 2), (1, 4)]
