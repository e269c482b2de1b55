"""Targets of TransferModule: their checks, losses, scores, scale and weights, by task."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.unit.finetune.training_toys import (
    CLASSES,
    draw,
    fit,
    head_then,
    loader,
    make_backbone,
    make_module,
    make_trainer,
    phase,
    plan_of,
    quiet,
)
from transferkit.core.errors import DataError, OptionError
from transferkit.finetune import TransferModule

Y = torch.tensor([0, 1, 2, 1])


BAD_TARGETS = [
    (
        "single_label",
        Y.float(),
        r"has \(n,\) integers in \[0, 3\) as targets, got \(4,\) of float32. Use targets.long",
    ),
    ("single_label", Y[:, None], r"got \(4, 1\) of int64. Use targets.squeeze\(1\).long\(\)"),
    ("single_label", Y[:, None].float(), r"got \(4, 1\) of float32. Use targets.squeeze\(1\).long\(\)"),
    ("single_label", Y + 1, r"got labels from 1 to 3. Number the classes from 0, or name all of them in classes="),
    ("single_label", Y - 1, "got labels from -1 to 1"),
    ("single_label", F.one_hot(Y, 4).float(), r"For class shares, pass \(n, 3\) floats; for numbers .*regression"),
    ("multi_label", Y, r"has \(n, 3\) values in \[0, 1\] as targets, got \(4,\) of int64. For one label per image use"),
    ("multi_label", 2 * F.one_hot(Y, 3), "got values from 0 to 2"),
    ("regression", Y.float(), r"has \(n, 3\) finite numbers as targets, got \(4,\)"),
    ("regression", torch.full((4, 3), torch.nan), "got values that are not finite"),
]


@pytest.mark.parametrize(("task", "targets", "message"), BAD_TARGETS)
def test_targets_of_a_batch_are_checked_in_words(task, targets, message):
    batches = [(images[:4], targets) for images, _ in draw(2)]
    module = TransferModule(make_backbone(), "lp_ft", classes=3, lr=1e-2, task=task)
    for use in ("fit", "validate"):
        with quiet(), pytest.raises(DataError, match=message):
            getattr(make_trainer(1), use)(module, loader(batches))


def test_batches_without_targets_are_named():
    with (
        quiet(),
        pytest.raises(DataError, match="Expected batches .images, targets. with tensors as targets, got Tensor"),
    ):
        make_trainer(1).fit(
            TransferModule(make_backbone(), "lp_ft", classes=3, lr=1e-2), loader([images for images, _ in draw(2)])
        )


def test_truth_values_and_shares_of_classes_are_targets():
    for targets in (torch.tensor([True, False, True, True]), torch.full((4, 2), 0.5), Y.clamp(max=1).to(torch.uint8)):
        module = TransferModule(make_backbone(), "lp_ft", classes=2, lr=1e-2)
        with quiet():
            make_trainer(1).fit(module, loader([(images[:4], targets) for images, _ in draw(2)]))


@pytest.mark.parametrize(
    ("task", "make", "metric", "link"),
    [
        ("single_label", lambda labels: labels, "val_accuracy", lambda z: z.softmax(1)),
        ("multi_label", lambda labels: F.one_hot(labels, CLASSES).float(), "val_mean_average_precision", torch.sigmoid),
        ("regression", lambda labels: F.one_hot(labels, CLASSES).float(), "val_r2", lambda z: z),
    ],
)
def test_each_kind_of_target_is_learnt_and_judged_by_its_own_measure(task, make, metric, link):
    batches = [(images, make(labels)) for images, labels in draw(6)]
    module = make_module(phase("all", stem=0.02, middle=0.02, top=0.02, head=0.05), task=task)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    fit(module, 1, train=loader(batches), held_back=loader(batches))
    first = float(module.trainer.callback_metrics["val_loss"])
    fit(module, 25, train=loader(batches), held_back=loader(batches))
    metrics = module.trainer.callback_metrics
    assert {"train_loss", "val_loss", metric} <= set(metrics)
    assert float(metrics["val_loss"]) < first
    with quiet():
        predicted = torch.cat(make_trainer(1).predict(module, loader(batches)))
    torch.testing.assert_close(predicted, link(module.outputs), atol=1e-5, rtol=1e-5)


def test_class_weights_reach_the_loss():
    images, labels = draw(1)[0]
    plain, weighted = make_module(), make_module(weights=[1.0, 5.0, 0.5])
    for module in (plain, weighted):
        module.log = lambda *_, **__: None
    expected = float(np.log(CLASSES))  # a new head: every image costs log K, times its class's weight
    assert plain.training_step((images, labels), 0).item() == pytest.approx(expected)
    weights = torch.tensor([1.0, 5.0, 0.5])[labels]
    assert weighted.training_step((images, labels), 0).item() == pytest.approx(expected * float(weights.mean()))
    assert "class_weights" not in weighted.state_dict()


def test_the_held_back_loss_is_that_of_calibrated_logits_and_of_all_images_together():
    """An overconfident network is not taken for a worse one."""
    module = make_module(phase("top", top=1e-9, head=1e-9))
    with torch.no_grad():
        module.model.classifier.linear.weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(50)
    batches = draw(5, seed=3)
    fit(module, 1, train=loader(), held_back=loader(batches))
    labels = torch.cat([labels for _, labels in batches])
    losses = [float(F.cross_entropy(module.outputs / t, labels)) for t in np.geomspace(0.01, 100, 400)]
    assert float(module.trainer.callback_metrics["val_loss"]) == pytest.approx(min(losses), abs=2e-3)
    accuracy = float((module.outputs.argmax(1) == labels).float().mean())
    assert float(module.trainer.callback_metrics["val_accuracy"]) == pytest.approx(accuracy)


def brightness(batches):
    """Numbers far from 0, told by the pictures."""
    return [(images, 500 + 40 * images.float().mean(dim=(1, 2, 3)).double()) for images, _ in batches]


def test_numbers_are_learnt_in_units_of_their_spread_and_told_in_their_own():
    batches = brightness(draw(6))
    targets = torch.cat([numbers for _, numbers in batches])
    plan = plan_of(phase("everything", stem=0.01, middle=0.01, top=0.01))
    module = TransferModule(make_backbone(), plan, classes=["brightness"], task="regression", targets=targets)
    assert module.scale.mean[0] == pytest.approx(targets.mean().item())
    trainer = fit(module, 3, train=loader(batches), held_back=loader(batches))
    assert trainer.callback_metrics["train_loss"] < 5  # of raw numbers it would be hundreds
    with quiet():
        told = torch.cat(trainer.predict(module, loader(batches)))
    assert (told.mean() - targets.mean()).abs() < 3 * targets.std()
    model = module.finish()
    images = torch.cat([images for images, _ in batches])
    with torch.no_grad():
        torch.testing.assert_close(model(model.normalise(images)), told, rtol=1e-4, atol=1e-2)
    with quiet():  # finished, the module says the same
        torch.testing.assert_close(torch.cat(trainer.predict(module, loader(batches))), told, rtol=1e-4, atol=1e-2)


def test_weights_are_told_from_the_targets():
    labels = np.array([[1, 1], [0, 1], [0, 0], [0, 0]])
    plan = plan_of(*head_then(top=0.05))
    module = TransferModule(
        make_backbone(), plan, classes=["rare", "even"], task="multi_label", targets=labels, weights="auto"
    )
    assert module.class_weights.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "auto"}, "weights='auto' are computed from the training targets: give targets as well"),
        ({"weights": [1.0, 2.0]}, r"There are 3 outputs, so 3 weights are needed; got \(2,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        make_module(**options)


def test_targets_are_checked():
    with pytest.raises(DataError, match=r"Labels must be in \[0, 3\), the known classes; got 7"):
        make_module(targets=[0, 1, 7])
