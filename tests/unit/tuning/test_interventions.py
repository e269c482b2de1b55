"""Remedies as steps of settings, on symptoms and curves without training."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferkit.core.errors import OptionError
from transferkit.doctor.segment_reading import read_segment
from transferkit.options import Recipe
from transferkit.records import Epoch, Intervention, MonitoredStage, MonitorRecord, Symptom
from transferkit.tuning.interventions import MOST_INTERVENTIONS, REMEDIES, Limits, choose_change, is_kept, key_of
from transferkit.tuning.panda import Care, Segment, plan_checkpoints

FIRST = {
    "train.lr": 1e-3, "train.augment": "light", "train.dropout": 0.0, "train.weight_decay": 0.01,
    "train.label_smoothing": 0.0, "train.schedule": "cosine", "unfreeze": 3,
}  # fmt: skip
LIMITS = Limits(lr=1e-3, stages=6)


def symptom(cause):
    return Symptom(cause=cause, severity="note", evidence="seen", remedy="do")


def change_for(cause, tried=(), **settings):
    found = choose_change([symptom(cause)], {**FIRST, **settings}, LIMITS, tried=tried)
    return None if found is None else found[1]


@pytest.mark.parametrize(
    ("cause", "setting", "after"),
    [
        ("lr_too_high", "train.lr", 3.33e-4),
        ("divergence", "train.lr", 3.33e-4),
        ("not_finite", "train.lr", 3.33e-4),
        ("lr_too_low", "train.lr", 3e-3),
        ("no_gain", "train.lr", 3e-3),
        ("updates_too_small", "train.lr", 3e-3),
        ("overfitting", "train.augment", "medium"),
        ("label_noise", "train.label_smoothing", 0.1),
        ("underfitting", "train.augment", "none"),
        ("plateau", "train.lr", 3.33e-4),
    ],
)
def test_a_symptom_leads_to_what_its_remedy_names(cause, setting, after):
    change = change_for(cause)
    assert (change.setting, change.after) == (setting, pytest.approx(after))


def test_what_was_tried_gives_way_to_the_next_remedy():
    tried, changes = set(), []
    while (change := change_for("overfitting", tried)) is not None:
        tried.add(change.key)
        changes.append((change.setting, change.after))
    assert changes == [
        ("train.augment", "medium"),
        ("train.dropout", 0.2),
        ("train.weight_decay", 0.03),
        ("unfreeze", 2),
    ]


def test_a_constant_rate_decays_before_it_is_lowered():
    assert change_for("plateau", **{"train.schedule": "constant"}).after == "cosine"


def test_rates_come_before_regularisation_and_healthy_trainings_are_left_alone():
    found, change = choose_change([symptom("overfitting"), symptom("lr_too_high")], FIRST, LIMITS)
    assert found.cause == "lr_too_high"
    assert change.setting == "train.lr"
    assert choose_change([], FIRST, LIMITS) is None
    assert choose_change([symptom("labels_unrelated"), symptom("bad_start")], FIRST, LIMITS) is None


def test_depth_stays_within_the_backbone_and_missing_settings_are_left_alone():
    assert change_for("no_gain", {("train.lr", "0.003")}, unfreeze=6) is None
    alone = {"train.lr": 1e-3}
    assert choose_change([symptom("overfitting")], alone, LIMITS) is None


CAUSES = st.sampled_from([*REMEDIES, "bad_start", "labels_unrelated"])


@given(st.lists(st.tuples(st.lists(CAUSES, max_size=3), st.booleans()), max_size=60), st.floats(1e-6, 10))
def test_whatever_is_read_changes_end_and_settings_stay_valid(readings, lr):
    settings, limits = {**FIRST, "train.lr": lr}, Limits(lr=lr, stages=6)
    tried, made = {key_of(name, value) for name, value in settings.items()}, 0
    for causes, is_better in readings:
        found = choose_change(map(symptom, causes), settings, limits, tried=tried)
        if found is None:
            continue
        asked, change = found
        assert asked.cause in causes
        assert change.before == settings[change.setting] != change.after
        assert change.key not in tried
        tried.add(change.key)
        made += 1
        low, high = limits.rates
        if change.setting == "train.lr":
            assert low <= change.after <= high
        elif change.setting == "unfreeze":
            assert 1 <= change.after <= limits.stages
        else:
            Recipe(**{change.setting.removeprefix("train."): change.after})
        if is_better:
            settings[change.setting] = change.after
    # 12 rates within a factor of 1000, 8 decays, and few levels of the others: each value once at most.
    assert made <= 14 + 9 + 4 + 3 + 4 + 6 + 1


def test_a_change_is_kept_if_it_helps_and_a_rate_that_is_far_off_unless_it_harms():
    assert is_kept("overfitting", 1.0, 0.9)
    assert not is_kept("overfitting", 1.0, 0.999)
    assert is_kept("lr_too_high", math.inf, math.inf)
    assert not is_kept("lr_too_high", 1.0, math.inf)
    assert is_kept("lr_too_high", math.inf, 2.0)
    assert not is_kept("underfitting", math.inf, math.inf)
    assert is_kept("divergence", 600.0, 8000.0, guessing=math.log(3))
    assert not is_kept("divergence", 0.5, 8000.0, guessing=math.log(3))


def epochs(losses, held_back=(), accuracy=()):
    return [
        Epoch(number=n, phase="", train_loss=loss, lr=1e-3, seconds=1.0,
              val_loss=held_back[n] if held_back else None, val_accuracy=accuracy[n] if accuracy else None)
        for n, loss in enumerate(losses)
    ]  # fmt: skip


def read(trained, record=None, *, planned=10, start=None):
    found = read_segment(trained, record, classes=10, held_back=100, planned=planned, start=start)
    return [one.cause for one in found]


def test_a_loss_that_falls_in_time_is_no_symptom_before_the_end():
    falling = epochs([2.3, 2.1, 1.8, 1.5, 1.2])
    assert read(falling, planned=5) == ["lr_too_low"]
    assert read(falling, planned=10) == []
    assert read(epochs([2.30, 2.28, 2.26, 2.24, 2.22]), planned=10) == ["lr_too_low"]


def test_accuracy_lost_since_the_start_is_a_rate_that_is_too_high():
    spoilt = epochs([3.0, 1.0, 0.9, 0.8, 0.7], [1.5] * 5, [0.5, 0.55, 0.6, 0.6, 0.6])
    assert read(spoilt, start=0.9)[0] == "lr_too_high"
    assert "lr_too_high" not in read(spoilt, start=0.63)
    assert "lr_too_high" not in read(spoilt)


def watched(ratio):
    stages = (MonitoredStage(stage="stem", ratio=(None,) * 4, gradient=(None,) * 4, noise=(None,) * 4),
              MonitoredStage(stage="top", ratio=(ratio,) * 4, gradient=(1.0,) * 4, noise=(None,) * 4))  # fmt: skip
    return MonitorRecord(every=5, steps=(0, 5, 10, 15), losses=(1.0,) * 4, gradients=(1.0,) * 4, stages=stages)


def test_tiny_updates_are_a_symptom_while_rates_are_high():
    healthy = epochs([1.0, 0.5, 0.3, 0.2, 0.15])
    assert read(healthy, watched(2e-5)) == ["updates_too_small"]
    assert read(healthy, watched(3e-4)) == []
    assert read(healthy, watched(2e-5), planned=6) == []
    assert read(healthy, watched(1e-8)) == ["updates_too_small"]


def test_a_loss_that_is_not_finite_is_read_and_held_back_losses_too():
    assert read(epochs([1.0, math.nan])) == ["not_finite"]
    assert read(epochs([1.0, 0.9], [0.5, math.nan])) == ["not_finite"]
    assert read(epochs([1.0])) == []


def test_an_intervention_checks_itself_and_says_what_came_of_it():
    known = {"epoch": 9, "symptom": "overfitting", "evidence": "", "setting": "train.augment", "before": "light",
             "loss_before": 0.5, "loss_after": None, "is_kept": False}  # fmt: skip
    done = Intervention(back_to=5, after="medium", **known)
    assert done.sentence == (
        "Epoch 9, overfitting: train.augment light -> medium from epoch 5; held-back loss 0.5 -> not finite, undone."
    )
    failed = Intervention(back_to=0, after="medium", error="No memory.", **known)
    assert "from the beginning; failed: No memory" in failed.sentence
    with pytest.raises(OptionError, match="back_to must be in"):
        Intervention(back_to=9, after="medium", **known)
    with pytest.raises(OptionError, match="changes nothing"):
        Intervention(back_to=0, after="light", **known)
    with pytest.raises(OptionError, match="loss_before must be finite or None"):
        Intervention(back_to=0, after="medium", **{**known, "loss_before": math.inf})


class FakeTraining:
    """Its held-back loss is the distance of its rate from the best one, in powers of ten; deeper networks fail."""

    start = 0.9

    def __init__(self, best, folder):
        self.best, self.folder, self.asked = best, folder, []

    def train(self, point, *, start, until):
        self.asked.append((dict(point), 0 if start is None else start.epochs, until))
        if "unfreeze" in point:
            raise OptionError("Too deep.")
        off = abs(math.log10(point["train.lr"] / self.best))
        done = [Epoch(number=n, phase="", train_loss=1.0, lr=point["train.lr"], seconds=0.1, val_loss=0.1 + off,
                      val_accuracy=0.5) for n in range(until)]  # fmt: skip
        checkpoint = SimpleNamespace(epochs=done, watch=None, finished=until == 16)
        return Segment(until, SimpleNamespace(checkpoint=checkpoint), self.folder / "none", point, 0.1, 50)


def care_for(training, read, *, lr=1e-3, most_seconds=math.inf):
    settings = {**FIRST, "train.lr": lr}
    return Care(training, read, settings, Limits(lr=lr, stages=6), 50, lambda seconds: seconds < most_seconds, str)


@pytest.mark.parametrize("lr", [1e-5, 1e-3, 1e-1])
def test_a_rate_that_is_far_off_is_brought_near_the_best(lr, tmp_path):
    training = FakeTraining(1e-3, tmp_path)

    def reads(epochs, record, **_):
        off = math.log10(epochs[-1].lr / 1e-3)
        return [symptom("lr_too_high")] if off > 0.5 else [symptom("updates_too_small")] if off < -0.5 else []

    care = care_for(training, reads, lr=lr)
    care.run(plan_checkpoints(16))
    assert 10 ** abs(math.log10(care.settings["train.lr"] / 1e-3)) < 3.2
    assert care.changed == ({} if lr == 1e-3 else {"train.lr": care.settings["train.lr"]})
    assert all(one.is_kept for one in care.interventions)
    assert [until for _, _, until in training.asked[-3:]] == [9, 13, 16]


def test_what_does_not_help_is_undone_and_what_fails_is_told(tmp_path):
    training = FakeTraining(1e-3, tmp_path)
    care = care_for(training, lambda epochs, record, **_: [symptom("no_gain")])
    care.run((5, 16))
    higher, deeper = care.interventions
    assert (higher.setting, higher.is_kept, higher.back_to) == ("train.lr", False, 0)
    assert (deeper.setting, deeper.is_kept, deeper.error) == ("unfreeze", False, "Too deep.")
    assert care.settings == FIRST
    assert care.changed == {}


@given(st.lists(CAUSES, max_size=4), st.floats(1e-5, 1e-1))
def test_never_more_changes_than_allowed_whatever_is_read(causes, best):
    care = care_for(FakeTraining(best, Path("nowhere")), lambda epochs, record, **_: [symptom(one) for one in causes])
    care.run(plan_checkpoints(16))
    assert len(care.interventions) <= MOST_INTERVENTIONS
    assert len(care.trials) <= MOST_INTERVENTIONS + 4
    low, high = care.limits.rates
    assert low <= care.settings["train.lr"] <= high


def test_no_change_is_tried_when_the_time_is_over(tmp_path):
    care = care_for(FakeTraining(1e-3, tmp_path), lambda epochs, record, **_: [symptom("lr_too_high")], most_seconds=0)
    care.run((5, 16))
    assert care.interventions == []


def test_checkpoints_end_with_the_training():
    for epochs in range(1, 60):
        found = plan_checkpoints(epochs)
        assert found[-1] == epochs
        assert list(found) == sorted(set(found))
        assert found[0] >= min(5, epochs)
