"""Fabricated runs: what a report has to cope with, without any training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from transferkit.records import (
    Alternative,
    BackboneSpec,
    Candidate,
    Claim,
    DataSummary,
    Decision,
    Epoch,
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
    TrainingRecord,
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


def build_training() -> TrainingRecord:
    """Two phases of 2 and 4 epochs over 100 held-back images; the fifth epoch is the best, the average is kept."""
    whole = {"stem": 1_000, "blocks.0": 1_200_000, "top": 2_000_000, "head": 51_000}
    learning = {"head first": {"head": 0.01}, "last stages": {"top": 0.001, "head": 0.002}}
    claims = tuple(
        Claim(
            phase=phase,
            rule=stage if stage in rates else "*",
            stage=stage,
            tensors=2,
            parameters=numbers,
            lr=rates.get(stage, 0.0),
            decayed=numbers - 100 if stage in rates else 0,
            statistics="none" if stage == "head" else "updated" if stage in rates else "fixed",
        )
        for phase, rates in learning.items()
        for stage, numbers in whole.items()
    )
    epochs = tuple(
        Epoch(
            number=n,
            phase="head first" if n < 2 else "last stages",
            train_loss=2.0 - 0.3 * n,
            lr=0.01 if n < 2 else 0.002,
            seconds=10.0,
            val_loss=0.5 + 0.1 * abs(n - 4),
            val_accuracy=0.9 - 0.02 * abs(n - 4),
        )
        for n in range(6)
    )
    candidates = (
        Candidate(name="probe", weight=0.0, accuracy=0.85, log_loss=0.55),
        Candidate(name="average", weight=0.5, accuracy=0.92, log_loss=0.45),
        Candidate(name="fine-tuned", weight=1.0, accuracy=0.9, log_loss=0.5),
    )
    return TrainingRecord(
        claims=claims,
        epochs=epochs,
        best_epoch=4,
        held_back=100,
        how="They are a fifth of the training images.",
        candidates=candidates,
        kept=candidates[1],
        notes=("The batch was halved to 16.",),
    )


@pytest.fixture(scope="session")
def make_record() -> Callable[..., RunRecord]:
    """The builder itself, for tests that choose the classes."""
    return build_record


@pytest.fixture
def record() -> RunRecord:
    """Three classes, everything there."""
    return build_record(("ant", "bee", "cat"))


@pytest.fixture
def trained_record(record: RunRecord) -> RunRecord:
    """The same, fine-tuned."""
    decision = replace(record.decision, strategy="few_layers", stage="top", lr=0.002, lr_scale=0.1)
    return replace(record, decision=decision, training=build_training())


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
