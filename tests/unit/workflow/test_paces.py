"""Paces are measured once, whatever the bank holds, and a network that cannot be trained has one less."""

from __future__ import annotations

import logging

import pytest

from tests.unit.features.features_toys import make_backbone
from tests.unit.nn.toy_networks import Pyramid, spec_of, stir
from transferkit.decision import TUNED_SHARES
from transferkit.finetune import step_pace
from transferkit.nn import Backbone
from transferkit.options import PassOptions
from transferkit.workflow import paces
from transferkit.workflow.paces import measure_paces

HOW = PassOptions(device="cpu", progress=False)


@pytest.fixture
def measured(monkeypatch):
    """Numbers of measurements; the first takes a second an image, and so on."""
    asked: list[str] = []

    def pass_seconds(backbone, **_):
        asked.append("pass")
        return float(len(asked))

    def training_seconds(backbone, plan, **_):
        asked.append(plan.strategy)
        return float(len(asked))

    monkeypatch.setattr(paces, "image_seconds", pass_seconds)
    monkeypatch.setattr(step_pace, "step_seconds", training_seconds)
    return asked


def test_what_was_measured_is_remembered_for_this_network_at_this_size(tmp_path, measured):
    first = measure_paces(make_backbone(), HOW, folder=tmp_path, images=150)
    assert first.image_seconds == 1
    assert first.step_seconds == {strategy: number for number, strategy in enumerate(TUNED_SHARES, start=2)}
    assert measured == ["pass", *TUNED_SHARES]
    again = measure_paces(make_backbone(), HOW, folder=tmp_path, images=150)
    assert again == first
    assert (first.remembered, again.remembered) == (False, True)
    assert len(measured) == 3
    network = Pyramid()
    stir(network, 3)
    assert measure_paces(Backbone(network, spec_of()), HOW, folder=tmp_path, images=150) != first
    assert measure_paces(make_backbone(), HOW, folder=None, images=150) != first


def test_with_many_images_the_steps_of_all_stages_are_timed(tmp_path, monkeypatch):
    plans = []

    def training_seconds(backbone, plan, **_):
        plans.append(plan)
        return 1.0 + len(plans)

    monkeypatch.setattr(step_pace, "step_seconds", training_seconds)
    few = measure_paces(make_backbone(), HOW, folder=tmp_path, images=499)
    many = measure_paces(make_backbone(), HOW, folder=tmp_path, images=500)
    assert measure_paces(make_backbone(), HOW, folder=tmp_path, images=10_000) == many
    assert few.image_seconds == many.image_seconds
    assert few.step_seconds != many.step_seconds
    frozen = {plan.strategy: [] for plan in plans}
    for plan in plans:
        frozen[plan.strategy].append(any(rule.lr == 0 for rule in plan.phases[-1].rules))
    assert frozen == {"lp_ft": [True, False], "few_layers": [True, True]}


def test_a_network_that_cannot_be_trained_is_told_and_still_has_the_pace_of_its_pass(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise RuntimeError("element 0 of tensors does not require grad\nand more")

    monkeypatch.setattr(step_pace, "step_seconds", refuse)
    with caplog.at_level(logging.WARNING, logger="transferkit"):
        found = measure_paces(make_backbone(), HOW, folder=tmp_path, images=150)
    assert found.image_seconds > 0
    assert found.step_seconds == {}
    assert "cannot be timed (element 0 of tensors does not require grad)" in caplog.text


def test_without_training_its_steps_are_timed_only_when_they_are_needed(tmp_path, measured):
    probe = measure_paces(make_backbone(), HOW, folder=tmp_path, images=150, trains=False)
    assert (probe.image_seconds, probe.step_seconds) == (1, {})
    assert measured == ["pass"]
    trained = measure_paces(make_backbone(), HOW, folder=tmp_path, images=150)
    assert trained.image_seconds == probe.image_seconds
    assert set(trained.step_seconds) == set(TUNED_SHARES)
    assert measure_paces(make_backbone(), HOW, folder=tmp_path, images=150, trains=False) == trained


def test_real_steps_take_longer_than_the_pass(tmp_path):
    found = measure_paces(make_backbone(), HOW, folder=tmp_path, images=150)
    assert set(found.step_seconds) == set(TUNED_SHARES)
    assert all(seconds > 0 for seconds in found.step_seconds.values())
