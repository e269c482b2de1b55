"""adapt with an ensemble: one model, saved and exported like any other, and never worse held back."""

from __future__ import annotations

import numpy as np
import pytest

import transferkit as tk
from tests.conftest import PACKAGED, draw_stripes
from transferkit.core.errors import OptionError
from transferkit.ensemble import heads
from transferkit.measure import log_loss


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """60 digits, 6 of each class, scored from one bank."""
    from sklearn.datasets import load_digits

    found = load_digits()
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(np.flatnonzero(found.target == label))[:14] for label in range(10)])
    folder = tmp_path_factory.mktemp("digits")
    from PIL import Image

    for number, row in enumerate(rows):
        split = "train" if number % 14 < 8 else "test"
        path = folder / split / str(found.target[row]) / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((found.images[row] * 15).astype(np.uint8)).resize((32, 32)).save(path)
    return folder


def adapt(data, **options):
    how = {"image_size": 32, "views": 1, "geometry": "crop", "progress": False, "strategy": "linear_probe"}
    return tk.adapt(PACKAGED, data, **(how | options))


def test_an_average_of_heads_is_one_model(digits, tmp_path):
    single = adapt(digits, stage="top", head="ridge")
    result = adapt(digits, stage="top", head="ridge", ensemble="auto", out=tmp_path / "run")
    assert "the average is returned: " in " ".join(result.decision.reasons)
    assert result.held_back_scores.accuracy >= single.held_back_scores.accuracy
    losses = [log_loss(one.held_back_scores.probabilities, one.held_back_scores.labels) for one in (single, result)]
    assert losses[1] < losses[0]
    assert result.metrics["test"].accuracy >= single.metrics["test"].accuracy
    again = tk.load(tmp_path / "run")
    found = again.predict(digits / "test", coverage=0.9)
    np.testing.assert_array_equal(found.probabilities, result.predict(digits / "test").probabilities)
    assert found.sets.any(axis=1).all()
    assert "Ensemble: an average of" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_the_model_computes_the_weighted_sum_of_the_heads(digits, monkeypatch):
    """The logits of the composed layer, against those of its members one by one."""
    seen = {}
    compose = heads._compose

    def keep(session, members, weighed):
        seen.update(session=session, members=members, weighed=weighed, model=compose(session, members, weighed))
        return seen["model"]

    monkeypatch.setattr(heads, "_compose", keep)
    adapt(digits, stage="top", head="ridge", ensemble="auto")
    table = seen["session"].measured.features(seen["session"].measured.train)
    wanted = sum(
        weight * (table.load(list(table.blocks))[:, one.columns] @ one.head.weight.T + one.head.bias)
        for one, weight in zip(seen["members"], seen["weighed"].weights, strict=True)
    )
    layer = seen["model"].linear
    found = table.load(list(seen["model"].stages)) @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_the_single_head_stays_where_it_is_better(digits, monkeypatch):
    monkeypatch.setattr(heads, "weigh_members", _worthless)
    result = adapt(digits, stage="joined", ensemble="auto")
    assert "the single head is returned" in " ".join(result.decision.reasons)
    np.testing.assert_array_equal(result.held_back_scores.logits, adapt(digits, stage="joined").held_back_scores.logits)


def _worthless(logits, labels, **_):
    from transferkit.ensemble import Weighed

    return Weighed(weights=np.ones(len(logits)), logits=np.zeros_like(logits[0]), accuracy=0.1, log_loss=2.3)


def test_too_few_images_and_networks_are_left_alone(stripes, tmp_path):
    few = adapt(stripes, ensemble="auto")
    assert "weights of an ensemble need 40 held-back images, and there are 24" in " ".join(few.decision.reasons)
    tuned = adapt(stripes, strategy="few_layers", train={"epochs": 1, "refit": False}, ensemble="auto")
    assert "a network was fine-tuned" in " ".join(tuned.decision.reasons)
    for number, name in enumerate(["across", "down"]):
        draw_stripes(tmp_path / "one" / "train" / name / "0.png", angle=number, seed=number)
    assert "there are 0" in " ".join(adapt(tmp_path / "one", ensemble="auto").decision.reasons)


@pytest.mark.parametrize("wrong", ["autoo", True, None, ["auto"]])
def test_what_is_no_ensemble_is_refused_before_any_work(tmp_path, wrong):
    with pytest.raises(OptionError, match="Unknown ensemble"):
        tk.adapt(PACKAGED, tmp_path / "nothing", ensemble=wrong)
