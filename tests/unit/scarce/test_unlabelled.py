"""Unlabelled images beside labelled ones: used where they help, left alone where they do not, and said either way."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import transferkit as tk
from tests.conftest import draw_stripes
from transferkit.core.errors import DataError, OptionError
from transferkit.data.unlabelled import open_unlabelled
from transferkit.records import Folds
from transferkit.scarce.unlabelled import UnlabelledGain, measure_unlabelled

QUICK = {"image_size": 32, "views": 1, "progress": False, "strategy": "linear_probe"}
PACKAGED = "packaged/tf_efficientnet_lite0"


@pytest.fixture
def more(tmp_path):
    """A folder of stripes without labels, some of them in folders, and a file that is no image."""
    root = tmp_path / "ohne Namen é"
    for number in range(24):
        draw_stripes(root / f"{number % 2}" / f"{number}.png", angle=number % 3, seed=900 + number)
    (root / "broken.png").write_bytes(b"nothing")
    return root


def open_quietly(source, **options):
    return open_unlabelled(source, max_pixels=10**6, progress=False, **options)


def test_files_are_opened_once_and_known_ones_left_out(more, stripes):
    Image.open(more / "0" / "0.png").save(more / "copy.png")
    found = open_quietly(more)
    assert (len(found), found.left_out) == (24, 2)
    known = {bytes(found.content_ids[0])}
    assert len(open_quietly(more, known=known)) == 23
    assert len(open_quietly(more, most=5)) == 5
    with pytest.raises(DataError, match="No unlabelled image can be used"):
        open_quietly(more, known={bytes(one) for one in found.content_ids})
    with pytest.raises(OptionError, match="unlabelled takes image files"):
        open_quietly([np.zeros((8, 8, 3), np.uint8)])


def test_a_gain_counts_only_beyond_its_error():
    assert UnlabelledGain(plain=0.5, gains={"a": 0.02, "b": 0.01}, errors={"a": 0.03, "b": 0.005}).best is None
    assert UnlabelledGain(plain=0.5, gains={"a": 0.04, "b": 0.01}, errors={"a": 0.03, "b": 0.005}).best == "a"


def test_a_teacher_that_knows_the_classes_is_learnt_from_and_one_that_guesses_is_not():
    """Two classes along one of many directions: forty labels hardly show it, a teacher's 560 answers do."""
    rng = np.random.default_rng(3)
    labels = np.tile([0, 1], 300)
    features = rng.normal(size=(600, 200)).astype(np.float32)
    features[:, 0] += 2.0 * labels
    folds = Folds.alone(labels[:40])
    how = {"classes": 2, "selected": False}
    knows = np.eye(2)[labels[40:]] * 0.8 + 0.1
    found = measure_unlabelled(features, {"a": slice(0, 200)}, folds, answers=knows, **how)
    assert set(found.gains) == {"teacher"}
    assert found.best == "teacher"
    guesses = np.eye(2)[rng.integers(0, 2, 560)]
    assert measure_unlabelled(features, {"a": slice(0, 200)}, folds, answers=guesses, **how).best is None


def test_a_finished_run_teaches_another_backbone(stripes, more, tmp_path):
    how = {**QUICK, "cache": tmp_path / "bank"}
    teacher = tk.adapt(PACKAGED, stripes, out=tmp_path / "teacher", **how)
    result = tk.adapt("packaged/tf_efficientnet_lite1", stripes, unlabelled=more, teacher=tmp_path / "teacher", **how)
    assert "the teacher's answers" in " ".join(result.decision.reasons)
    assert result.classes == teacher.classes
    with pytest.raises(OptionError, match=r"Add unlabelled=DIR"):
        tk.adapt(PACKAGED, stripes, teacher=teacher, **how)
    with pytest.raises(OptionError, match=r"There is no folder 'nowhere'\. teacher= takes that of a finished run"):
        tk.adapt(PACKAGED, stripes, unlabelled=more, teacher="nowhere", **how)
    other = tk.adapt(PACKAGED, "builtin/digits", test=0.9, evaluate=False, **how)
    with pytest.raises(OptionError, match="The teacher has other classes than the images: 0, 1"):
        tk.adapt(PACKAGED, stripes, unlabelled=more, teacher=other, **how)


def test_held_back_labels_are_not_learnt_from():
    """Labels at random: with any look at the held-back ones, accuracy would be above chance."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 30)).astype(np.float32)
    labels = rng.permutation(np.tile([0, 1], 60))
    found = measure_unlabelled(features, {"a": slice(0, 30)}, Folds.alone(labels), classes=2, selected=True)
    assert 0.3 < found.plain < 0.7
    assert all(0.3 < found.plain + gain < 0.7 for gain in found.gains.values())


def test_adapt_says_what_became_of_them(stripes, more, tmp_path):
    result = tk.adapt(PACKAGED, stripes, unlabelled=more, out=tmp_path / "run", **QUICK)
    (said,) = [reason for reason in result.decision.reasons if "unlabelled images" in reason]
    assert "With 24 unlabelled images, held-back accuracy of a ridge probe" in said
    again = tk.load(tmp_path / "run")
    np.testing.assert_array_equal(
        again.predict(more, on_error="skip").probabilities, result.predict(more, on_error="skip").probabilities
    )


def test_a_probe_that_uses_them_is_a_plain_model(stripes, more, tmp_path, monkeypatch):
    monkeypatch.setattr(UnlabelledGain, "best", "pseudo_labels")
    result = tk.adapt(PACKAGED, stripes, unlabelled=more, **QUICK)
    assert any("pseudo-labels are used" in reason for reason in result.decision.reasons)
    assert result.metrics["test"].accuracy > 0.8
    np.testing.assert_allclose(result.predict(more, on_error="skip").probabilities.sum(axis=1), 1, rtol=1e-5)


def test_a_path_that_is_none_is_refused_before_the_work(stripes):
    with pytest.raises(OptionError, match="There is no 'nowhere'. unlabelled= takes a folder of images"):
        tk.adapt(PACKAGED, stripes, unlabelled="nowhere", **QUICK)
