"""The head that is solved for: from a bank of features of known classes to a model that gives the same scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import softmax
from sklearn.utils.class_weight import compute_sample_weight
from torch import nn

from transferkit.core.errors import OptionError
from transferkit.features import FeatureBank, FeatureTable
from transferkit.measure import fit_temperature, select_features
from transferkit.nn import Backbone
from transferkit.probe import CLASS_WEIGHTS, HEADS, choose_head, class_weights, fit_closed_form, fit_heads
from transferkit.records import BackboneSpec, Preprocessing
from transferkit.strategies import Plan

PLAIN = Preprocessing(size=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
SPEC = BackboneSpec(name="toy", source="module", architecture="toy", preprocessing=PLAIN, pretrained=False)
CLASSES = ("cat", "dog", "owl")
JOINED = Plan(strategy="linear_probe", stages=("1", "3", "top"), closed_form=True)
SELECTED = Plan(strategy="linear_probe", stages=("1", "3", "top"), closed_form=True, selected=True)
TOP = Plan(strategy="linear_probe", stages=("top",), closed_form=True)


@dataclass(frozen=True)
class Banked:
    """A backbone, images, and their features in a bank."""

    backbone: Backbone
    images: torch.Tensor
    labels: npt.NDArray[np.int64]
    table: FeatureTable


@pytest.fixture
def banked(tmp_path) -> Banked:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 10, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(10, 12, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 9),
        nn.ReLU(),
        nn.Linear(9, 4),
    )
    backbone = Backbone(network, SPEC)
    labels = np.arange(60) % 3
    images = torch.randn(60, 3, 16, 16)
    images[:, 0] += torch.from_numpy(labels)[:, None, None] * 0.15
    with torch.no_grad():
        rows = torch.cat(list(backbone.pooled_stages(images, pooling="avg").values()), dim=1).numpy()
    ids = np.array([f"{i:032}".encode() for i in range(60)])
    shelf = FeatureBank(tmp_path).shelf({"weights": "toy"}, backbone.widths("avg"))
    with shelf.writer() as writer:
        writer.append(ids, rows)
    return Banked(backbone, images, labels, shelf.table(ids))


def fit(banked: Banked, plan: Plan = TOP, *, rows: npt.NDArray[np.int64] | None = None, **options):
    rows = np.arange(60) if rows is None else rows
    return fit_closed_form(
        plan,
        banked.backbone,
        banked.table.take(rows),
        banked.labels[rows],
        classes=CLASSES,
        pooling="avg",
        **options,
    )


@pytest.mark.parametrize("head", ["ridge", "logistic"])
@pytest.mark.parametrize("plan", [TOP, JOINED], ids=["top", "joined"])
def test_model_on_images_gives_what_the_head_gives_on_banked_features(banked, plan, head):
    fitted = fit(banked, plan, head=head)
    with torch.no_grad():
        logits = fitted.model(banked.images).numpy()
    classifier = fitted.model.classifier
    features = banked.table.load(plan.stages)
    expected = features @ classifier.weight.detach().numpy().T + classifier.bias.detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    assert fitted.head == head
    assert fitted.model.classes == CLASSES
    assert fitted.model.stages == plan.stages


@pytest.mark.parametrize("head", HEADS)
def test_fit_reads_the_classes_better_than_chance(banked, head):
    fitted = fit(banked, JOINED, head=head)
    with torch.no_grad():
        predicted = fitted.model(banked.images).argmax(1).numpy()
    assert (predicted == banked.labels).mean() > 0.6


def test_model_is_frozen_in_evaluation_mode_and_has_no_other_head(banked):
    model = fit(banked).model
    assert not any(part.training for part in model.modules())
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert all(parameter.requires_grad for parameter in model.classifier.parameters())
    assert model.backbone.head is None


def test_weights_of_the_backbone_are_untouched(banked):
    before = {name: value.clone() for name, value in banked.backbone.state_dict().items()}
    fit(banked)
    assert all(torch.equal(value, before[name]) for name, value in banked.backbone.state_dict().items())


@pytest.mark.parametrize("head", HEADS)
def test_same_seed_same_weights(banked, head):
    one, other = (fit(banked, head=head, seed=3).model.classifier for _ in range(2))
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)


def test_auto_takes_the_head_with_the_higher_held_back_accuracy_and_says_the_numbers(banked):
    alone = {head: fit(banked, JOINED, head=head).reason for head in ("ridge", "logistic")}
    accuracy = {head: float(reason.split(f"Head: {head} ")[1].split(" %")[0]) for head, reason in alone.items()}
    fitted = fit(banked, JOINED)
    assert accuracy[fitted.head] == max(accuracy.values())
    for value in accuracy.values():
        assert f"{value:.1f} %" in fitted.reason
    assert fitted.reason.startswith(f"Head by held-back accuracy: {fitted.head}, from ridge ")


def test_accuracy_in_the_reason_is_that_of_the_held_back_scores(banked):
    # Left out the long way round: fit without one image of each class, ask for those, at the same penalty grid.
    right = 0
    turn = np.array([np.count_nonzero(banked.labels[:i] == label) for i, label in enumerate(banked.labels)])
    for number in range(turn.max() + 1):
        out = np.flatnonzero(turn == number)
        model = fit(banked, rows=np.flatnonzero(turn != number), head="ridge").model
        with torch.no_grad():
            right += int((model(banked.images[out]).argmax(dim=1).numpy() == banked.labels[out]).sum())
    stated = float(fit(banked, head="ridge").reason.split("Head: ridge ")[1].split(" %")[0])
    # The refits scale features and choose the penalty anew, so a borderline image or two may differ.
    assert abs(100 * right / 60 - stated) <= 100 * 3 / 60


def test_class_of_one_image_leaves_ridge_alone(banked):
    rows = np.flatnonzero((banked.labels != 2) | (np.arange(60) == 2))
    fitted = fit(banked, rows=rows)
    assert fitted.head == "ridge"
    assert "logistic" not in fitted.reason
    with pytest.raises(OptionError, match="needs 2 images per class to hold one back, got 1. Use head=ridge."):
        fit(banked, rows=rows, head="logistic")


def test_ridge_logits_are_tempered_probabilities(banked):
    with torch.no_grad():
        logits = fit(banked, JOINED, head="ridge").model(banked.images).numpy()
    # Untempered, one-hot regression scores lie in [0, 1]: softmax of them gives 0.58 at the very most, e / (e + 2).
    assert softmax(logits, axis=1).max(axis=1).mean() > 0.6
    # Tempered on held-back scores, so on the images themselves the model is at most too modest.
    assert 0.3 < fit_temperature(logits, banked.labels) < 1.05


def test_balanced_weights_are_scikit_learns_and_weigh_every_class_alike():
    labels = np.array([0, 0, 0, 0, 1, 2, 2])
    weights = class_weights(labels, "balanced")
    np.testing.assert_allclose(weights, compute_sample_weight("balanced", labels))
    np.testing.assert_allclose(np.bincount(labels, weights=weights), 7 / 3)
    assert class_weights(labels, "none") is None


def test_balanced_weights_pass_over_classes_without_images():
    np.testing.assert_allclose(class_weights(np.array([0, 0, 2, 2]), "balanced"), 1)


@pytest.mark.parametrize("head", ["ridge", "logistic"])
def test_balanced_weights_raise_the_recall_of_a_rare_class(banked, head):
    rows = np.flatnonzero((banked.labels != 0) | (np.arange(60) < 12))  # 4 cats, 20 dogs, 20 owls

    def mean_margin(class_weight: str) -> float:
        with torch.no_grad():
            chances = fit(banked, rows=rows, head=head, class_weight=class_weight).model(banked.images).softmax(1)
        return float(chances[banked.labels == 0, 0].mean())

    assert mean_margin("balanced") > mean_margin("none")


def test_unknown_head_and_weighting_offer_the_closest(banked):
    with pytest.raises(OptionError, match="Unknown head 'rigde'. Closest known: ridge."):
        fit(banked, head="rigde")
    with pytest.raises(OptionError, match="Unknown class_weight 'balance'. Closest known: balanced."):
        fit(banked, class_weight="balance")
    assert set(CLASS_WEIGHTS) == {"none", "balanced", "auto"}


def test_selected_features_alone_carry_the_models_answers(banked):
    blocks, columns = banked.table.select(SELECTED.stages)
    chosen = select_features(lambda: banked.table.chunks(columns), banked.labels, blocks, classes=3, seed=0)
    assert 0 < chosen.kept < len(columns)
    fitted = fit(banked, SELECTED, head="ridge")
    weight = fitted.model.classifier.weight.detach().numpy()
    assert ((np.abs(weight).max(axis=0) > 0) == (chosen.emphasis > 0)).all()
    assert fitted.head == "ridge"
    assert fitted.reason.endswith(f"; {chosen.kept} of {len(columns)} features, cross-validated.")
    assert f"({chosen.kept} of {len(columns)} features, cross-validated): " in fit(banked, SELECTED).reason
    with torch.no_grad():
        answers = fitted.model(banked.images).argmax(dim=1).numpy()
    assert (answers == banked.labels).mean() > 0.6


def test_heads_on_selected_features_are_told_by_the_same_yardstick(banked):
    blocks, columns = banked.table.select(SELECTED.stages)
    chosen = select_features(lambda: banked.table.chunks(columns), banked.labels, blocks, classes=3, seed=0)
    ridge, logistic, average = fit_heads(SELECTED, banked.table, banked.labels, classes=3, selection=chosen)
    assert (ridge.name, logistic.name, average.name) == ("ridge", "logistic", "average")
    plain, *_ = fit_heads(JOINED, banked.table, banked.labels, classes=3, head="ridge")
    assert ridge.accuracy == pytest.approx(min(1.0, plain.accuracy + chosen.gain))
    for found in (ridge, logistic, average):
        assert 0 <= found.accuracy <= 1
        assert ((np.abs(found.weight).max(axis=0) > 1e-9) == (chosen.emphasis > 0)).all()
    (alone,) = fit_heads(SELECTED, banked.table, banked.labels, classes=3, head="logistic", selection=chosen)
    np.testing.assert_allclose(alone.weight, logistic.weight, atol=1e-5)
    again, *_ = fit_heads(SELECTED, banked.table, banked.labels, classes=3)  # selects by itself
    np.testing.assert_array_equal(again.weight, ridge.weight)


def test_images_that_are_all_alike_are_not_named_right_by_rounding(tmp_path):
    shelf = FeatureBank(tmp_path).shelf({"weights": "same"}, {"top": 7})
    ids = np.array([f"{i:032}".encode() for i in range(18)])
    with shelf.writer() as writer:
        writer.append(ids, np.ones((18, 7), dtype=np.float32))
    labels = np.arange(18) % 3
    for plan in (TOP, replace(TOP, selected=True)):
        ridge, *others = fit_heads(plan, shelf.table(ids), labels, classes=3)
        assert ridge.accuracy == 0
        assert all(np.isfinite(found.weight).all() for found in (ridge, *others))


def test_the_average_is_the_mean_of_both_heads_and_judged_by_its_own_answers(banked):
    ridge, logistic, average = fit_heads(JOINED, banked.table, banked.labels, classes=3)
    np.testing.assert_allclose(average.weight, (ridge.weight + logistic.weight) / 2, atol=1e-9)
    logits = ridge.logits[logistic.rows] + logistic.logits
    right = logits.argmax(axis=1) == banked.labels[logistic.rows]
    assert average.accuracy == pytest.approx(right.mean())
    (alone,) = fit_heads(JOINED, banked.table, banked.labels, classes=3, head="average")
    np.testing.assert_allclose(alone.bias, average.bias, atol=1e-6)
    assert fit(banked, head="average").head == "average"


@pytest.mark.parametrize(
    ("accuracies", "kept"), [((0.9, 0.7), "ridge"), ((0.7, 0.9), "logistic"), ((0.80, 0.83), "average")]
)
def test_a_head_is_kept_alone_only_if_its_lead_is_clear(banked, accuracies, kept):
    ridge, logistic, average = fit_heads(JOINED, banked.table, banked.labels, classes=3)
    fits = [replace(found, accuracy=a) for found, a in zip((ridge, logistic), accuracies, strict=True)]
    assert choose_head([*fits, average]).name == kept  # 60 images: a standard error of 4 to 6 points
    assert choose_head([ridge]) is ridge
