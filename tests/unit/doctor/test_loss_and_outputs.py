"""What the loss makes of the model's outputs: mistakes that run without an error, and healthy pairs beside them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.unit.doctor.toys import CLASSES, images, sgd, toy
from transferkit.doctor import examine


def ends_with(*layers):
    return nn.Sequential(toy(norm=False, dropout=0.0), *layers)


def causes(model, targets, loss, checks=("loss",)):
    found = examine(model, (images()[0], targets), loss=loss, checks=checks)
    assert not found.skipped
    return [(one.cause, one.severity) for one in found.symptoms]


LABELS = images()[1]
SEVERAL = (torch.arange(16)[:, None] % torch.tensor([2, 3, 4, 5]) == 0).float()
ONE_HOT = F.one_hot(LABELS, CLASSES).float()


def focal(outputs, targets):
    each = F.cross_entropy(outputs, targets, reduction="none")
    return ((1 - torch.exp(-each)) ** 2 * each).mean()


HEALTHY = {
    "cross-entropy": ((), LABELS, F.cross_entropy),
    "smoothed": ((), LABELS, nn.CrossEntropyLoss(label_smoothing=0.1)),
    "weighted": ((), LABELS, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0]))),
    "summed": ((), LABELS, nn.CrossEntropyLoss(reduction="sum")),
    "focal": ((), LABELS, focal),
    "soft labels": ((), 0.8 * ONE_HOT + 0.05, F.cross_entropy),
    "log-likelihood": ((nn.LogSoftmax(1),), LABELS, F.nll_loss),
    "logarithm in the loss": ((nn.Softmax(1),), LABELS, lambda out, y: F.nll_loss(out.log(), y)),
    "several labels": ((), SEVERAL, nn.BCEWithLogitsLoss()),
    "sigmoid and its own loss": ((nn.Sigmoid(),), SEVERAL, nn.BCELoss()),
    "sigmoid and squares": ((nn.Sigmoid(),), SEVERAL, nn.MSELoss()),
    "one-hot squares of probabilities": ((nn.Softmax(1),), ONE_HOT, nn.MSELoss()),
    "rectified regression": ((nn.ReLU(),), SEVERAL, nn.MSELoss()),
    "tanh of images": ((nn.Tanh(),), 2 * SEVERAL - 1, nn.L1Loss()),
    "squeezed": ((nn.Linear(4, 1),), SEVERAL[:, 0], lambda out, y: F.mse_loss(out.squeeze(1), y)),
    "squeezed logit": (
        (nn.Linear(4, 1),),
        (LABELS > 1).long(),
        lambda out, y: F.binary_cross_entropy_with_logits(out[:, 0], y.float()),
    ),
}


@pytest.mark.parametrize("name", sorted(HEALTHY))
def test_healthy_pairs_of_outputs_and_loss(name):
    layers, targets, loss = HEALTHY[name]
    assert causes(ends_with(*layers), targets, loss) == []


MISTAKEN = {
    "two sigmoids": ((nn.Sigmoid(),), SEVERAL, nn.BCEWithLogitsLoss(), "squashed_outputs", "alarm"),
    "two sigmoids, smoothed": (
        (nn.Sigmoid(),),
        0.8 * SEVERAL + 0.1,
        nn.BCEWithLogitsLoss(),
        "squashed_outputs",
        "alarm",
    ),
    "two sigmoids, one logit": (
        (nn.Linear(4, 1), nn.Sigmoid(), nn.Flatten(0)),
        (LABELS > 1).float(),
        F.binary_cross_entropy_with_logits,
        "squashed_outputs",
        "alarm",
    ),
    "sigmoid and softmax": ((nn.Sigmoid(),), LABELS, F.cross_entropy, "squashed_outputs", "alarm"),
    "tanh and softmax": ((nn.Tanh(),), LABELS, F.cross_entropy, "squashed_outputs", "alarm"),
    "rectifier and softmax": ((nn.ReLU(),), LABELS, F.cross_entropy, "squashed_outputs", "note"),
    "rectifier and sigmoid": ((nn.ReLU(),), SEVERAL, nn.BCEWithLogitsLoss(), "squashed_outputs", "alarm"),
    "two softmaxes": ((nn.Softmax(1),), LABELS, focal, "double_softmax", "alarm"),
    "two logarithms": ((nn.LogSoftmax(1),), LABELS, F.cross_entropy, "double_softmax", "note"),
    "softmax of one": ((nn.Linear(4, 1), nn.Softmax(1)), SEVERAL[:, :1], nn.BCELoss(), "double_softmax", "alarm"),
    "cross-entropy of one": ((nn.Linear(4, 1),), SEVERAL[:, :1], F.cross_entropy, "loss_ignores_outputs", "alarm"),
    "no logarithm": ((), LABELS, F.nll_loss, "missing_log_softmax", "alarm"),
    "no logarithm of probabilities": ((nn.Softmax(1),), LABELS, F.nll_loss, "missing_log_softmax", "alarm"),
    "several labels in a softmax": ((), SEVERAL, F.cross_entropy, "targets_no_distribution", "note"),
}


@pytest.mark.parametrize("name", sorted(MISTAKEN))
def test_mistaken_pairs_of_outputs_and_loss(name):
    layers, targets, loss, cause, severity = MISTAKEN[name]
    assert causes(ends_with(*layers), targets, loss) == [(cause, severity)]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, lambda out, y: (out - y).abs().sum()])
def test_shapes_that_are_spread_over_each_other(loss):
    column, row = nn.Linear(4, 1), nn.Flatten(0)
    assert causes(ends_with(column), SEVERAL[:, 0], loss) == [("shape_mismatch", "alarm")]
    assert causes(ends_with(column, row), SEVERAL[:, :1], loss) == [("shape_mismatch", "alarm")]
    assert causes(ends_with(column), SEVERAL[:, :1], loss) == []
    assert causes(ends_with(), SEVERAL[:, :1], loss) == [("shape_mismatch", "note")]


@pytest.mark.parametrize(
    "loss",
    [
        lambda out, y: F.cross_entropy(out.detach(), y).requires_grad_(),
        lambda out, y: F.l1_loss(out.argmax(1).float(), y.float()).requires_grad_(),
    ],
)
def test_a_loss_that_only_claims_a_gradient(loss):
    assert causes(toy(), LABELS, loss, checks=["step"]) == [("no_gradient", "alarm")]


def test_a_finite_loss_with_a_gradient_of_nan():
    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets) + (outputs - outputs.detach()).pow(2).sum().sqrt()

    found = examine(toy(), (images()[0], LABELS), loss=loss, optimizer=None, checks=["step"])
    assert [one.cause for one in found.alarms] == ["gradient_not_finite"]


@pytest.mark.parametrize("noise", [random.random, np.random.random, lambda: float(torch.rand(()))])
def test_random_evaluation_is_told_once(noise):
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.toy = toy()

        def forward(self, pixels):
            return self.toy(pixels) * (1 + noise())

    net = Noisy()
    states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    found = examine(net, images(), optimizer=sgd(net), classes=CLASSES)
    assert [one.cause for one in found.alarms] == ["random_evaluation"]
    assert "random" in found.skipped["mixing"]
    assert states == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


def test_the_model_is_as_before_after_an_exception():
    net = toy().train()
    F.cross_entropy(net(images()[0]), LABELS).backward()
    before = [one.grad.clone() for one in net.parameters()], {k: v.clone() for k, v in net.state_dict().items()}

    def loss(outputs, targets):
        net.eval()
        net.train()
        F.cross_entropy(net(images()[0]), LABELS).backward()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        examine(net, images(), loss=loss, checks=["step"])
    assert all(torch.equal(one.grad, was) for one, was in zip(net.parameters(), before[0], strict=True))
    assert all(torch.equal(value, before[1][name]) for name, value in net.state_dict().items())


def test_a_loss_that_is_summed_over_images_starts_as_its_mean_does():
    assert causes(toy(), LABELS, nn.CrossEntropyLoss(reduction="sum"), checks=["loss"]) == []
    for reduction in ("mean", "sum"):
        loss = nn.CrossEntropyLoss(reduction=reduction)
        for scale, expected in ((1, []), (1000, ["alarm"])):
            batch = (scale * images()[0], LABELS)
            found = examine(toy(norm=False), batch, loss=loss, classes=CLASSES, checks=["start_loss"])
            assert [one.severity for one in found.symptoms] == expected


def test_gradients_are_checked_with_class_weights():
    found = examine(toy(), images(), loss=nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0, 4.0])), checks=["gradients"])
    assert found.passed == ("gradients",)
