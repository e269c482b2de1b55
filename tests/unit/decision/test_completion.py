"""A choice is made complete in one place: rate and normalisation before training, promises kept afterwards."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.decision.test_decision import evidence, score
from transferkit.core.errors import OptionError
from transferkit.core.serialization import from_json, to_json
from transferkit.decision import (
    Calibration,
    Conditions,
    GainModel,
    HeldBack,
    choose,
    complete,
    conclude,
    default_batch_size,
    starting_rate,
)
from transferkit.records import Alternative, Choice, Decision, Evidence, StageSpec

TUNED = Choice(strategy="lp_ft", stage="top", mode="given", reasons=("asked for",), tuned=())
PROBE = replace(TUNED, strategy="linear_probe", stage="joined")
LOOKED = evidence(score("joined", 0.8), per_class=100, similarity=0.3)
HONEST = GainModel(coefficients={}, spread={})


def with_backbone(**changed) -> Evidence:
    return replace(LOOKED, backbone=replace(LOOKED.backbone, **changed))


def option(accuracy: float) -> Alternative:
    return Alternative(
        strategy="lp_ft", stage="top", expected_accuracy=accuracy, low=accuracy - 0.1, high=accuracy, cost_seconds=9.0
    )


@pytest.mark.parametrize("mode", ["evidence", "rule"])
@pytest.mark.parametrize("per_class", [5, 1000])
def test_completing_keeps_what_was_chosen(mode, per_class):
    looked = evidence(score("joined", 0.8), per_class=per_class, similarity=0.3)
    conditions = Conditions(batch_size=8, optimizer="sgd")
    chosen = choose(looked, mode=mode)
    decision = complete(chosen, looked, conditions)
    for field in fields(Choice):
        if field.name not in ("reasons", "tuned"):
            assert getattr(decision, field.name) == getattr(chosen, field.name)
    assert decision.reasons[: len(chosen.reasons)] == chosen.reasons


@pytest.mark.parametrize(
    ("choice", "images", "norm", "trained"),
    [
        (TUNED, 499, "frozen", ()),
        (TUNED, 500, "frozen", ("stem", "middle", "top")),
        (TUNED, 500, "keep", ("stem", "middle", "top")),
        (TUNED, 20, "group", ("stem", "middle", "top")),  # the first stages' weights had another normalisation
        (replace(TUNED, stage="middle"), 500, "frozen", ("stem", "middle")),
        (replace(TUNED, stage="joined"), 500, "frozen", ("stem", "middle", "top")),
        (replace(TUNED, tuned=("top",)), 500, "frozen", ("top",)),  # asked for
        (replace(TUNED, strategy="few_layers"), 500, "frozen", ()),
        (PROBE, 500, "frozen", ()),
    ],
)
def test_lp_ft_trains_the_first_stages_too_where_there_are_many_images_or_new_norms(choice, images, norm, trained):
    stages = tuple(StageSpec(name=name, channels=4, stride=2) for name in ("stem", "middle", "top"))
    counts = (images // 2, images - images // 2)
    data = replace(LOOKED.data, classes=("a", "b"), counts={"train": counts}, train_groups=())
    looked = replace(LOOKED, backbone=replace(LOOKED.backbone, stages=stages), data=data)
    decision = complete(choice, looked, Conditions(norm=norm))
    assert decision.tuned == trained
    swapped = replace(looked, backbone=replace(looked.backbone, norm="group", batch_norm=False))
    if choice.strategy == "lp_ft" and not choice.tuned:
        assert "top" in complete(replace(choice, stage="top"), swapped, Conditions(norm="keep")).tuned
    said = [reason for reason in decision.reasons if "All stages are trained" in reason]
    assert len(said) == (trained != choice.tuned)


def test_what_is_solved_for_has_no_rate_whatever_was_asked_for():
    decision = complete(PROBE, LOOKED, Conditions(lr=0.1, norm="group", needs_several=True, batch_size=1))
    assert (decision.lr, decision.lr_scale, decision.norm, decision.reasons) == (0, 0, "frozen", PROBE.reasons)


@given(
    batch_size=st.none() | st.integers(1, 500),
    optimizer=st.sampled_from(["adamw", "sgd"]),
    scale=st.none() | st.floats(0.001, 10),
)
def test_the_rate_is_that_of_the_batch_that_will_be_used(batch_size, optimizer, scale):
    images = LOOKED.data.train_images
    decision = complete(TUNED, LOOKED, Conditions(batch_size=batch_size, optimizer=optimizer, lr_scale=scale))
    step = min(images, default_batch_size(images) if batch_size is None else batch_size)
    start = starting_rate(LOOKED.backbone, optimizer=optimizer, batch_size=step, scale=scale)
    assert (decision.lr, decision.lr_scale) == (start.lr, start.scale)
    assert start.why in decision.reasons


@given(lr=st.floats(1e-6, 1))
def test_a_rate_that_was_asked_for_is_taken_and_told_as_a_share(lr):
    usual = complete(TUNED, LOOKED)
    decision = complete(TUNED, LOOKED, Conditions(lr=lr))
    assert decision.lr == lr
    assert decision.lr_scale == pytest.approx(usual.lr_scale * lr / usual.lr)
    assert f"The learning rate of the last stage, {lr:.2g}, was requested." in decision.reasons


@pytest.mark.parametrize(
    ("backbone", "conditions", "norm"),
    [
        ({"batch_norm": True}, {"batch_size": 1}, "frozen"),
        ({"batch_norm": None}, {}, "frozen"),  # a record from before this was noted
        ({"batch_norm": False}, {}, "keep"),
        ({"batch_norm": True, "pretrained": False}, {"batch_size": 16}, "keep"),
        ({"batch_norm": True, "pretrained": False}, {"batch_size": 15}, "standardised_group"),
        ({"batch_norm": True, "pretrained": False}, {"batch_size": 32, "processes": 4}, "standardised_group"),
        ({"batch_norm": True, "pretrained": False}, {"batch_size": 32, "processes": 4, "on_gpus": True}, "sync"),
        ({"batch_norm": True, "norm": "renorm"}, {}, "renorm"),  # swapped before
        ({"batch_norm": True}, {"norm": "keep"}, "keep"),
        ({"batch_norm": True}, {"norm": "group"}, "standardised_group"),  # there are images to fit it to
        ({"batch_norm": True}, {"norm": "layer"}, "layer"),
    ],
)
def test_normalisation_is_what_adapt_would_use(backbone, conditions, norm):
    assert complete(TUNED, with_backbone(**backbone), Conditions(**conditions)).norm == norm


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"norm": "keep", "batch_size": 1}, "norm=keep normalises .* Use norm=frozen, norm=group"),
        ({"norm": "keep", "batch_size": 2, "processes": 2}, "norm=keep .* a single image has no spread"),
        ({"norm": "ghost", "needs_several": True, "batch_size": 1}, "norm=ghost .* a single image has no spread"),
        ({"norm": "sync", "processes": 2}, "norm=sync shares .* on GPUs only"),
    ],
)
def test_what_cannot_train_is_refused_and_a_probe_is_not(conditions, message):
    with pytest.raises(OptionError, match=message):
        complete(TUNED, LOOKED, Conditions(**conditions))
    assert complete(PROBE, LOOKED, Conditions(**conditions)).strategy == "linear_probe"


@pytest.mark.parametrize("name", ["batch_size", "lr", "lr_scale", "processes"])
def test_conditions_check_themselves(name):
    with pytest.raises(OptionError, match=f"{name} must be > 0, got 0"):
        Conditions(**{name: 0})


def test_a_relative_is_named_only_where_batches_are_small():
    looked = with_backbone(batch_norm=True, pretrained=False)
    small, large = (complete(TUNED, looked, Conditions(relative="timm/toy_gn", batch_size=size)) for size in (8, 64))
    assert "timm/toy_gn is a relative" in small.reasons[-1]
    assert "timm/toy_gn" not in large.reasons[-1]


def test_after_training_the_promise_is_what_held_back_images_say_and_the_old_one_stays_on_record():
    decision = complete(replace(TUNED, expected=option(0.925)), LOOKED)
    done = conclude(
        decision, LOOKED, HeldBack(accuracy=0.86, images=100, is_network=True, seconds=70.0), lr_factor=3.0,
        reasons=("Kept is the network.",), knowledge=HONEST,
    )  # fmt: skip
    assert done.expected is not None
    assert done.expected.expected_accuracy == 0.86
    assert done.expected.low < 0.86 < done.expected.high < 0.95
    assert (done.expected.strategy, done.expected.cost_seconds) == ("lp_ft", 70.0)
    assert (done.expected_before, done.held_back) == (decision.expected, 100)
    assert (done.lr, done.lr_scale) == (3 * decision.lr, 3 * decision.lr_scale)
    assert "Kept is the network." in done.reasons
    assert "training went on at 3 times that rate" in " ".join(done.reasons)
    assert "86.0 %" in done.reasons[-1]
    assert "before fitting it was 92.5 %" in done.reasons[-1]
    assert from_json(Decision, to_json(done)) == done


@pytest.mark.parametrize(
    ("stage", "is_network", "kind"),
    [("top", True, "network"), ("selected", False, "selected"), ("joined", False, "joined"), ("late", False, "stage")],
)
def test_a_promise_is_corrected_by_what_earlier_tasks_showed_of_its_kind(stage, is_network, kind):
    optimistic = replace(HONEST, calibration={kind: Calibration(optimism=0.2, task_error=0.3, widening=1.5)})
    decision = complete(replace(TUNED if is_network else PROBE, stage=stage), LOOKED)
    held_back = HeldBack(accuracy=0.5, images=100, is_network=is_network)
    plain, corrected = (
        conclude(decision, LOOKED, held_back, knowledge=known).expected for known in (HONEST, optimistic)
    )
    assert plain is not None
    assert corrected is not None
    assert (plain.expected_accuracy, corrected.expected_accuracy) == (0.5, pytest.approx(0.4))
    assert corrected.high - corrected.low > 1.5 * (plain.high - plain.low)


@pytest.mark.parametrize("held_back", [HeldBack(accuracy=None, images=5, is_network=False),
                                       HeldBack(accuracy=0.9, images=0, is_network=False)])  # fmt: skip
def test_nothing_is_promised_where_nothing_was_held_back(held_back):
    decision = complete(replace(PROBE, expected=option(0.9)), LOOKED)
    done = conclude(decision, LOOKED, held_back)
    assert (done.expected, done.expected_before, done.held_back) == (None, decision.expected, 0)
    assert "unknown" in done.reasons[-1]


def test_a_promise_counts_independent_images():
    half = replace(LOOKED, probes=(replace(score("joined", 0.8), images=100),))  # 200 images in groups
    held_back = HeldBack(accuracy=0.8, images=80, is_network=True)
    alone, grouped = (
        conclude(complete(TUNED, looked), looked, held_back, knowledge=HONEST) for looked in (LOOKED, half)
    )
    assert alone.held_back == grouped.held_back == 80
    widths = [done.expected.high - done.expected.low for done in (alone, grouped)]
    assert widths[1] == pytest.approx(math.sqrt(2) * widths[0], rel=0.02)


def test_decisions_of_runs_before_load():
    plain = to_json(complete(TUNED, LOOKED))
    for name in ("expected_before", "held_back"):
        del plain[name]
    loaded = from_json(Decision, plain)
    assert (loaded.expected_before, loaded.held_back) == (None, 0)
