"""Several labels per image, and numbers: strata, texts, and who is held back together."""

from __future__ import annotations

import numpy as np
import pytest

from transferkit.core.errors import OptionError
from transferkit.core.serialization import _hints, _restore, from_json, to_json
from transferkit.records import (
    LabelMetrics,
    LabelScore,
    NumberMetrics,
    NumberScore,
    Predictions,
    TargetFolds,
    Targets,
)
from transferkit.records.run import RunRecord


def labels(values, names=("cat", "dog", "owl")):
    return Targets(task="multi_label", names=names, values=np.array(values, dtype=float))


def test_strata_are_the_rarest_label_of_each_image():
    found = labels([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0], [1, 0, 1]])
    # dog is on one image, owl on two, cat on four; the fourth image has no label.
    assert len(set(found.strata.tolist())) == 4
    assert found.strata[2] == found.strata[4] != found.strata[0]


def test_strata_of_numbers_are_bins_in_their_order():
    values = np.random.default_rng(0).permutation(100).astype(float)
    strata = Targets(task="regression", names=("x",), values=values[:, None]).strata
    assert np.bincount(strata).tolist() == [10] * 10
    assert (np.diff(strata[np.argsort(values)]) >= 0).all()


@pytest.mark.parametrize(
    ("values", "match"), [([[2.0]], "0 or 1"), ([[np.nan]], "finite"), ([[0.0, 1.0]], r"\(N, T\)")]
)
def test_what_is_no_label_is_refused(values, match):
    with pytest.raises(OptionError, match=match):
        Targets(task="multi_label", names=("a",), values=np.array(values))


def test_folds_leave_out_groups_whatever_their_stratum():
    numbers = Targets(task="regression", names=("x",), values=np.arange(6.0)[:, None])
    groups = np.array([0, 0, 1, 2, 2, 3])
    folds = TargetFolds(numbers.strata, groups, np.arange(6), numbers)
    assert folds.together.tolist() == groups.tolist()
    assert folds.counting(folds.together).tolist() == [1.0] * 6
    part = folds.take(np.array([5, 0]))
    assert part.targets.values.ravel().tolist() == [5.0, 0.0]
    assert isinstance(part, TargetFolds)
    assert all(len(np.intersect1d(groups[one.train], groups[one.held_back])) == 0 for one in folds.split(2, n_splits=3))


def test_predictions_of_labels_are_those_above_their_thresholds():
    chances = np.array([[0.3, 0.9], [0.1, 0.2]], dtype=np.float32)
    found = Predictions(("a.png", "b.png"), ("cat", "dog"), chances, task="multi_label", thresholds=(0.25, 0.5))
    assert found.labels == ["cat;dog", ""]
    assert found.label_sets == [("cat", "dog"), ()]
    assert found.to_csv().splitlines()[:2] == ["item,label,p(cat),p(dog)", "a.png,cat;dog,0.300000,0.900000"]
    with pytest.raises(OptionError, match="predicted numbers"):
        _ = found.values


def test_predictions_of_numbers_have_a_column_each():
    found = Predictions(("a.png",), ("x", "y"), np.array([[1.5, -20000.0]], dtype=np.float32), task="regression")
    assert found.to_csv() == "item,x,y\na.png,1.5,-20000\n"
    assert '"x": 1.5' in found.to_json()
    with pytest.raises(OptionError, match="several labels"):
        _ = found.label_sets


def test_metrics_of_every_task_come_back_from_json():
    one = LabelScore(
        name="a", positives=3, average_precision=0.5, low=0.2, high=0.8, threshold=0.5, precision=None, recall=0.0
    )
    of_labels = LabelMetrics(
        images=9, mean_average_precision=0.5, low=0.2, high=0.8, f1=0.1, exact=0.3, log_loss=0.4, calibration_error=0.1,
        labels=(one,),
    )  # fmt: skip
    of_numbers = NumberMetrics(
        images=9, r2=-0.5, low=-1.0, high=0.1,
        numbers=(NumberScore(name="x", r2=-0.5, low=-1.0, high=0.1, mae=2.0, rmse=3.0, bias=0.0),),
    )  # fmt: skip
    for found in (of_labels, of_numbers):
        assert from_json(type(found), to_json(found)) == found
        assert _restore(_hints(RunRecord)["metrics"], {"test": to_json(found)})["test"] == found
    assert of_labels.score == 0.5
    assert of_numbers.measure == "R2"
