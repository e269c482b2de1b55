"""The rate that fine-tuning starts at, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.nn.toy_networks import spec_of
from transferkit.decision import starting_rate
from transferkit.decision.rates import DEFAULTS, LR_SCALE


def trained_with(optimizer: str, lr: float, batch: int):
    return replace(
        spec_of(), original_lr=lr, original_batch=batch, original_optimizer=optimizer, original_by="its authors"
    )


def test_sgd_grows_with_the_batch_and_adaptive_rates_with_its_root():
    found = starting_rate(trained_with("sgd", 0.4, 1024), optimizer="sgd", batch_size=64)
    assert found.lr == pytest.approx(0.1 * 0.4 * 64 / 1024)
    found = starting_rate(trained_with("adamw", 1e-3, 1024), optimizer="adamw", batch_size=64)
    assert found.lr == pytest.approx(0.1 * 1e-3 / 4)
    assert found.scale == LR_SCALE == 0.1


@pytest.mark.parametrize("original", ["rmsprop", "lamb", "adamw", "lion"])
def test_any_adaptive_rate_serves_an_adaptive_optimizer_and_none_serves_sgd(original):
    spec = trained_with(original, 0.016, 256)
    assert starting_rate(spec, optimizer="adamw", batch_size=256).lr == pytest.approx(0.0016)
    rate, batch = DEFAULTS["sgd"]
    assert starting_rate(spec, optimizer="sgd", batch_size=batch).lr == pytest.approx(0.1 * rate)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_backbone_of_unknown_training_starts_at_the_usual_rate(optimizer):
    rate, batch = DEFAULTS[optimizer]
    unknown = starting_rate(spec_of(), optimizer=optimizer, batch_size=batch)
    assert unknown.lr == pytest.approx(0.1 * rate)
    assert "the default for" in unknown.why
    other = "adamw" if optimizer == "sgd" else "sgd"
    assert starting_rate(trained_with(other, 7.0, 256), optimizer=optimizer, batch_size=batch).lr == unknown.lr


@given(
    st.floats(1e-5, 10),
    st.sampled_from([64, 256, 4096]),
    st.sampled_from(["sgd", "adamw"]),
    st.integers(1, 512),
    st.floats(0.01, 1),
)
def test_rate_and_scale_agree(lr, batch, optimizer, size, scale):
    spec = trained_with(optimizer, lr, batch)
    found = starting_rate(spec, optimizer=optimizer, batch_size=size, scale=scale)
    exponent = 1.0 if optimizer == "sgd" else 0.5
    assert found.lr == pytest.approx(scale * lr * (size / batch) ** exponent)
    assert found.scale == scale
    doubled = starting_rate(spec, optimizer=optimizer, batch_size=2 * size, scale=scale)
    assert doubled.lr / found.lr == pytest.approx(math.exp(exponent * math.log(2)))


def test_a_share_that_was_asked_for_is_said_to_be():
    spec = trained_with("sgd", 0.5, 1024)
    usual, asked = (starting_rate(spec, optimizer="sgd", batch_size=32, scale=scale) for scale in (None, 0.1))
    assert (usual.lr, usual.scale) == (asked.lr, asked.scale)
    assert "0.1, as requested, of the original rate" in asked.why
    assert "asked" not in usual.why


def test_the_reason_has_the_numbers_in_it():
    why = starting_rate(trained_with("sgd", 0.5, 1024), optimizer="sgd", batch_size=32).why
    assert all(
        part in why
        for part in ("0.0016", "0.1 of the original rate", "0.5 at batch 1,024", "its authors", "0.016 at batch 32")
    )
