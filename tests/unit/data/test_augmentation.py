"""What is drawn, that it is told from the draw alone, and that nothing else changes."""

from __future__ import annotations

import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.pictures import noise
from transferkit.core.errors import OptionError
from transferkit.core.random import draw_seed
from transferkit.data import Augmentation, choose_preset, to_pixels
from transferkit.data.augmentation import PRESETS
from transferkit.data.draws import drawing, one_thread
from transferkit.records import CropMode, Preprocessing

DRAWN = [preset for preset in PRESETS if preset != "none"]


def wants(size: int = 32, crop_pct: float = 0.8, crop_mode: CropMode = "center") -> Preprocessing:
    return Preprocessing(
        size=size,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.2),
        interpolation="bicubic",
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    )


def stored(augmentation: Augmentation, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(to_pixels(noise(seed, side=50), augmentation.stored))


def ramp(side: int) -> torch.Tensor:
    """(3, side, side) float: each pixel's value is where it lies from left to right, in [0, 1]."""
    return ((torch.arange(side) + 0.5) / side).expand(3, side, side).contiguous()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [32, 33])
def test_a_picture_comes_out_at_the_checkpoints_size(preset, flip, size):
    augmentation = Augmentation(preset=preset, preprocessing=wants(size), flip=flip)
    for draw in range(20):
        changed = augmentation(stored(augmentation), draw)
        assert changed.shape == (3, size, size)
        assert changed.dtype == torch.uint8


@pytest.mark.parametrize("preset", DRAWN)
def test_the_draw_alone_tells_the_picture(preset):
    augmentation = Augmentation(preset=preset, preprocessing=wants(), flip=True)
    picture = stored(augmentation)
    kept = picture.clone()
    first = [augmentation(picture, draw_seed(0, 1, index)) for index in range(30)]
    torch.manual_seed(99)
    again = [augmentation(picture, draw_seed(0, 1, index)) for index in reversed(range(30))]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert len({one.numpy().tobytes() for one in first}) == 30
    assert torch.equal(picture, kept)


@pytest.mark.parametrize("preset", DRAWN)
def test_no_generator_is_touched(preset):
    augmentation = Augmentation(preset=preset, preprocessing=wants(), flip=True)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    threads = torch.get_num_threads()
    augmentation(stored(augmentation), 7)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002
    assert torch.get_num_threads() == threads


def test_generator_and_threads_are_put_back_after_an_exception():
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    with pytest.raises(RuntimeError, match="must match"), drawing(3), one_thread():
        _ = torch.rand(5) + torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_threads_draw_what_one_after_another_draws():
    augmentation = Augmentation(preset="medium", preprocessing=wants())
    picture = stored(augmentation)
    alone = [augmentation(picture, draw) for draw in range(40)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda draw: augmentation(picture, draw), range(40)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(9, 90),
    height=st.integers(9, 90),
    size=st.integers(8, 40),
    crop_pct=st.floats(0.5, 1.0),
    crop_mode=st.sampled_from(["center", "squash"]),
)
def test_the_plain_crop_of_a_stored_picture_is_the_checkpoints_own(width, height, size, crop_pct, crop_mode):
    preprocessing = wants(size, crop_pct, crop_mode)
    light = Augmentation(preset="light", preprocessing=preprocessing)
    image = noise(width + 100 * height).resize((width, height))
    kept = torch.from_numpy(to_pixels(image, light.stored))
    own = to_pixels(image, preprocessing)
    assert np.array_equal(light.plain(kept).numpy(), own)
    assert np.array_equal(light.still(kept, 5).numpy(), own)


def test_nothing_drawn_is_the_picture_itself():
    none = Augmentation(preset="none", preprocessing=wants())
    assert none.stored == wants()
    picture = stored(none)
    assert none(picture, 3) is picture


def test_half_of_the_pictures_are_mirrored_if_asked_for_and_none_otherwise():
    picture = (255 * ramp(32)).to(torch.uint8)
    for preset in ("none", "light"):
        still = Augmentation(preset=preset, preprocessing=wants(crop_pct=1.0))
        turning = Augmentation(preset=preset, preprocessing=wants(crop_pct=1.0), flip=True)
        runs = {
            flips: [bool(a(picture, d)[0, 0, 0] > 127) for d in range(400)] for flips, a in ((0, still), (1, turning))
        }
        assert not any(runs[0])
        assert 160 < sum(runs[1]) < 240  # 200 +- 4 standard deviations


