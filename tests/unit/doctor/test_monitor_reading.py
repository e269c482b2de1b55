"""What a record says: symptoms where it must, a paragraph where all is well."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from transferkit.core.errors import OptionError
from transferkit.core.serialization import from_json, to_json
from transferkit.doctor.curve_reading import Curves, read_curves
from transferkit.doctor.monitor_reading import diagnose_training, read_monitor, read_training
from transferkit.records import Candidate, Epoch, Histogram, MonitoredStage, MonitorRecord, TrainingRecord

BINS = 28
FALLING = Curves(train_loss=[2.3, 1.5, 1.0, 0.7, 0.5, 0.4], classes=10)


def stage(ratio: float | None = 1e-3, **facts) -> MonitoredStage:
    known = {"ratio": (ratio,) * 3, "gradient": (1.0, 0.7, 0.5), "noise": (None, 0.5, 0.5), "stage": "top"}
    return MonitoredStage(**{**known, **facts})


def record(*stages: MonitoredStage, **facts) -> MonitorRecord:
    known = {
        "every": 20,
        "steps": (0, 20, 40),
        "losses": (2.3, 1.0, 0.4),
        "gradients": (1.0, 0.7, 0.5),
        "stages": stages,
    }
    return MonitorRecord(**{**known, **facts})


def test_a_healthy_run_is_one_reassuring_paragraph():
    stages = (stage(similarity=(0.9, 0.8), dead=(0.1, 0.2)), stage(2e-4, stage="stem", similarity=(1.0, 0.99)))
    symptoms, lines = read_training(FALLING, record(*stages, compared=(10, 40)))
    assert symptoms == ()
    assert lines == (
        "Healthy: the training loss goes from 2.3 to 0.4 in 6 epochs, and all losses and gradients are finite. A step "
        "changes the trained parts by 0.02 to 0.1 % of their weights (median; 0.01 to 1 % is usual). At most 20 % of a "
        "stage's rectified units are dead. Features moved most in top: similarity to the start 0.80 (1 is unchanged).",
    )


@pytest.mark.parametrize(
    ("one", "cause"),
    [
        (stage(0.3), "updates_too_large"),
        (stage(1e-8), "updates_too_small"),
        (stage(dead=(0.1, 0.99)), "dying_units"),
        (stage(gradients=(Histogram(counts=(1,) * BINS, not_finite=2),)), "gradient_not_finite"),
    ],
)
def test_what_is_wrong_is_named(one, cause):
    (symptom,) = read_monitor(record(one))
    assert symptom.cause == cause
    assert read_monitor(record(stage())) == ()


def test_small_updates_of_some_stages_are_meant():
    assert read_monitor(record(stage(1e-8, stage="stem"), stage(1e-3))) == ()


def test_late_units_that_answer_to_few_classes_are_not_dying():
    assert read_monitor(record(stage(dead=(0.41, 0.87)))) == ()


def test_a_fit_that_never_began_says_nothing_of_updates():
    assert read_monitor(record(stage(None))) == ()


def test_the_capsule_is_in_the_sentence_and_nothing_is_said_twice():
    broken = Curves(train_loss=[2.3, float("nan")], classes=10)
    lost = stage(gradients=(Histogram(counts=(0,) * BINS, not_finite=2),))
    symptoms, lines = read_training(broken, record(lost, capsule="a/nan_capsule.pt"), not_finite="In step 3 it broke.")
    assert [one.cause for one in symptoms] == ["not_finite"]
    assert lines[0].startswith("Alarm: In step 3 it broke. The step is kept in a/nan_capsule.pt")


def test_records_check_themselves_and_travel_through_json():
    whole = record(stage(similarity=(None,), weights=(Histogram(counts=(2,) * BINS),)), compared=(5,), missing=("x",))
    assert from_json(MonitorRecord, json.loads(json.dumps(to_json(whole)))) == whole
    with pytest.raises(OptionError, match="MonitorRecord has 3 steps, but a series of 1 values"):
        record(losses=(1.0,))
    with pytest.raises(OptionError, match="2 comparisons, but 1 values of top"):
        record(stage(similarity=(1.0,)), compared=(1, 2))
    with pytest.raises(OptionError, match="A Histogram has 28 bins, got 3"):
        Histogram(counts=(1, 2, 3))


def test_a_run_is_diagnosed_with_its_capsule_relative_to_its_folder():
    epochs = tuple(Epoch(number=n, phase="all", train_loss=loss, lr=0.1, seconds=1.0, val_loss=loss, val_accuracy=0.5)
                   for n, loss in enumerate(FALLING.train_loss))  # fmt: skip
    kept = Candidate(name="probe", weight=0.0, accuracy=0.5, log_loss=1.0)
    training = TrainingRecord(
        claims=(), epochs=epochs, best_epoch=5, held_back=40, how="", candidates=(kept,), kept=kept
    )
    assert diagnose_training(training, classes=10).symptoms == ()
    watched = replace(training, monitor=record(stage(), capsule="/runs/one/training/nan_capsule.pt"))
    found = diagnose_training(watched, classes=10, folder="/runs/one")
    assert found.monitor.capsule == "training/nan_capsule.pt"
    assert found.symptoms[0].cause == "not_finite"


def test_a_classifier_that_makes_hardly_a_mistake_has_no_symptom():
    curves = Curves(
        train_loss=[0.9, 0.45, 0.38, 0.16, 0.09, 0.02, 0.01],
        held_back_loss=[0.25, 0.1, 0.02, 0.0, 0.02, 0.04, 0.04],
        held_back_accuracy=[0.9, 0.96, 0.98, 1.0, 0.987, 0.993, 0.993],
        classes=10,
        held_back_images=281,
    )
    assert read_curves(curves) == ()
