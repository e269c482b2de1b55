"""Through JSON text and back: what was saved is what is read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferkit.core.serialization import from_json, to_json
from transferkit.records import (
    Alternative,
    BackboneSpec,
    CurvePoint,
    DataSummary,
    Decision,
    Evidence,
    Finding,
    Metrics,
    Preprocessing,
    ProbeScore,
    StageSpec,
)

EVIDENCE = Evidence(
    backbone=BackboneSpec(
        name="packaged/toy",
        source="packaged",
        architecture="toy",
        preprocessing=Preprocessing(
            size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bicubic", crop_pct=0.875
        ),
        pretrained=True,
        num_classes=2,
        class_names=("Katze 🐈", 'dog, "quoted"'),
        native_size=224,
        license=None,
        stages=(
            StageSpec(name="stem", channels=8, stride=2),
            StageSpec(name="top", channels=16, stride=None),
        ),
        weights_id="0123abcd",
        parameters=123_456_789,
    ),
    data=DataSummary(
        origin="a folder",
        classes=("cat", "dog"),
        counts={"train": (30, 31), "val": (0, 1), "test": (5, 6)},
        split_rule="as given",
        findings=(
            Finding(kind="duplicate", severity="warning", message="2 images are equal.", items=("a.png", "b.png")),
            Finding(kind="truncated", severity="set_aside", message="1 image is cut short."),
        ),
        content_id="beef",
        side_quantiles=(24.0, 32.5, 100.0),
    ),
    probes=(
        ProbeScore(
            stage="top",
            method="ridge",
            dim=16,
            accuracy=0.1 + 0.2,  # 0.30000000000000004: digits must survive
            low=0.25,
            high=0.75,
            squared_error=1e-17,
            penalty=1.0,
        ),
        ProbeScore(stage="top", method="knn", dim=16, accuracy=1.0, low=0.0, high=1.0),
    ),
    pooling="avg+max",
    image_size=96,
    similarity=None,
    seconds={"frozen pass": 1.25, "probe": 0.5},
    images_computed=70,
)
DECISION = Decision(
    strategy="few_layers",
    stage="joined",
    lr=1.25e-3,
    lr_scale=0.1,
    norm="keep",
    mode="rule",
    reasons=("one\nline", "two"),
    alternatives=(
        Alternative(strategy="linear_probe", stage="top", expected_accuracy=0.5, low=0.4, high=0.6, cost_seconds=0.25),
    ),
)


@pytest.mark.parametrize("value", [EVIDENCE, dataclasses.replace(EVIDENCE, similarity=0.0), DECISION])
def test_round_trip_through_text(value):
    text = json.dumps(to_json(value), allow_nan=False)
    back = from_json(type(value), json.loads(text))
    assert back == value
    # Equal is not enough: a list is no tuple, and what was hashable must stay so.
    assert repr(back) == repr(value)


@settings(deadline=None)
@given(
    accuracy=st.floats(0, 1),
    penalty=st.none() | st.floats(0, 1e6),
    stage=st.text(max_size=20),
    dim=st.integers(1, 10**9),
)
def test_round_trip_of_any_numbers_and_names(accuracy, penalty, stage, dim):
    score = ProbeScore(stage=stage, method="ridge", dim=dim, accuracy=accuracy, low=0.0, high=1.0, penalty=penalty)
    assert from_json(ProbeScore, json.loads(json.dumps(to_json(score)))) == score


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deep:
    """Every form that the type hints of a record may take."""

    by_split: Mapping[str, Metrics]
    pairs: Mapping[str, tuple[tuple[int, int], ...]]
    maybe: Metrics | None = None


def test_round_trip_of_nested_mappings_tuples_and_options():
    metrics = Metrics(
        images=4, accuracy=0.5, low=0.4, high=0.6, balanced_accuracy=0.5, log_loss=1.0, calibration_error=0.1
    )
    for deep in (
        Deep(by_split={"test": metrics}, pairs={"a": ((1, 2), (3, 4)), "b": ()}, maybe=metrics),
        Deep(by_split={}, pairs={}),
    ):
        assert from_json(Deep, json.loads(json.dumps(to_json(deep)))) == deep


def test_fields_can_be_left_out_of_the_outermost_only():
    plain = to_json(DECISION, leave_out=frozenset({"alternatives", "stage"}))
    assert "stage" not in plain
    assert "alternatives" not in plain
    assert to_json(EVIDENCE, leave_out=frozenset({"name"}))["backbone"]["name"] == "packaged/toy"


def test_fields_of_a_later_version_are_passed_over():
    plain = {**to_json(DECISION), "from_the_future": 1}
    plain["alternatives"][0]["also"] = 2
    assert from_json(Decision, plain) == DECISION


def test_fields_with_a_default_may_be_absent():
    plain = to_json(DECISION)
    del plain["alternatives"]
    assert from_json(Decision, plain) == dataclasses.replace(DECISION, alternatives=())


def test_what_is_read_checks_itself():
    with pytest.raises(ValueError, match="Decision.lr must be finite and >= 0, got -1"):
        from_json(Decision, {**to_json(DECISION), "lr": -1})


def test_evidence_saved_before_there_were_curves_still_loads():
    points = tuple(CurvePoint(stage="top", images=n, accuracy=0.5, error=0.1) for n in (4, 8))
    evidence = dataclasses.replace(EVIDENCE, curves=points)
    plain = json.loads(json.dumps(to_json(evidence)))
    assert from_json(Evidence, plain) == evidence
    del plain["curves"]
    assert from_json(Evidence, plain).curves == ()
