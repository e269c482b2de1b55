"""Held back means independent: what a whole run says where images come in groups, in copies, or one per class."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

import transferkit as tk
from tests.conftest import PACKAGED, draw_stripes

PATIENTS, FRAMES, TRAINED = 40, 6, 24
CHANCE = 0.5 + 3 * np.sqrt(0.25 / TRAINED)
"""Three standard errors above chance, of a share of the patients that are trained on."""


def smooth(rng: np.random.Generator) -> np.ndarray:
    coarse = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC), dtype=float)


@pytest.fixture(params=["grouped", "copies"])
def random_labels(request, tmp_path):
    """Frames of patients, or copies of pictures, with a label drawn at random for each patient or picture."""
    rng = np.random.default_rng(4)
    rows = []
    for patient in range(PATIENTS):
        picture, label = smooth(rng), ("sick", "well")[int(rng.integers(2))]
        for frame in range(FRAMES if request.param == "grouped" else 3):
            shaken = picture + (rng.normal(0, 40, picture.shape) if request.param == "grouped" else 0)
            name = f"{patient}_{frame}.png"
            Image.fromarray(shaken.clip(0, 255).astype(np.uint8)).save(tmp_path / name)
            rows.append([name, label, *([f"p{patient}"] if request.param == "grouped" else [])])
    with (tmp_path / "list.csv").open("w", newline="") as file:
        header = ["path", "label", "group"][: len(rows[0])]
        csv.writer(file).writerows([header, *rows])
    return tmp_path / "list.csv"


def test_random_labels_promise_no_more_than_chance(random_labels):
    result = tk.adapt(PACKAGED, random_labels, image_size=32, test=0.4, strategy="linear_probe", progress=False)
    evidence, expected = result.evidence, result.decision.expected
    for probe in evidence.probes:
        assert probe.accuracy < CHANCE, probe.stage
    assert evidence.probe("joined").images <= TRAINED  # no more independent images than patients or pictures
    assert all(point.accuracy < CHANCE for point in evidence.curves)
    assert expected is not None
    assert expected.expected_accuracy < CHANCE
    assert expected.low < 0.5 < expected.high  # the truth; 16 test pictures are no measure of it


def test_one_image_per_class_has_an_unknown_accuracy_and_a_model_all_the_same(tmp_path):
    for angle, name in enumerate(["across", "down", "slant"]):
        draw_stripes(tmp_path / "images" / "train" / name / "0.png", angle=angle, seed=angle)
        for number in range(4):
            draw_stripes(tmp_path / "images" / "test" / name / f"{number}.png", angle=angle, seed=10 + number)
    result = tk.adapt(PACKAGED, tmp_path / "images", image_size=48, out=tmp_path / "run", progress=False)
    assert all(probe.accuracy is probe.low is probe.high is None for probe in result.evidence.probes)
    assert result.decision.expected is None
    assert result.decision.strategy == "linear_probe"
    assert result.decision.reasons[0].startswith("Accuracy is unknown: every class has one training image")
    assert result.metrics["test"].accuracy > 0.5
    plain = json.loads((tmp_path / "run" / "result.json").read_text())
    assert plain["evidence"]["probes"][0]["accuracy"] is None
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Which stage classifies best is unknown" in page
    assert tk.load(tmp_path / "run").evidence == result.evidence
    with pytest.raises(tk.TransferkitError, match="no training image can be held back"):
        tk.rank([PACKAGED], tmp_path / "images", image_size=48, progress=False)
    searched = tk.decide(result.evidence)
    assert searched.expected is None


def test_a_class_of_one_image_is_left_out_of_what_is_measured(tmp_path):
    for angle, name in enumerate(["across", "down", "slant"]):
        for number in range(1 if name == "slant" else 10):
            draw_stripes(tmp_path / "train" / name / f"{number}.png", angle=angle, seed=100 * angle + number)
    evidence = tk.analyze(PACKAGED, tmp_path, image_size=48, progress=False)
    assert max(probe.accuracy for probe in evidence.probes) == 1  # the lone image, always wrong, does not count
    assert evidence.data.fewest_groups == 1
    assert "unmeasured_class" in {finding.kind for finding in evidence.data.findings}
