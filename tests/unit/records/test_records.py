from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import transferkit as tk
from transferkit import records
from transferkit.core.errors import OptionError
from transferkit.core.limits import check_image_size
from transferkit.records import (
    Alternative,
    BackboneSpec,
    CurvePoint,
    DataSummary,
    Decision,
    Evidence,
    HeldOut,
    MeasureScore,
    Metrics,
    Preprocessing,
    ProbeScore,
)

PLAIN = Preprocessing(size=224, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=0.875, origin="here")
SUMMARY = DataSummary(
    origin="here",
    classes=("cat", "dog", "owl"),
    counts={"train": (10, 40, 0), "test": (1, 2, 3)},
    split_rule="as given",
)
SPEC = BackboneSpec(name="toy", source="module", architecture="toy", preprocessing=PLAIN, pretrained=True)
PROBE = {"stage": "top", "method": "ridge", "dim": 8, "accuracy": 0.5, "low": 0.4, "high": 0.6}
METRICS = {
    "images": 4,
    "accuracy": 0.5,
    "low": 0.4,
    "high": 0.6,
    "balanced_accuracy": 0.5,
    "log_loss": 1.0,
    "calibration_error": 0.1,
}
OFFER = {
    "strategy": "few_layers",
    "stage": "top",
    "expected_accuracy": 0.5,
    "low": 0.4,
    "high": 0.6,
    "cost_seconds": 9.0,
}
DECISION = {
    "strategy": "linear_probe",
    "stage": "top",
    "lr": 0.0,
    "lr_scale": 0.0,
    "norm": "frozen",
    "mode": "rule",
    "reasons": ("asked for",),
}
EVIDENCE = {
    "backbone": SPEC,
    "data": SUMMARY,
    "probes": (ProbeScore(**PROBE), ProbeScore(**{**PROBE, "method": "knn", "accuracy": 0.45})),
    "pooling": "avg",
    "image_size": 224,
}
POINT = {"stage": "top", "images": 8, "accuracy": 0.5, "error": 0.1}
OTHERS = {
    "Fold", "Folds", "TargetFolds",  # arrays, not fields
    "PixelClassifier", "Predictor",  # protocols
    "FailedImage", "Predictions",  # made by position since before they were records
}  # fmt: skip
TRAVELLERS = [
    found for name in records.__all__ if isinstance(found := getattr(records, name), type) and name not in OTHERS
]


@pytest.mark.parametrize("cls", TRAVELLERS, ids=lambda cls: cls.__name__)
def test_everything_that_travels_is_frozen_keyword_only_and_documented(cls):
    fields = dataclasses.fields(cls)
    assert cls.__dataclass_params__.frozen
    assert all(field.kw_only for field in fields)
    # "low, high: 95 % interval" documents two.
    documented = {name for line in cls.__doc__.split("\n") for name in line.partition(":")[0].strip().split(", ")}
    assert {field.name for field in fields} <= documented


@pytest.mark.parametrize(
    ("cls", "valid", "changed", "message"),
    [
        (Preprocessing, dataclasses.asdict(PLAIN), {"size": 7}, r"Preprocessing.size must be >= 8 pixels, got 7"),
        (Preprocessing, dataclasses.asdict(PLAIN), {"crop_pct": 0.0}, r"crop_pct must be finite and > 0, got 0.0"),
        (Preprocessing, dataclasses.asdict(PLAIN), {"crop_pct": 2.1}, r"crop_pct must be <= 2, got 2.1"),
        (Preprocessing, dataclasses.asdict(PLAIN), {"std": (1.0, 0.0, 1.0)}, r"std must be finite and > 0, got 0.0"),
        (Preprocessing, dataclasses.asdict(PLAIN), {"std": (math.nan,) * 3}, r"std must be finite and > 0, got nan"),
        (ProbeScore, PROBE, {"accuracy": 1.01}, r"ProbeScore.accuracy must be in \[0, 1\], got 1.01"),
        (ProbeScore, PROBE, {"low": -0.1}, r"ProbeScore.low must be in \[0, 1\], got -0.1"),
        (ProbeScore, PROBE, {"high": math.nan}, r"ProbeScore.high must be in \[0, 1\], got nan"),
        (Alternative, OFFER, {"expected_accuracy": 2}, r"Alternative.expected_accuracy must be in \[0, 1\], got 2"),
        (Metrics, METRICS, {"balanced_accuracy": 50.0}, r"Metrics.balanced_accuracy must be in \[0, 1\], got 50.0"),
        (Metrics, METRICS, {"calibration_error": -1}, r"Metrics.calibration_error must be in \[0, 1\], got -1"),
        (Decision, DECISION, {"lr": math.nan}, r"Decision.lr must be finite and >= 0, got nan"),
        (Decision, DECISION, {"lr_scale": -0.1}, r"Decision.lr_scale must be finite and >= 0, got -0.1"),
        (Decision, DECISION, {"reasons": ()}, r"Decision.reasons must name at least one reason"),
        (CurvePoint, POINT, {"images": 0}, r"CurvePoint.images must be >= 1, got 0"),
        (CurvePoint, POINT, {"accuracy": 50.0}, r"CurvePoint.accuracy must be in \[0, 1\], got 50.0"),
        (CurvePoint, POINT, {"error": math.nan}, r"CurvePoint.error must be finite and >= 0, got nan"),
        (Evidence, EVIDENCE, {"similarity": 1.5}, r"Evidence.similarity must be in \[0, 1\], got 1.5"),
    ],
)
def test_values_out_of_range_are_refused(cls, valid, changed, message):
    cls(**valid)
    with pytest.raises(ValueError, match=message):
        cls(**{**valid, **changed})


