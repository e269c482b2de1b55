"""Prediction sets from a run: in Python, in files, on the command line, and in the report."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

import transferkit as tk
from tests.conftest import PACKAGED
from transferkit.cli import main
from transferkit.core.errors import OptionError
from transferkit.records import Predictions


@pytest.fixture
def run(stripes, tmp_path):
    out = tmp_path / "run"
    tk.adapt(
        PACKAGED, stripes, image_size=32, views=1, geometry="crop", strategy="linear_probe", stage="joined",
        progress=False, out=out,
    )  # fmt: skip
    return out


def test_sets_hold_the_label_and_grow_with_the_coverage(run, stripes):
    result = tk.load(run)
    small, large = (result.predict(stripes / "test", coverage=coverage) for coverage in (0.5, 0.95))
    assert result.predict(stripes / "test").sets is None
    assert (small.sets <= large.sets).all()
    assert [found[0] for found in small.set_names] == small.labels
    np.testing.assert_array_equal(small.probabilities, large.probabilities)


def test_the_command_line_writes_them(run, stripes, tmp_path, capsys):
    out = tmp_path / "answers.csv"
    main(["predict", f"run={run}", f"images={stripes / 'test' / 'down'}", f"out={out}", "coverage=0.9"])
    rows = list(csv.DictReader(io.StringIO(out.read_text(encoding="utf-8"))))
    assert all(row["label"] in row["set"].split("|") for row in rows)
    capsys.readouterr()
    main(["predict", f"run={run}", f"images={stripes / 'test' / 'down'}", "format=json", "coverage=0.9"])
    assert all(row["label"] in row["set"] for row in json.loads(capsys.readouterr().out))


def test_the_report_says_how_large_they_are(run):
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "Prediction sets (predict with coverage=0.9) are calibrated on 24 training images" in html
    assert [one.coverage for one in tk.load(run).record.prediction_sets] == [0.8, 0.9, 0.95]


@pytest.mark.parametrize("words", [[], ["dry_run=true"]])
def test_what_cannot_be_calibrated_is_refused(run, stripes, words, capsys):
    with pytest.raises(SystemExit):
        main(["predict", f"run={run}", f"images={stripes / 'test'}", "coverage=90", *words])
    assert "0.9 is 90 %. Got 90" in capsys.readouterr().err
    (run / "held_back.safetensors").unlink()
    with pytest.raises(SystemExit):
        main(["predict", f"run={run}", f"images={stripes / 'test'}", "coverage=0.9", *words])
    assert "no held-back scores" in capsys.readouterr().err
    with pytest.raises(OptionError, match="no held-back scores"):
        tk.load(run).predict(stripes / "test", coverage=0.9)


def test_failures_keep_their_row():
    from transferkit.records import FailedImage

    found = Predictions(
        items=("a.png",), classes=("cat", "dog"), probabilities=np.array([[0.4, 0.6]], dtype=np.float32),
        failures=(FailedImage("b.png", "broken", 0),), sets=np.array([[True, True]]),
    )  # fmt: skip
    header, failed, row = csv.reader(io.StringIO(found.to_csv()))
    assert header == ["item", "label", "confidence", "set", "p(cat)", "p(dog)", "error"]
    assert failed == ["b.png", "", "", "", "", "", "broken"]
    assert row[:4] == ["a.png", "dog", "0.600000", "dog|cat"]
    assert json.loads(found.to_json())[1]["set"] == ["dog", "cat"]
