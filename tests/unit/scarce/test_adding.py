"""A class added to a finished run: what stays, what is recorded, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.result.result_toys import CLASSES, draw_pictures, make_model, make_result
from transferkit.api import add_class
from transferkit.core.errors import DataError, OptionError
from transferkit.nn import Blend
from transferkit.result import Result, load


def save_pictures(root, *, each: int = 6):
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for place, picture in enumerate(draw_pictures(each, seed=number)):
            Image.fromarray(picture // 2 + 40 * number).save(root / name / f"{place}.png")
    return root


@pytest.fixture
def old(tmp_path):
    return save_pictures(tmp_path / "old images")


def add(result, tmp_path, **more):
    return add_class(result, "dog", draw_pictures(2, seed=9)[:, ::2], cache=tmp_path / "bank", progress=False, **more)


def members_of(model):
    return model.parts if isinstance(model, Blend) else (model,)


@pytest.mark.parametrize("blend", [False, True])
def test_the_other_rows_stay_and_the_larger_run_predicts(tmp_path, old, blend):
    model = Blend([make_model(), make_model(seed=1)]) if blend else make_model()
    result = make_result(model)
    bigger = add(result, tmp_path, old_images=old)
    pictures = draw_pictures(5, seed=3)
    before, after = result.predict(pictures).probabilities, bigger.predict(pictures).probabilities
    assert bigger.classes == (*CLASSES, "dog")
    assert result.classes == CLASSES
    rest = after[:, :3] / after[:, :3].sum(axis=1, keepdims=True)
    clear = after[:, 3] < 0.99  # what is left of float32 probabilities beside a sure one is rounded
    assert rest[clear] == pytest.approx(before[clear], abs=1e-4)
    pairs = zip(members_of(result.model), members_of(bigger.model), strict=True)
    assert all(torch.equal(one.linear.weight, other.linear.weight[:3]) for one, other in pairs)
    (added,) = bigger.record.added
    assert (added.name, added.images, added.source, added.held_back) == ("dog", 2, "given", True)
    assert added.after <= added.before
    assert added.sentence in bigger.decision.reasons
    assert bigger.evidence.data.classes == (*CLASSES, "dog")


def test_the_larger_run_is_saved_and_loaded(tmp_path, old):
    result = make_result()
    bigger = add(result, tmp_path, old_images=old)
    bigger.report(tmp_path / "report.html")
    assert "dog" in (tmp_path / "report.html").read_text("utf-8")
    rebuilt = Result(bigger.model, replace(bigger.record))
    assert rebuilt.record.added == bigger.record.added
    assert torch.equal(rebuilt.model.linear.weight[:3], result.model.linear.weight)


@pytest.mark.parametrize(
    ("name", "problem"), [("", "needs a name"), ("  ", "needs a name"), ("bee", "knows the class 'bee' already")]
)
def test_names_that_cannot_be(tmp_path, old, name, problem):
    with pytest.raises(OptionError, match=problem):
        add_class(make_result(), name, draw_pictures(1), old_images=old, cache=tmp_path / "bank")


def test_without_old_images_it_says_what_to_give(tmp_path):
    with pytest.raises(DataError, match=r"run's own are not at hand: .* Give some of each class with old_images=DATA"):
        add(make_result(), tmp_path)


def test_old_images_of_other_classes_are_refused(tmp_path, old):
    (old / "bee").rename(old / "wasp")
    with pytest.raises(DataError, match="Unknown class 'wasp'"):
        add(make_result(), tmp_path, old_images=old)


def test_an_empty_folder_is_refused(tmp_path, old):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="contains no image files"):
        add_class(make_result(), "dog", tmp_path / "empty", old_images=old, cache=tmp_path / "bank", progress=False)


def test_a_missing_run_is_an_error_of_its_own(tmp_path):
    with pytest.raises(OSError, match="no finished run"):
        load(tmp_path)


def test_grey_and_transparent_images_are_read(tmp_path, old):
    grey = np.zeros((20, 20), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey ü.png")
    bigger = add_class(
        make_result(), "night", tmp_path / "grey ü.png", old_images=old, cache=tmp_path / "bank", progress=False
    )
    assert bigger.record.added[0].images == 1
