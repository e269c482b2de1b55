"""`zeroshot` on small pictures: classes without images are named, saved, loaded and refused as promised."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

import transferkit as tk
from transferkit.core.errors import DataError, OptionError

BACKBONE = {"model": "packaged/tf_efficientnet_lite0", "image_size": 32, "views": 1, "progress": False}
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 40), "grey": (130, 130, 130), "blue": (50, 60, 230)}


def draw(path, colour, striped, seed):
    """A noisy patch of a colour, striped or plain."""
    rng = np.random.default_rng(seed)
    wave = 50 * np.sin(np.arange(40) / 2 + rng.uniform(0, 6)) if striped else np.zeros(40)
    pixels = np.array(COLOURS[colour]) + wave[:, None, None] + rng.normal(0, 12, (40, 40, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """Six of eight combinations of colour and stripes with images, two in a folder of their own; and the table."""
    root = tmp_path_factory.mktemp("zero shot é")
    names = [(colour, striped) for colour in COLOURS for striped in (False, True)]
    for number, (colour, striped) in enumerate(names):
        name = f"{colour} {'striped' if striped else 'plain'}"
        folder = root / ("new" if number in (5, 7) else "seen/train") / name
        for at in range(8):
            draw(folder / f"{at}.png", colour, striped, seed=100 * number + at)
    with (root / "table.csv").open("w", newline="") as file:
        rows = [(f"{c} {'striped' if s else 'plain'}", *(int(c == one) for one in COLOURS), int(s)) for c, s in names]
        csv.writer(file).writerows([("class", *COLOURS, "striped"), *rows])
    return root


def test_a_class_without_images_is_named_and_survives_the_folder(patches, tmp_path):
    out = tmp_path / "a run"
    result = tk.zeroshot(data=patches / "seen", attributes=patches / "table.csv", out=out, **BACKBONE)
    assert result.classes[-1] == "blue striped"
    found = result.record.zero_shot
    assert found.unseen == ("grey striped", "blue striped")
    assert found.attributes == ("red", "green", "grey", "blue", "striped")
    assert any("harmonic mean" in reason for reason in result.decision.reasons)
    named = result.predict(patches / "new" / "blue striped").labels
    assert np.mean([label == "blue striped" for label in named]) > 0.5
    answers = result.predict(patches / "new")
    again = tk.load(out)
    assert again.record.zero_shot == found
    np.testing.assert_array_equal(again.predict(patches / "new").probabilities, answers.probabilities)
    assert again.evaluate(patches / "new", progress=False).accuracy > 0.5
    assert "blue striped" in (out / "report.html").read_text(encoding="utf-8")


def test_what_does_not_fit_is_refused_before_the_frozen_pass(patches, monkeypatch):
    monkeypatch.setattr("transferkit.api.describing.open_session", lambda *_, **__: pytest.fail("opened"))
    seen = {"data": patches / "seen", **BACKBONE}
    table = {"red plain": {"a": 1, "b": 0}, "new": {"a": 0, "b": 1}}
    with pytest.raises(DataError, match="class 'green plain' has images and no row"):
        tk.zeroshot(attributes=table, **seen)
    with pytest.raises(OptionError, match="zeroshot needs either attributes=FILE"):
        tk.zeroshot(attributes=None, **seen)
    with pytest.raises(OptionError, match="Unknown method 'esz'"):
        tk.zeroshot(attributes=table, method="esz", **seen)


def test_an_attribute_that_no_class_with_images_differs_in_is_left_out(patches):
    with (patches / "table.csv").open(newline="") as file:
        rows = {row[0]: row[1:] for row in csv.reader(file)}
    names = rows.pop("class")
    table = {
        name: {**dict(zip(names, values, strict=True)), "flies": int(name == "blue striped")}
        for name, values in rows.items()
    }
    result = tk.zeroshot(data=patches / "seen", attributes=table, **BACKBONE)
    assert "flies" not in result.record.zero_shot.attributes
    assert any("no" in reason and "flies" in reason for reason in result.decision.reasons)


def test_dry_run_tells_the_cost_and_finds_what_is_wrong(patches):
    arguments = {**BACKBONE, "data": patches / "seen", "attributes": patches / "table.csv"}
    plan = tk.dry_run("zeroshot", arguments)
    assert plan.verb == "zeroshot"
    assert plan.seconds_high > 0
    with pytest.raises(DataError, match="There is no file"):
        tk.dry_run("zeroshot", {**arguments, "attributes": "none.csv"})
