"""What `decide` says of some evidence is what `adapt` does with the same images and options."""

from __future__ import annotations

import dataclasses

import pytest

import transferkit as tk
from tests.conftest import draw_stripes
from transferkit.api import adapting
from transferkit.core.errors import OptionError
from transferkit.decision import choose
from transferkit.options import PassOptions
from transferkit.records import Decision
from transferkit.strategies import NEED_UNLABELLED, STRATEGIES

LOOK = {"image_size": 32, "progress": False}
MODELS = {"random weights": ("timm/test_resnet", False), "pretrained": ("packaged/tf_efficientnet_lite0", True)}


class Decided(Exception):
    """Raised in place of the fit."""


@pytest.fixture(scope="module")
def looks(tmp_path_factory):
    """Model -> one look at striped images, that all tests share."""
    root = tmp_path_factory.mktemp("decisions")
    for angle, name in enumerate(["across", "down", "slant"]):
        for number in range(12):
            split = "train" if number < 8 else "test"
            draw_stripes(root / "stripes" / split / name / f"{number}.png", angle=angle, seed=100 * angle + number)
    return {
        name: adapting.open_session(
            model,
            root / "stripes",
            PassOptions(image_size=32, test=0.2, pretrained=pretrained, cache=root / "cache", progress=False),
        )
        for name, (model, pretrained) in MODELS.items()
    }


@pytest.fixture
def decisions(looks, monkeypatch):
    """(model, similarity, options) -> what `decide` says, and what `adapt` hands to the fit, which is not done."""
    taken: list[Decision] = []

    def take(session, decision, options, **how):
        taken.append(decision)
        raise Decided

    def both(model="pretrained", similarity=None, **asked) -> tuple[Decision, Decision]:
        session = looks[model]
        if similarity is not None:
            evidence = dataclasses.replace(session.measured.evidence, similarity=similarity)
            session = dataclasses.replace(session, measured=dataclasses.replace(session.measured, evidence=evidence))
        monkeypatch.setattr(adapting, "open_session", lambda *_, **how: session)
        monkeypatch.setattr(adapting, "fit_decision", take)
        more = {"unlabelled": []} if asked.get("strategy") in NEED_UNLABELLED else {}
        with pytest.raises(Decided):
            tk.adapt(model, "builtin/digits", progress=False, **asked, **more)
        said = None if asked.get("mode") == "search" else tk.decide(session.measured.evidence, **asked)
        return said, taken.pop()

    return both


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_is_decided_on_as_it_is_done(strategy, model, decisions):
    norm = {} if strategy == "linear_probe" else {"norm": "frozen"}
    said, done = decisions(model, strategy=strategy, **norm)
    assert said == done
    assert said.mode == "given"
    assert (said.lr > 0) == (strategy != "linear_probe")


@pytest.mark.parametrize("asked", [
    {"mode": "evidence"},
    {"mode": "rule", "similarity": 0.9},
    {"mode": "rule", "similarity": 0.1},
    {"mode": "evidence", "budget": 1000.0},
    {"strategy": "few_layers", "stage": "blocks.3", "unfreeze": 1},
    {"strategy": "lp_ft", "stage": -2, "batch_size": 8},
    {"strategy": "lp_ft", "train": {"lr": 0.002, "batch_size": 4}},
    {"strategy": "lora", "train": {"lr_scale": 0.3, "optimizer": "sgd"}},
    {"strategy": "surgical", "norm": "keep"},
    {"strategy": "linear_probe", "stage": "selected"},
])  # fmt: skip
def test_every_mode_and_option_is_decided_on_as_it_is_done(asked, decisions):
    said, done = decisions(**asked)
    assert said == done


def test_plenty_of_images_by_the_rule_is_complete_as_well(decisions, monkeypatch):
    monkeypatch.setattr("transferkit.decision.textbook.PLENTY_IMAGES", 1)
    monkeypatch.setattr("transferkit.decision.textbook.PLENTY_PER_CLASS", 1)
    said, done = decisions(mode="rule", similarity=0.1)
    assert said == done
    assert (said.strategy, said.norm, said.lr_scale) == ("many_layers", "frozen", 0.1)
    assert said.lr > 0


def test_what_a_search_finds_is_completed_in_the_same_place(decisions, monkeypatch):
    def search(evidence, begin, **how):
        return dataclasses.replace(choose(evidence), strategy="lp_ft", stage="top", mode="search")

    monkeypatch.setattr("transferkit.workflow.decide.search", search)
    _, done = decisions(mode="search")
    said, _ = decisions(strategy="lp_ft")
    assert (done.lr, done.lr_scale, done.norm) == (said.lr, said.lr_scale, said.norm)
    assert done.reasons[-2:] == said.reasons[-2:]


def test_only_a_swap_is_told_by_trying_alone(decisions):
    said, done = decisions(strategy="lp_ft", norm="renorm")
    assert (said.norm, said.lr) == (done.norm, done.lr) == ("renorm", said.lr)
    assert done.reasons[:-1] == said.reasons
    assert "was swapped for 'renorm'" in done.reasons[-1]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"mode": "search"}, "mode=search trains, which needs the images: use adapt"),
        ({"strategy": "lp-ft"}, "Unknown strategy 'lp-ft'. Closest known: lp_ft"),
        ({"strategy": "lp_ft", "mode": "rule"}, "strategy=lp_ft leaves nothing to choose"),
        ({"strategy": "linear_probe", "train": {"epochs": 3}}, "train.epochs=3 would do nothing"),
        ({"strategy": "lp_ft", "stage": "attic"}, "Unknown stage 'attic'"),
        ({"strategy": "lp_ft", "norm": "keep", "train": {"batch_size": 1}}, "a single image has no spread"),
        ({"strategy": "few_layers", "unfreeze": 99}, r"unfreeze must be in \[1, "),
    ],
)
def test_decide_refuses_what_adapt_refuses(asked, message, looks):
    with pytest.raises(OptionError, match=message):
        tk.decide(looks["pretrained"].measured.evidence, **asked)


def test_after_a_run_the_promise_is_that_of_the_held_back_images(stripes, tmp_path):
    (stripes / "test").rename(tmp_path / "elsewhere")
    out = tmp_path / "run"
    result = tk.adapt(
        "timm/test_resnet", stripes, pretrained=False, strategy="lp_ft", norm="frozen", test=0, out=out,
        train={"epochs": 1, "folds": 1, "lr": "rule", "augment": "none"}, **LOOK,
    )  # fmt: skip
    decision, training = result.decision, result.record.training
    assert decision.held_back == training.held_back
    assert decision.expected.expected_accuracy == pytest.approx(training.kept.accuracy, abs=0.05)
    assert decision.expected.low < training.kept.accuracy
    assert decision.expected_before is not None
    assert "Expected accuracy on new images like these" in decision.reasons[-1]
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "expected accuracy on new images" in html
    assert f"{100 * decision.expected.expected_accuracy:.1f}" in html
    assert tk.load(out).decision == decision


def test_after_a_closed_form_the_promise_is_that_of_its_head(stripes):
    result = tk.adapt("packaged/tf_efficientnet_lite0", stripes, strategy="linear_probe", stage="top", **LOOK)
    decision = result.decision
    assert decision.held_back == result.evidence.data.train_images
    assert decision.expected_before is not None
    assert (decision.expected.stage, decision.mode) == ("top", "given")
    assert not result.record.is_disappointing("test")
