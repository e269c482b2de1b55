"""Fabricated runs: what a report has to cope with, without any training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from transferkit.types import (
    Alternative,
    BackboneSpec,
    DataSummary,
    Decision,
    Evidence,
    Finding,
    HeldOut,
    Metrics,
    Mistake,
    Picture,
    Preprocessing,
    ProbeScore,
    RunRecord,
    StageSpec,
)

STAGES = ("stem", "blocks.0", "top")


def build_record(names: tuple[str, ...], *, per_class: int = 4, right: float = 0.75) -> RunRecord:
    """A complete run over these classes; every class has `per_class` test images, `right` of them recognised."""
    classes = len(names)
    labels = np.repeat(np.arange(classes), per_class)
    hit = np.tile(np.arange(per_class) < right * per_class, classes)
    predicted = np.where(hit, labels, (labels + 1) % classes)
    probabilities = np.full((len(labels), classes), 0.2 / max(1, classes - 1), dtype=np.float32)
    probabilities[np.arange(len(labels)), predicted] = 0.8
    items = tuple(f"test/{names[k]}/{n}.jpg" for n, k in enumerate(labels))
    picture = Picture(jpeg=b"\xff\xd8 not really a picture \xff\xd9", item=items[0])
    probes = [
        ProbeScore(stage=stage, method="ridge", dim=16, accuracy=a, low=a - 0.05, high=a + 0.03, squared_error=0.2)
        for stage, a in zip((*STAGES, "joined"), (0.55, 0.7, 0.65, 0.8125), strict=True)
    ]
    probes.append(ProbeScore(stage="top", method="knn", dim=16, accuracy=0.6, low=0.5, high=0.7, penalty=5))
    scores = Metrics(
        images=len(labels),
        accuracy=right,
        low=0.7,
        high=0.8,
        balanced_accuracy=right,
        log_loss=0.61,
        calibration_error=0.05,
    )
    preprocessing = Preprocessing(
        size=96, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), interpolation="bicubic", origin="the tests"
    )
    return RunRecord(
        evidence=Evidence(
            backbone=BackboneSpec(
                name="packaged/tiny",
                source="packaged",
                architecture="tiny",
                preprocessing=preprocessing,
                pretrained=True,
                stages=tuple(StageSpec(name=name, channels=16, stride=2) for name in STAGES),
                weights_id="w31ght5",
            ),
            data=DataSummary(
                origin="data/things",
                classes=names,
                counts={"train": tuple(range(2, 2 + classes)), "test": (per_class,) * classes},
                split_rule="As the folders say.",
                findings=(
                    Finding(kind="truncated", severity="set_aside", message="1 file is cut off.", items=("a.jpg",)),
                    Finding(kind="imbalance", severity="warning", message="The classes differ in size."),
                ),
                content_id="c0nt3nt",
                side_quantiles=(28.0, 32.0, 64.0),
            ),
            probes=tuple(probes),
            pooling="avg",
            image_size=96,
            similarity=0.4,
            images_computed=12,
        ),
        decision=Decision(
            strategy="linear_probe",
            stage="joined",
            lr=0.0,
            lr_scale=0.0,
            norm="keep",
            mode="evidence",
            reasons=("Little data: 3.0 images per class.",),
            alternatives=(
                Alternative(
                    strategy="few_layers", stage="top", expected_accuracy=0.7, low=0.6, high=0.8, cost_seconds=90.0
                ),
            ),
        ),
        metrics={"test": scores},
        seconds={"frozen_pass": 2.0, "fit": 1.2, "total": 3.2},
        environment={"seed": 0, "versions": {"torch": "2.4"}},
        command="transferkit adapt data=folder",
        held_out=HeldOut(split="test", labels=labels, probabilities=probabilities, items=items),
        samples=dict.fromkeys(names, (picture,)),
        mistakes=(Mistake(picture=picture, true=names[0], predicted=names[1], confidence=0.8),),
    )


@pytest.fixture(scope="session")
def make_record() -> Callable[..., RunRecord]:
    """The builder itself, for tests that choose the classes."""
    return build_record


@pytest.fixture
def record() -> RunRecord:
    """Three classes, everything there."""
    return build_record(("ant", "bee", "cat"))


@pytest.fixture(scope="session")
def huge_record() -> RunRecord:
    """A thousand classes."""
    return build_record(tuple(f"class number {k}" for k in range(1000)))


@pytest.fixture
def bare_record(record: RunRecord) -> RunRecord:
    """Nothing that could be left out."""
    data = DataSummary(origin="x", classes=("a", "b"), counts={"train": (1, 0)}, split_rule="")
    backbone = BackboneSpec(
        name="module",
        source="module",
        architecture="M",
        pretrained=False,
        preprocessing=record.evidence.backbone.preprocessing,
    )
    return RunRecord(
        evidence=Evidence(backbone=backbone, data=data, probes=(), pooling="avg", image_size=32),
        decision=replace(record.decision, alternatives=()),
        metrics={},
        seconds={},
        environment={},
        command="",
    )
