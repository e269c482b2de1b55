"""Which views are taken, with features whose worth is known by construction and a clock that is set."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from transferkit.data import open_data
from transferkit.features import FeatureBank, FrozenPass
from transferkit.records import Preprocessing
from transferkit.workflow.views import ask_views, choice, choose_views

OWN = Preprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop_pct=0.875)
CLASSES = 3
NAMES = {
    ("center", 0.875): "crop",
    ("center", 1.0): "full",
    ("squash", 1.0): "squash",
    ("border", 1.0): "pad",
    ("center", 0.75): "zoom",
    ("border", 1.2): "wide",
}
AUTO = ["crop", "squash", "zoom", "wide"]
WIDTH = 24


def make_data(each: int = 20, *, square: bool = False, test: int = 2):
    """Small pictures, all different; of several shapes unless `square`."""
    rng = np.random.default_rng(0)

    def pictures(count):
        for number in range(count * CLASSES):
            wide = 12 if square else 12 + number % 5
            pixels = rng.integers(0, 256, (12, wide, 3), dtype=np.uint8)
            yield Image.fromarray(pixels), number % CLASSES

    return open_data({"train": list(pictures(each)), "test": list(pictures(test))}, progress=False)


class Views:
    """Runs: every view has features of its own, `quality` times the class's direction plus noise."""

    def __init__(self, folder, data, quality, *, mirrored=None, noise=1.0):
        self.bank, self.data, self.noise = FeatureBank(folder), data, noise
        self.quality, self.mirrored = quality, mirrored or quality
        self.calls: list[tuple[str, int]] = []

    def __call__(self, *, preprocessing, among=None):
        name = NAMES[preprocessing.crop_mode, preprocessing.crop_pct]
        label = f"{name}+mirror" if preprocessing.mirrored else name
        rows = np.arange(len(self.data)) if among is None else among
        self.calls.append((label, len(rows)))
        rng = np.random.default_rng([*label.encode()])
        features = rng.normal(0, self.noise, (len(self.data), WIDTH)).astype(np.float32)
        quality = (self.mirrored if preprocessing.mirrored else self.quality).get(name, 1.0)
        features[np.arange(len(self.data)), self.data.labels] += quality
        shelf = self.bank.shelf({"view": label}, {"top": WIDTH})
        ids = np.array([f"{row:032x}".encode() for row in rows], dtype="S32")
        missing = shelf.missing(ids)
        with shelf.writer() as writer:
            writer.append(ids[missing], features[rows[missing]])
        return FrozenPass(shelf.table(ids), None, len(missing))

    @property
    def labels(self):
        return [label for label, _ in self.calls]


def choose(tmp_path, data, asked, *, quality=None, mirrored=None, image_seconds=1e-6, budget=None, noise=1.0):
    views = Views(tmp_path / "bank", data, quality or {}, mirrored=mirrored, noise=noise)
    start = NAMES[(OWN.crop_mode, OWN.crop_pct)] if asked.start == "crop" else asked.start
    modes = {name: key for key, name in NAMES.items()}
    mode, share = modes[start]
    own = OWN if start == "crop" else Preprocessing(**{**OWN.__dict__, "crop_mode": mode, "crop_pct": share})
    first = views(preprocessing=own)
    views.calls.clear()
    found = choose_views(
        asked,
        OWN,
        data,
        views,
        among=np.arange(len(data)),
        first=first,
        first_seconds=1.0,
        image_seconds=image_seconds,
        budget=budget,
    )
    return found, views


def test_left_open_all_views_of_auto_are_averaged(tmp_path):
    data = make_data()
    found, views = choose(tmp_path, data, ask_views(), mirrored={"crop": -2.0}, noise=2.0)
    assert [view.name for view in found.preprocessing.views] == AUTO
    assert found.comparison.views == tuple(AUTO)
    parts = [views(preprocessing=view).table.load(["top"]) for view in found.preprocessing.each_view]
    np.testing.assert_allclose(found.table.load(["top"]), np.mean(parts, axis=0), rtol=1e-5, atol=1e-6)
    said = " ".join(found.comparison.reasons)
    assert "averaged over 4 views of each image: crop, squash, zoom, wide" in said
    assert "Predicting an image takes 4 passes" in said
    names = [score.name for score in found.comparison.scores]
    assert names[:7] == [*AUTO, "full", "pad", "crop+squash+zoom+wide"]
    assert [score.name for score in found.comparison.scores if score.used] == ["crop+squash+zoom+wide"]


