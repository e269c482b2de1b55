"""Likely label errors in the report of a run."""

from __future__ import annotations

import json

import pytest

import transferkit as tk
from transferkit.workflow import label_review


@pytest.fixture
def mislabelled(stripes):
    """The striped images, one of them in the wrong folder."""
    (stripes / "train" / "across" / "3.png").rename(stripes / "train" / "down" / "wrong.png")
    return stripes


def adapt(data, out, **options):
    return tk.adapt(
        "packaged/tf_efficientnet_lite0", data, image_size=32, views=1, strategy="linear_probe", progress=False,
        out=out, **options,
    )  # fmt: skip


def test_a_wrong_label_is_shown_in_the_report_and_named_in_the_result(mislabelled, tmp_path):
    (row,) = adapt(mislabelled, tmp_path / "run").record.label_errors
    assert (row.item, row.label, row.suggested) == ("train/down/wrong.png", "down", "across")
    assert row.picture is not None
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Labels to check" in page
    assert "labelled down, looks like across: train/down/wrong.png" in page
    plain = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert [(one["item"], one["picture"]) for one in plain["label_errors"]] == [("train/down/wrong.png", None)]


def test_it_is_still_there_when_the_test_images_are_scored_later(mislabelled, tmp_path):
    adapt(mislabelled, tmp_path / "run", evaluate=False)
    loaded = tk.load(tmp_path / "run")
    assert loaded.record.label_errors[0].picture is None
    loaded.evaluate()
    assert loaded.record.label_errors[0].picture is not None
    assert "looks like across: train/down/wrong.png" in loaded.report(tmp_path / "later.html").read_text("utf-8")


def test_clean_labels_are_not_mentioned(stripes, tmp_path):
    assert adapt(stripes, tmp_path / "run").record.label_errors == ()
    assert "Labels to check" not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_more_images_than_can_be_compared_in_passing_are_left_to_the_verb(mislabelled, tmp_path, monkeypatch):
    monkeypatch.setattr(label_review, "COMPARED_AT_MOST", 20)
    assert adapt(mislabelled, tmp_path / "run").record.label_errors == ()


def test_a_class_with_one_image_is_no_error(stripes, tmp_path):
    for name in ("across", "down", "slant"):
        for number in range(1, 8):
            (stripes / "train" / name / f"{number}.png").unlink()
    assert adapt(stripes, tmp_path / "run").record.label_errors == ()
