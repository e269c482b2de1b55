"""Losses of unlabelled images: values that are known by construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import transferkit as tk
from transferkit.core.errors import OptionError
from transferkit.finetune.unlabelled import FixMatch, domain_weight, pseudo_labels, reverse_gradient

QUICK = {
    "image_size": 32, "pretrained": False, "progress": False, "views": 1, "geometry": "crop",
    "train": {"epochs": 2, "folds": 2, "lr": 0.01},
}  # fmt: skip


def test_only_confident_images_get_a_pseudo_label():
    probabilities = torch.tensor([[0.96, 0.04], [0.94, 0.06], [0.02, 0.98]])
    half = torch.tensor([0.5, 0.5])
    labels, confident = pseudo_labels(probabilities, proportions=half, predicted=half)
    assert labels.tolist() == [0, 0, 1]
    assert confident.tolist() == [True, False, True]


def test_alignment_raises_the_class_that_is_predicted_too_seldom():
    """0.5 x (0.5 / 0.9) against 0.5 x (0.5 / 0.1): one part in ten."""
    labels, confident = pseudo_labels(
        torch.tensor([[0.5, 0.5]]),
        proportions=torch.tensor([0.5, 0.5]),
        predicted=torch.tensor([0.9, 0.1]),
        threshold=0.89,
    )
    assert labels.tolist() == [1]
    assert confident.tolist() == [True]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_reversed_gradient_is_minus_the_weight_times_the_gradient(weight):
    features = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    (plain,) = torch.autograd.grad((features**3).sum(), features)
    out = reverse_gradient(features, weight)
    assert torch.equal(out, features)
    (found,) = torch.autograd.grad((out**3).sum(), features)
    assert torch.equal(found, -weight * plain)


def test_the_ramp_rises_from_0_to_1():
    assert domain_weight(0.0) == 0
    assert domain_weight(0.1) == pytest.approx(np.tanh(0.5))  # 2 / (1 + exp(-2x)) - 1 is tanh(x)
    assert domain_weight(1.0) == pytest.approx(1, abs=1e-4)


class Lines(torch.nn.Module):
    """What a loss needs of a module: the colour of a picture decides between two classes, and two others are unused."""

    current_epoch, device = 0, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Linear(3, 2)
        self.logged: dict[str, float] = {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(images.float().mean(dim=(2, 3)) / 255)
        return logits

    def log_mean(self, name: str, value: torch.Tensor, *, images: int) -> None:
        self.logged[name] = float(value)


def test_what_is_learnt_of_unlabelled_images_is_right_where_labels_are_few():
    """Patches of two colours: labelled ones fix the first channel only, which is weak in the strong views."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(2, size=400)

    def batches(size: int, *, epoch: int, batch: int, strong: bool) -> torch.Tensor:
        own = torch.from_numpy(kinds[(batch * size + np.arange(size)) % 400])
        pictures = torch.zeros(size, 3, 4, 4)
        pictures[:, 1] = 255.0 * own[:, None, None]
        pictures[:, 2] = 255.0 * (1 - own)[:, None, None]
        if not strong:
            pictures[:, 0] = 255.0 * own[:, None, None]
        return pictures

    module = Lines()
    with torch.no_grad():
        module.model.weight.copy_(torch.tensor([[-5.0, 0.0, 0.0], [5.0, 0.0, 0.0]]))
        module.model.bias.copy_(torch.tensor([2.5, -2.5]))
    loss, rate = FixMatch(batches, np.array([0, 1]), classes=2, seed=0), 0.1
    labelled = torch.zeros(2, 3, 4, 4)
    labelled[1, 0] = 255.0
    test = batches(200, epoch=0, batch=0, strong=True)
    optimizer = torch.optim.SGD(module.model.parameters(), lr=rate)

    def accuracy() -> float:
        return float((module(test).argmax(dim=1).numpy() == kinds[:200]).mean())

    before = accuracy()
    for step in range(150):
        optimizer.zero_grad()
        known = torch.nn.functional.cross_entropy(module(labelled), torch.tensor([0, 1]))
        (known + loss.loss(module, torch.zeros(16, 3), step)).backward()
        optimizer.step()
        assert step or module.logged["pseudo_labelled"] == 1.0
    assert before < 0.6
    assert accuracy() == 1.0


@pytest.mark.parametrize("strategy", ["fixmatch", "dann"])
def test_without_unlabelled_images_the_remedy_is_said_before_any_work(strategy):
    with pytest.raises(OptionError, match=f"strategy={strategy} trains on unlabelled .* unlabelled=DIR. .*lp_ft"):
        tk.adapt("timm/nothing", "nowhere-but-a-name", strategy=strategy)


def test_images_of_one_size_are_trained_on():
    with pytest.raises(OptionError, match="Leave out train.start_size"):
        tk.adapt("timm/test_resnet", "builtin/digits", strategy="dann", unlabelled=[], train={"start_size": 0.5})


@pytest.mark.parametrize("strategy", ["fixmatch", "dann"])
def test_a_run_says_what_was_used_and_left_out_and_ends_the_same_again(stripes, tmp_path, strategy):
    more = tmp_path / "more"
    more.mkdir()
    rng = np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(more / f"{number}.png")
    (more / "copy.png").write_bytes(next(iter(sorted((stripes / "train").rglob("*.png")))).read_bytes())
    one, two = (tk.adapt("timm/test_resnet", stripes, strategy=strategy, unlabelled=more, **QUICK) for _ in range(2))
    (said,) = [note for note in one.record.training.notes if "unlabelled images as well" in note]
    assert "with 10 unlabelled images as well; 1 were left out" in said
    assert ("the target is not measured" in said) == (strategy == "dann")
    assert one.record.training.epochs[-1].train_loss == two.record.training.epochs[-1].train_loss
    plain = tk.adapt("timm/test_resnet", stripes, strategy="lp_ft", **QUICK)
    assert one.record.training.epochs[-1].val_loss != plain.record.training.epochs[-1].val_loss