def test_the_mean_over_noisy_views_is_better_than_any_of_them_and_the_row_says_so(tmp_path):
    found, _ = choose(tmp_path, make_data(40), ask_views(views="crop+squash+pad"), noise=1.5)
    *single, mean = found.comparison.scores
    assert mean.accuracy > max(score.accuracy for score in single) + 0.05
    assert mean.gain == pytest.approx(mean.accuracy - single[0].accuracy)
    assert mean.squared_error < min(score.squared_error for score in single)


@pytest.mark.parametrize(("safe", "views"), [(True, 8), (False, 4)])
def test_mirror_images_take_part_only_where_a_probe_knows_them(tmp_path, safe, views):
    quality = dict.fromkeys(AUTO, 6.0)
    found, runs = choose(
        tmp_path, make_data(), ask_views(), quality=quality, mirrored=quality if safe else {"crop": -6.0}
    )
    assert len(found.preprocessing.views) == views
    assert any(view.mirrored for view in found.preprocessing.views) == safe
    assert "crop+mirror" in runs.labels
    assert f"Mirror images are {'averaged as well' if safe else 'left out'}: held-back accuracy" in " ".join(
        found.comparison.reasons
    )


def test_few_images_cannot_show_that_mirroring_is_safe_and_are_not_asked(tmp_path):
    found, runs = choose(tmp_path, make_data(10), ask_views(), quality={"crop": 6.0})
    assert not any("mirror" in label for label in runs.labels)
    assert len(found.preprocessing.views) == 4


@pytest.mark.parametrize(
    ("image_seconds", "budget", "views"),
    [
        (1e-6, None, 8),
        (0.5, None, 2),  # 66 images: 33 s a pass, 60 s are allowed
        (0.4, None, 3),  # 26 s: two more passes
        (0.25, None, 4),  # 16 s: three more passes, none left for four mirrored ones
        (1.0, None, 1),
        (0.01, 2.0, 2),  # half of the budget, 1 s, at 0.66 s a pass
        (0.01, 0.5, 1),
        (0.01, 1000.0, 8),
    ],
)
def test_views_are_taken_as_far_as_their_passes_are_affordable(tmp_path, image_seconds, budget, views):
    quality = dict.fromkeys(NAMES.values(), 6.0)
    found, _ = choose(
        tmp_path, make_data(), ask_views("crop"), quality=quality, image_seconds=image_seconds, budget=budget
    )
    assert len(found.preprocessing.each_view) == views
    said = " ".join(found.comparison.reasons)
    assert ("views=auto stops at" in said) == (views < 4)
    assert ("To use them anyway: views=crop+squash+zoom+wide" in said) == (views < 8)


def test_views_that_are_named_are_taken_whatever_they_cost(tmp_path):
    found, runs = choose(tmp_path, make_data(5), ask_views(views="pad+crop+mirror"), image_seconds=1e6, budget=0.1)
    assert [view.name for view in found.preprocessing.views] == ["crop", "pad", "crop+mirror", "pad+mirror"]
    assert set(runs.labels) == {"pad", "crop+mirror", "pad+mirror"}


def test_order_makes_no_difference_to_the_last_bit(tmp_path):
    data = make_data(5)
    one, _ = choose(tmp_path / "a", data, ask_views(views="crop+squash+pad"))
    other, _ = choose(tmp_path / "b", data, ask_views("pad", "pad+squash+crop"))
    assert (one.table.load(["top"]) == other.table.load(["top"])).all()
    assert other.preprocessing.crop_mode == "border"
    assert other.preprocessing.views == one.preprocessing.views


def test_square_pictures_are_looked_at_once_where_geometries_agree(tmp_path):
    found, runs = choose(tmp_path, make_data(square=True), ask_views(), mirrored={"crop": -6.0})
    assert [view.name for view in found.preprocessing.views] == ["crop", "squash", "zoom", "wide"]
    assert {label for label in runs.labels if "mirror" not in label} == {"squash", "zoom", "wide"}
    assert "full and pad make the same pictures as squash: one pass for all" in " ".join(found.comparison.reasons)


@pytest.mark.parametrize(
    ("quality", "geometry"),
    [
        ({"squash": 8.0}, "squash"),
        ({"crop": 8.0, "squash": 8.0, "full": 8.0, "pad": 8.0}, "crop"),
        ({"pad": 8.0, "full": 3.0}, "pad"),
        ({"crop": 3.0, "full": 8.0, "squash": 0.5}, "full"),
    ],
)
def test_another_geometry_must_be_clearly_better_to_take_the_place_of_the_checkpoints_own(tmp_path, quality, geometry):
    found, runs = choose(tmp_path, make_data(40), ask_views(views=1), quality=quality, noise=2.0)
    assert found.comparison.geometry == geometry
    assert not found.preprocessing.views
    assert NAMES[found.preprocessing.crop_mode, found.preprocessing.crop_pct] == geometry
    again = runs(preprocessing=found.preprocessing)
    assert again.computed == 0  # every image of the chosen geometry was run
    assert (found.table.load(["top"]) == again.table.load(["top"])).all()
    assert found.table is found.primary
    said = " ".join(found.comparison.reasons)
    assert ("is kept for single views" in said) == (geometry == "crop")
    assert "standard error" in said
    assert "%" in said


