"""The page of a hyperparameter search."""

from __future__ import annotations

import re

import pytest

from transferkit.core.errors import OptionError
from transferkit.records import DataSummary, TuningRecord, TuningTrial
from transferkit.report import render_tuning

DATA = DataSummary(origin="folder <b>x", classes=("cat", "dog"), counts={"train": (30, 30)}, split_rule="")


def trial(number, accuracy, *, stage="all", is_full=True, lr=1e-3, **more):
    state = {"state": "complete", "accuracy": accuracy, "log_loss": 0.5, "kept": 0.9, "epochs": 3, "seconds": 2.0}
    return TuningTrial(number=number, stage=stage, is_full=is_full,
                       values={"train.lr": lr, "train.schedule": "cosine"}, **{**state, **more})  # fmt: skip


def page_of(found):
    """With plain spaces before percent signs."""
    return render_tuning(found).replace("\u202f", " ").replace("\xa0", " ")


def record(*trials, **more):
    given = {
        "data": DATA, "backbone": "net", "strategy": "lp_ft",
        "space": {"train.lr": "0.0001 to 0.1 (log)", "train.schedule": "cosine or linear"},
        "log_scaled": ("train.lr",), "sampler": "random", "pruner": "none", "trials": trials, "probe": 0.8,
        "images": 60, "command": "transferkit tune data.root=x", **more,
    }  # fmt: skip
    return TuningRecord(**given)


STAGED = record(
    trial(0, 0.7, stage="wide", is_full=False, lr=1e-4, epochs=1),
    trial(1, 0.95, stage="wide", is_full=False, lr=1e-2, epochs=1),
    trial(2, 0.85, stage="finalists", lr=1e-2),
    trial(3, None, stage="finalists", state="failed", error="No memory.", log_loss=None, kept=None),
    importance={"train.lr": 0.75, "train.schedule": 0.25},
)


def test_the_best_trial_is_one_that_was_trained_in_full():
    assert STAGED.best.number == 2
    page = page_of(STAGED)
    assert "<b>85.0 %</b> held-back accuracy of the best trial" in page
    rows = re.findall(r'<th scope="row" class="number">(\d+)</th>', page)
    assert rows == ["2", "1", "0", "3"]


def test_stages_and_probe_have_a_legend_and_each_trial_a_tooltip():
    page = page_of(STAGED)
    for words in ("wide, 1 epoch<", "finalists, 3 epochs<", "linear probe<"):
        assert words in page
    assert "trial 1: 95.0 %; train.lr=0.01, train.schedule=cosine" in page
    assert 'data-chart="history"' in page
    assert "lr (log scale)" in page
    assert "75.0 %" in page


def test_text_is_not_markup_and_nothing_is_loaded():
    page = page_of(STAGED)
    assert "folder &lt;b&gt;x" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_search_without_a_complete_trial_has_a_page():
    page = page_of(record(trial(0, None, state="failed", error="No memory.", log_loss=None, kept=None)))
    assert "0 of 1 trials complete, 1 failed: there is no best point." in page
    assert "data-chart" not in page


def test_what_is_said_of_the_outcome():
    assert "The probe is more accurate than the best network" in " ".join(record(trial(0, 0.6)).sentences)
    assert "The probe is more accurate" not in " ".join(record(trial(0, 0.9)).sentences)
    assert "1 trial failed, the first one: No memory." in STAGED.sentences
    assert record(trial(0, 0.9), base={"epochs": 3}).settings == {
        "strategy": "lp_ft",
        "train": {"epochs": 3, "lr": 1e-3, "schedule": "cosine"},
    }


def test_equal_accuracies_are_ranked_by_loss():
    found = record(trial(0, 0.9, log_loss=0.4), trial(1, 0.9, log_loss=0.3), trial(2, 0.8, log_loss=0.1))
    assert [one.number for one in found.ranked] == [1, 0, 2]


def test_a_trial_has_a_known_state():
    with pytest.raises(OptionError, match=r"TuningTrial.state must be one of complete, pruned, failed, got 'done'"):
        trial(0, 0.9, state="done")