def test_a_light_crop_is_about_the_checkpoints_own_anywhere_in_the_picture():
    light = Augmentation(preset="light", preprocessing=wants(size=96, crop_pct=0.8))
    side = light.stored.size
    assert side == 120
    picture = (255 * ramp(side)).to(torch.uint8)
    rows = torch.stack([light(picture, draw)[0, 48].float() for draw in range(300)]) / 255
    widths = (rows[:, 80] - rows[:, 16]) * 96 / 64  # the slope, away from the ends, as a share of the side
    lefts = rows[:, 48] - widths / 2
    # Side 0.72 to 0.88, aspect 0.95 to 1.05 (its square root counts), and the rounding of values to 1/255.
    assert widths.min() > 0.72 * 0.97 - 0.02
    assert widths.max() < 0.88 * 1.03 + 0.02
    assert lefts.min() < 0.03
    assert (lefts + widths).max() > 0.97


@pytest.mark.parametrize("preset", DRAWN)
def test_of_normalised_pictures_only_the_geometry_changes(preset):
    augmentation = Augmentation(preset=preset, preprocessing=wants(), flip=True)
    picture = torch.stack([torch.full((20, 28), value) for value in (-2.0, 0.5, 3.0)])
    for draw in range(30):
        changed = augmentation(picture, draw)
        assert changed.shape == (3, 20, 28)
        assert changed.dtype == torch.float32
        for channel, value in zip(changed, (-2.0, 0.5, 3.0), strict=True):
            inside = (channel - value).abs() < 1e-4
            outside = channel.abs() < abs(value)  # what a turn or an erased patch leaves is nearer to 0, the mean
            assert (inside | outside).all()
            assert preset != "light" or inside.all()


def test_corners_that_a_turn_uncovers_have_the_mean_colour():
    medium = Augmentation(preset="medium", preprocessing=wants())
    picture = torch.tensor([128, 102, 76], dtype=torch.uint8).view(3, 1, 1).expand(3, 40, 40).contiguous()
    for draw in range(30):
        changed = medium(picture, draw).flatten(1).float()
        # torchvision darkens the seam itself by a quarter: it blends there a picture that fades to black already.
        assert (changed.amin(dim=1) >= 0.6 * changed.amax(dim=1)).all()


def test_an_augmentation_travels_as_a_few_words():
    light = Augmentation(preset="light", preprocessing=wants())
    picture = stored(light)
    before = light(picture, 3)
    sent = pickle.dumps(light)
    assert len(sent) < 1000
    assert torch.equal(pickle.loads(sent)(picture, 3), before)


@pytest.mark.parametrize(
    ("preset", "images", "epochs", "chosen"),
    [
        ("auto", 100, None, "light"),
        ("auto", 19_999, 100, "light"),
        ("auto", 20_000, None, "medium"),
        ("auto", 20_000, 9, "light"),
        ("auto", 10**7, 300, "medium"),
        ("strong", 10, 1, "strong"),
        ("none", 10**7, 300, "none"),
    ],
)
def test_little_data_and_short_schedules_are_treated_mildly(preset, images, epochs, chosen):
    assert choose_preset(preset, images=images, epochs=epochs) == chosen


def test_an_unknown_preset_is_an_error():
    with pytest.raises(OptionError, match="Unknown augmentation 'mild'"):
        choose_preset("mild", images=3)
    with pytest.raises(OptionError, match="Unknown augmentation 'auto'"):
        Augmentation(preset="auto", preprocessing=wants())


def test_seeds_do_not_repeat_in_the_bits_that_torch_reads():
    seeds = {draw_seed(0, "picture", epoch, index) % 2**32 for epoch in range(20) for index in range(1000)}
    assert len(seeds) >= 19_998  # of 20,000 draws out of 2^32, 0.05 pairs are expected to be equal