@settings(deadline=None)
@given(pct=st.integers(1, 1000), size=st.integers(8, 1024))
def test_resize_side_is_the_floor_of_the_exact_quotient(pct, size):
    # crop_pct = pct / 1000, so the quotient is a fraction of integers.
    assert dataclasses.replace(PLAIN, size=size, crop_pct=pct / 1000).resize_side == size * 1000 // pct


def test_resize_side_of_the_usual_checkpoints():
    assert PLAIN.resize_side == 256
    assert dataclasses.replace(PLAIN, crop_pct=224 / 248).resize_side == 248


def test_another_size_is_noted_in_the_origin():
    assert PLAIN.at(None) is PLAIN
    assert PLAIN.at(224) is PLAIN
    assert PLAIN.at(96) == dataclasses.replace(PLAIN, size=96, origin="here; size 224 -> 96 on request")


def test_native_size_stays_on_record():
    small = SPEC.at(96)
    assert (small.preprocessing.size, small.native_size) == (96, 224)
    assert small.at(160).native_size == 224
    assert SPEC.at(None).native_size == 224


def test_summary_counts():
    assert SUMMARY.num_classes == 3
    assert (SUMMARY.size("train"), SUMMARY.size("test"), SUMMARY.size("val")) == (50, 6, 0)
    assert SUMMARY.train_images == 50
    assert SUMMARY.train_per_class == pytest.approx(50 / 3)
    assert SUMMARY.imbalance == 4  # the empty class does not count


def test_summary_refuses_counts_that_do_not_fit_its_classes():
    with pytest.raises(ValueError, match=r"counts\['val'\] needs one count per class, got 2 for 3"):
        dataclasses.replace(SUMMARY, counts={"train": (1, 1, 1), "val": (1, 1)})
    with pytest.raises(ValueError, match="needs 2 classes or more, got 1"):
        DataSummary(origin="", classes=("cat",), counts={"train": (3,)}, split_rule="")


def test_probe_is_found_by_stage_and_method():
    looked = Evidence(**EVIDENCE)
    assert looked.probe("top").accuracy == 0.5
    assert looked.probe("top", "knn").accuracy == 0.45
    with pytest.raises(KeyError, match="No ridge probe of stage 'stem'. Known: top."):
        looked.probe("stem")


@pytest.mark.parametrize(("labels", "shape", "items"), [(3, (2, 2), 2), (2, (2, 2), 3), (2, (2,), 2)])
def test_held_out_answers_must_match_in_number(labels, shape, items):
    with pytest.raises(ValueError, match=r"HeldOut needs N labels, \(N, K\) probabilities and N items, got"):
        HeldOut(
            split="val",
            labels=np.zeros(labels, dtype=np.int64),
            probabilities=np.zeros(shape, dtype=np.float32),
            items=("x",) * items,
        )


def test_a_measure_has_a_finite_value_or_a_reason():
    MeasureScore(measure="gbc", stage="top", value=None, seconds=0.0, reason="It failed.")
    for value, reason in ((None, ""), (float("nan"), ""), (0.5, "It failed.")):
        with pytest.raises(OptionError, match="MeasureScore 'gbc' needs a finite value or a reason"):
            MeasureScore(measure="gbc", stage="top", value=value, seconds=0.0, reason=reason)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (100_000, "a whole number of 8 or more, up to 8192, got 100000"),
        ("96", "a whole number of 8 or more, got '96'. For example image_size=96"),
        ([96, 96], r"got \[96, 96\]. Give one number: image_size=96."),
        ((64, 48), r"got \(64, 48\). For example"),
        (96.0, "got 96.0"),
        (True, "got True"),
        (7, "got 7"),
        (-96, "got -96"),
    ],
)
def test_an_image_size_that_is_none_is_said_before_any_work(size, message):
    for verb in (tk.adapt, tk.analyze):
        with pytest.raises(OptionError, match=message):
            verb("packaged/tf_efficientnet_lite0", "nowhere", image_size=size)
    with pytest.raises(OptionError, match=message):
        tk.rank("packaged/*", "nowhere", image_size=size)
    with pytest.raises(OptionError, match=message):
        tk.load_backbone("packaged/tf_efficientnet_lite0", image_size=size)


def test_a_numpy_integer_is_an_image_size():
    check_image_size(np.int64(96))
    check_image_size(None)
