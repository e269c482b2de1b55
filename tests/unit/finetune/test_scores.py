"""Loss and score of a pass: of all images together, whatever the batches, devices and number types; by hand."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchmetrics import Metric

from tests.unit.finetune.training_toys import make_backbone
from transferkit.core.errors import DataError
from transferkit.finetune import TransferModule
from transferkit.finetune.losses import TASKS
from transferkit.finetune.scores import HeldBackLoss


def fed(metric: Metric, outputs: torch.Tensor, targets: torch.Tensor, sizes: tuple[int, ...]) -> Metric:
    """The metric after batches of these sizes."""
    assert sum(sizes) == len(outputs)
    for batch in zip(outputs.split(sizes), targets.split(sizes), strict=True):
        metric.update(*batch)
    return metric


def score(task: str, outputs: torch.Tensor, targets: torch.Tensor, sizes: tuple[int, ...] = ()) -> float:
    metric = TASKS[task].make_score(outputs.shape[1])
    return float(fed(metric, outputs, targets, sizes or (len(outputs),)).compute())


def draw(seed: int = 0) -> tuple[torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(40, 3, generator=generator), generator


SIZES = [(40,), (16, 16, 8), (1, 39)]


@pytest.mark.parametrize("sizes", SIZES)
def test_accuracy_is_the_share_of_images_whose_highest_output_is_their_class(sizes):
    outputs, generator = draw()
    labels = torch.randint(3, (40,), generator=generator)
    right = sum(max(range(3), key=lambda k: row[k]) == label for row, label in zip(outputs, labels, strict=True))
    assert score("single_label", outputs, labels, sizes) == pytest.approx(right / 40)


def test_where_all_classes_are_equally_likely_the_first_one_is_predicted():
    assert score("single_label", torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])) == 0.5


def average_precision(outputs: torch.Tensor, on: torch.Tensor) -> float:
    """Mean, over the images that have the label, of the share of such among those ranked as high or higher."""
    return float(np.mean([on[outputs >= outputs[image]].float().mean() for image in torch.nonzero(on).flatten()]))


@pytest.mark.parametrize("sizes", SIZES)
def test_mean_average_precision_is_that_of_the_ranks(sizes):
    outputs, generator = draw()
    on = torch.rand(40, 3, generator=generator) < 0.3
    expected = np.mean([average_precision(outputs[:, k], on[:, k]) for k in range(3)])
    assert score("multi_label", outputs, on, sizes) == pytest.approx(expected)
    # A sigmoid in single precision would make these equal.
    assert score("multi_label", 100 + outputs.double().argsort(0).float(), on, sizes) == pytest.approx(
        score("multi_label", outputs.double().argsort(0).float(), on, sizes)
    )


def test_a_label_that_is_held_back_on_no_image_is_left_out():
    outputs = torch.tensor([[3.0, 0.0], [2.0, 9.0], [1.0, 0.0]])
    on = torch.tensor([[1, 0], [0, 0], [1, 0]])
    assert score("multi_label", outputs, on) == pytest.approx((1 + 2 / 3) / 2)
    with pytest.raises(DataError, match="No held-back image has any label"):
        score("multi_label", outputs, torch.zeros(3, 2))


@pytest.mark.parametrize("far", [0.0, 1e4])
@pytest.mark.parametrize("sizes", SIZES)
def test_r2_is_the_share_of_variance_explained_however_far_from_zero_the_numbers_are(sizes, far):
    outputs, generator = draw()
    numbers = outputs + torch.randn(40, 3, generator=generator)
    residuals, spread = (numbers - outputs).square().sum(0), (numbers - numbers.mean(0)).square().sum(0)
    expected = float((1 - residuals / spread).mean())
    assert score("regression", outputs.double() + far, numbers.double() + far, sizes) == pytest.approx(expected)


def test_one_image_has_no_r2():
    with pytest.raises(DataError, match="R2 needs 2 held-back images, got 1. Hold back more"):
        score("regression", torch.ones(1, 1), torch.ones(1))


def test_a_perfect_model_scores_one_in_every_task():
    labels = torch.tensor([0, 1, 2, 1])
    one_hot = F.one_hot(labels).float()
    assert score("single_label", one_hot, labels) == 1
    assert score("multi_label", one_hot, one_hot) == 1
    assert score("regression", one_hot, one_hot) == 1
    assert score("regression", labels[:, None].float(), labels) == 1


@pytest.mark.parametrize("sizes", SIZES)
def test_the_loss_is_of_all_images_and_not_of_their_batches(sizes):
    outputs, generator = draw()
    numbers, weights = torch.randn(40, 3, generator=generator), torch.tensor([1.0, 0.0, 2.0])
    small = 0.5 * (outputs - numbers).square()
    large = (outputs - numbers).abs() - 0.5
    expected = (torch.where((outputs - numbers).abs() < 1, small, large) * weights).mean()
    loss = HeldBackLoss(TASKS["regression"].loss, weights=weights)
    torch.testing.assert_close(fed(loss, outputs, numbers, sizes).compute(), expected)
    assert torch.equal(loss.all_outputs(), outputs)


def test_a_calibrated_loss_does_not_depend_on_how_confident_the_network_is():
    outputs, _ = draw()
    labels = (outputs + draw(1)[0]).argmax(1)  # often right
    losses = [
        float(fed(HeldBackLoss(TASKS["single_label"].loss, calibrated=True), times * outputs, labels, (40,)).compute())
        for times in (1, 0.1, 30)
    ]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-3)


def test_outputs_that_are_not_finite_have_a_loss_that_is_not():
    loss = HeldBackLoss(TASKS["single_label"].loss, calibrated=True)
    loss.update(torch.tensor([[torch.nan, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    assert loss.compute().isnan()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric))])
@pytest.mark.parametrize("task", TASKS)
def test_a_reset_metric_and_its_copy_start_over(task, clone):
    outputs, generator = draw()
    targets = torch.randint(3, (40,), generator=generator)
    targets = targets if task == "single_label" else F.one_hot(targets, 3).float()
    metrics = TASKS[task].make_score(3), HeldBackLoss(TASKS[task].loss, calibrated=task == "single_label")
    for metric in metrics:
        first = fed(metric, outputs[:20], targets[:20], (20,)).compute()
        metric.reset()
        for again in (metric, clone(metric)):
            second = fed(again, outputs[20:], targets[20:], (20,)).compute()
            assert second != first
            again.reset()
            assert fed(again, outputs[:20], targets[:20], (20,)).compute() == first
            again.reset()


def test_targets_that_a_trainer_in_half_precision_converted_are_scored():
    on = torch.tensor([[1, 0], [0, 1], [1, 1]]).bfloat16()
    assert score("multi_label", on.float(), on) == 1
    assert score("regression", on.float(), on) == 1


def test_metrics_add_nothing_to_what_a_checkpoint_holds():
    module = TransferModule(make_backbone(), "few_layers", classes=3, lr=0.1, weights=[1.0, 2.0, 3.0])
    for metric in (module.held_back_loss, module.held_back_score):
        fed(metric, torch.eye(3), torch.arange(3), (3,))
    assert {name.partition(".")[0] for name in module.state_dict()} == {"model"}


UNEVEN = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import pytorch_lightning as pl, torch
from torch.utils.data import DataLoader
from tests.unit.finetune.training_toys import make_backbone
import transferkit as tk

rank = int(os.environ.get("LOCAL_RANK", "0"))
labels = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]][rank])[: (4, 1)[rank]]
images = torch.zeros(len(labels), 3, 16, 16)
module = tk.TransferModule(make_backbone(), "few_layers", classes=3, lr=0.1, weights=[1.0, 2.0, 1.0])
trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False,
                     enable_checkpointing=False, enable_model_summary=False, use_distributed_sampler=False)
loader = DataLoader([(images[i : i + 3], labels[i : i + 3]) for i in range(0, len(labels), 3)], batch_size=None)
found = trainer.validate(module, loader, verbose=False)[0]
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump(found, file)
"""


@pytest.mark.slow
def test_processes_with_different_numbers_of_images_log_what_one_would(tmp_path):
    """Four images and one: a new head predicts the first class, and costs log 3 times the weight of the class."""
    script = tmp_path / "uneven.py"
    script.write_text(UNEVEN, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    words = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in range(2):
        logged = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        assert logged["val_accuracy"] == pytest.approx(3 / 5)
        assert logged["val_loss"] == pytest.approx(np.log(3) * (3 * 1 + 2 * 2) / 5)
