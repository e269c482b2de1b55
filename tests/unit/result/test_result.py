"""A run's folder: what is known about a fine-tuning run comes back as it was."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from torch import nn

from tests.unit.nn.toy_networks import Pyramid, spec_of
from tests.unit.report.conftest import build_record, build_training
from transferkit.nn import Backbone, TransferModel
from transferkit.result import Result, load


@pytest.fixture
def network() -> nn.Module:
    return Pyramid()


@pytest.fixture
def result(network) -> Result:
    """A network over three classes, with the record of a fine-tuning run."""
    backbone = Backbone(network, spec_of())
    record = build_record(("ant", "bee", "cat"))
    model = TransferModel(backbone, stages=("top",), pooling="avg", classes=record.evidence.data.classes)
    evidence = replace(record.evidence, backbone=backbone.spec)
    return Result(model.eval(), replace(record, evidence=evidence, training=build_training()))


def test_the_training_record_survives_saving_and_loading(result, network, tmp_path):
    again = load(result.save(tmp_path / "run"), module=network)
    assert again.record.training == result.record.training
    # Equal is not enough: a list is no tuple, and what was hashable must stay so.
    assert repr(again.record.training) == repr(result.record.training)


def test_epochs_without_validation_survive_too(result, network, tmp_path):
    training = result.record.training
    bare = replace(training.epochs[0], val_loss=None, val_accuracy=None)
    record = replace(result.record, training=replace(training, epochs=(bare,), notes=()))
    again = load(Result(result.model, record).save(tmp_path / "run"), module=network)
    assert again.record.training.epochs == (bare,)


@pytest.mark.parametrize("how", ["closed form", "older version"])
def test_a_run_without_training_loads(result, network, tmp_path, how):
    closed = Result(result.model, replace(result.record, training=None))
    folder = closed.save(tmp_path / "run")
    at = folder / "result.json"
    plain = json.loads(at.read_text(encoding="utf-8"))
    assert plain["training"] is None
    if how == "older version":
        del plain["training"]
        at.write_text(json.dumps(plain), encoding="utf-8")
    assert load(folder, module=network).record.training is None