def test_a_closer_look_is_no_geometry_to_train_on_unless_it_is_named(tmp_path):
    found, _ = choose(
        tmp_path,
        make_data(40),
        ask_views(),
        quality={**dict.fromkeys(NAMES.values(), 0.3), "crop": 3.0, "zoom": 9.0},
        mirrored={"crop": -8.0},
        noise=2.0,
    )
    zoom = next(score for score in found.comparison.scores if score.name == "zoom")
    assert zoom.gain > 3 * zoom.gain_error
    assert found.comparison.geometry == "crop"
    named, _ = choose(tmp_path / "named", make_data(5), ask_views("zoom", 1))
    assert named.preprocessing.crop_pct == 0.75


def test_geometries_that_are_only_compared_run_over_training_images_alone(tmp_path):
    _, runs = choose(tmp_path, make_data(20, test=5), ask_views(views=1))
    assert runs.calls == [("full", 60), ("squash", 60), ("pad", 60)]


def test_the_checkpoints_own_crop_alone_is_what_it_always_was(tmp_path):
    found, runs = choose(tmp_path, make_data(5), ask_views("crop", 1))
    assert runs.calls == []
    assert found.comparison is None
    assert found.preprocessing is OWN


def test_a_geometry_by_name_needs_no_comparison(tmp_path):
    found, runs = choose(tmp_path, make_data(5), ask_views("pad", 1))
    assert runs.calls == []
    assert (found.preprocessing.crop_mode, found.preprocessing.views) == ("border", ())
    assert found.comparison.reasons == ("Geometry pad was requested: the whole picture with borders.",)


def test_an_average_that_is_clearly_worse_is_given_up_and_it_is_said(tmp_path):
    quality = {**dict.fromkeys(AUTO, -8.0), "crop": 8.0, "full": 1.0}
    data = make_data(40)
    found, _ = choose(tmp_path, data, ask_views(), quality=quality, mirrored={"crop": -8.0})
    # Averages with what says the opposite separate as well; only noise can make a mean worse.
    assert len(found.preprocessing.each_view) == 4

    class Loud(Views):
        def __call__(self, *, preprocessing, among=None):
            self.noise = 0.3 if preprocessing.crop_pct == OWN.crop_pct else 60.0
            return super().__call__(preprocessing=preprocessing, among=among)

    loud = Loud(tmp_path / "loud", data, {"crop": 2.0}, mirrored={"crop": -2.0})
    first = loud(preprocessing=OWN)
    found = choose_views(
        ask_views(), OWN, data, loud, among=np.arange(len(data)), first=first, first_seconds=1.0, image_seconds=1e-6
    )
    assert found.preprocessing == OWN
    assert "The mean over crop+squash+zoom+wide was rejected: held-back accuracy" in " ".join(found.comparison.reasons)


def test_one_image_a_class_compares_nothing_and_averages_all_the_same(tmp_path):
    found, _ = choose(tmp_path, make_data(1), ask_views())
    assert [view.name for view in found.preprocessing.views] == AUTO
    assert found.comparison.images == 0
    assert {score.accuracy for score in found.comparison.scores} == {None}


def test_no_more_images_are_compared_than_it_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "COMPARED", 30)
    found, runs = choose(tmp_path, make_data(20), ask_views(views=1))
    assert found.comparison.images == 30
    assert {count for _, count in runs.calls} == {30}


def test_what_networks_are_trained_on_is_one_of_the_views(tmp_path):
    quality = {**dict.fromkeys(NAMES.values(), 0.5), "pad": 8.0}
    found, _ = choose(tmp_path, make_data(40), ask_views(), quality=quality, mirrored={"crop": -8.0}, noise=2.0)
    assert found.comparison.geometry == "pad"
    assert [view.name for view in found.preprocessing.views] == ["crop", "squash", "pad", "zoom", "wide"]
    assert found.preprocessing.primary in found.preprocessing.each_view
    parts = [found.preprocessing.seen_as(view) for view in found.preprocessing.views]
    assert len(set(parts)) == 5
    assert [score.name for score in found.comparison.scores if score.used] == ["crop+squash+pad+zoom+wide"]
