"""The bugs: each changes one thing of a healthy script, as a person does by mistake."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from planted.script import Script
from transferkit.nn.norm.recalibration import follows_batches

__all__ = ["BUGS", "Bug"]


@dataclass(frozen=True)
class Bug:
    """A mistake.

    Args:
        name: Of it.
        plant: Changes a healthy script.
        causes: Names of causes of which one must be told first.
        fits: Whether a strategy of a network can have it; None for all.
        rules: Of `torch-audit`, that would name it.
    """

    name: str
    plant: Callable[[Script], None]
    causes: frozenset[str]
    fits: Callable[[str, str], bool] | None = None
    rules: frozenset[str] = frozenset()


RULES = {
    "wrong mean and std": {"TA301"},
    "not normalised": {"TA301"},
    "values in [0, 255]": {"TA301"},
    "NaN in an image": {"TA100", "TA305"},
    "learning rate x 100": {"TA102"},
    "weight decay on norms": {"TA402"},
    "dead units at the start": {"TA103", "TA105", "TA405"},
    "all weights zero": {"TA103", "TA104", "TA105", "TA405"},
    "one layer of zeros": {"TA103", "TA105", "TA405"},
    "layer never initialised": {"TA100", "TA102"},
    "a step that changes nothing": {"TA104"},
    "features detached": {"TA103", "TA104", "TA500"},
}
"""Bug -> rules of `torch-audit` that would name it, read generously."""

BUGS: dict[str, Bug] = {}


def bug(
    name: str, *causes: str, fits: Callable[[str, str], bool] | None = None
) -> Callable[[Callable[[Script], None]], Callable[[Script], None]]:
    """Register a bug."""

    def keep(plant: Callable[[Script], None]) -> Callable[[Script], None]:
        BUGS[name] = Bug(name, plant, frozenset(causes), fits, frozenset(RULES.get(name, ())))
        return plant

    return keep


def has_batch_norm(network: str, strategy: str) -> bool:
    """Whether a network has running statistics."""
    return network != "vit"


def trains_body(network: str, strategy: str) -> bool:
    """Whether layers before the head are trained, weights included."""
    return strategy not in ("head", "norm_only", "bias_only")


def trains_all(network: str, strategy: str) -> bool:
    """Whether all layers are trained by one loop without a plan."""
    return strategy in ("plain", "sgd")


def in_both(script: Script, **changes: Any) -> None:
    """Change training and evaluation alike."""
    script.train_pipeline = replace(script.train_pipeline, **changes)
    script.held_back_pipeline = replace(script.held_back_pipeline, **changes)
    script.serving_pipeline = replace(script.serving_pipeline, **changes)


@bug("frozen batch norm in training mode", "frozen_norm_in_training_mode", fits=lambda n, s: n != "vit" and s == "head")
def _frozen_norm(script: Script) -> None:
    assert script.freeze is not None
    script.freeze.release()
    script.model.requires_grad_(False)
    script.model.linear.requires_grad_(True)  # type: ignore[union-attr, operator]
    script.freeze = None
    script.model.train()


@bug("wrong mean and std", "mean_std")
def _wrong_mean_std(script: Script) -> None:
    other = (0.5,) * 3 if script.expected.mean[0] < 0.49 else (0.485, 0.456, 0.406)
    spread = (0.5,) * 3 if script.expected.mean[0] < 0.49 else (0.229, 0.224, 0.225)
    in_both(script, mean=other, std=spread)


@bug("not normalised", "mean_std", "range")
def _not_normalised(script: Script) -> None:
    in_both(script, mean=(0.0,) * 3, std=(1.0,) * 3)


@bug("mean and std in use differ", "mean_std")
def _other_mean_std_in_use(script: Script) -> None:
    script.serving_pipeline = replace(script.serving_pipeline, mean=(0.45,) * 3, std=(0.225,) * 3)


@bug("BGR", "channel_order")
def _bgr(script: Script) -> None:
    in_both(script, reversed=True)


@bug("BGR in evaluation", "channel_order")
def _bgr_in_evaluation(script: Script) -> None:
    script.held_back_pipeline = replace(script.held_back_pipeline, reversed=True)
    script.serving_pipeline = replace(script.serving_pipeline, reversed=True)


@bug("values in [0, 255]", "range")
def _bytes(script: Script) -> None:
    in_both(script, bytes=True)


@bug("size in evaluation differs", "size")
def _other_size(script: Script) -> None:
    if script.network == "vit":  # whose size is fixed: only the service can differ
        script.serving_pipeline = replace(script.serving_pipeline, size=96)
        return
    script.held_back_pipeline = replace(script.held_back_pipeline, size=96)
    script.serving_pipeline = replace(script.serving_pipeline, size=96)


@bug("crop in use differs", "crop")
def _other_crop(script: Script) -> None:
    script.serving_pipeline = replace(script.serving_pipeline, zoom=0.8)


@bug("interpolation in use differs", "interpolation")
def _other_interpolation(script: Script) -> None:
    script.serving_pipeline = replace(script.serving_pipeline, nearest=True)


def multiply_rates(script: Script, factor: float) -> None:
    """Change all learning rates."""
    for group in script.optimizer.param_groups:
        group["lr"] *= factor


@bug("learning rate x 100", "lr_too_high", fits=trains_body)
def _rate_high(script: Script) -> None:
    multiply_rates(script, 100)


@bug("learning rate / 100", "lr_too_low", "no_learning")
def _rate_low(script: Script) -> None:
    multiply_rates(script, 1 / 100)


@bug("part not in the optimizer", "not_in_optimizer", fits=trains_body)
def _not_in_optimizer(script: Script) -> None:
    last = [one for one in script.model.parameters() if one.requires_grad][-1]
    for group in script.optimizer.param_groups:
        group["params"] = [one for one in group["params"] if one is not last and one.dim() != last.dim()]


@bug("optimizer of another copy", "foreign_parameters", "not_in_optimizer")
def _other_copy(script: Script) -> None:
    plain = copy.deepcopy(script.model)
    names = {id(one): name for name, one in script.model.named_parameters()}
    others = dict(plain.named_parameters())
    for group in script.optimizer.param_groups:
        group["params"] = [others[names[id(one)]] for one in group["params"]]


@bug("weight decay on norms", "decay_on_norms", fits=lambda n, s: s in ("plain", "sgd", "norm_only", "lp_ft"))
def _decayed_norms(script: Script) -> None:
    for group in script.optimizer.param_groups:
        group["weight_decay"] = 0.05


@bug("double softmax", "double_softmax")
def _double_softmax(script: Script) -> None:
    script.model = nn.Sequential(script.model, nn.Softmax(dim=1))
    script.model.train(script.model[0].training)


@bug("softmax over the batch", "mixes_samples", "double_softmax")
def _batch_softmax(script: Script) -> None:
    nn.init.normal_(script.model.linear.weight, std=0.02)  # type: ignore[union-attr, arg-type]
    script.model = nn.Sequential(script.model, nn.Softmax(dim=0))


@bug("labels shuffled", "labels_unrelated")
def _shuffled(script: Script) -> None:
    pictures, labels = script.task.train
    script.task = replace(script.task, train=(pictures, np.random.default_rng(script.seed).permutation(labels)))


@bug("training images not shuffled", "not_shuffled")
def _in_order(script: Script) -> None:
    script.shuffle = False


@bug("test images in training", "leak_across_splits")
def _leak(script: Script) -> None:
    pictures, labels = script.task.train
    theirs, known = script.task.held_back
    some = np.random.default_rng(script.seed).permutation(len(known))[:30]
    script.task = replace(
        script.task, train=(np.concatenate([pictures, theirs[some]]), np.concatenate([labels, known[some]]))
    )


@bug("label map changed", "label_map_changed", "other_classes")
def _label_map(script: Script) -> None:
    pictures, labels = script.task.held_back
    order = np.random.default_rng(script.seed).permutation(len(script.task.classes))
    if (order == np.arange(len(order))).all():
        order = order[::-1]
    script.task = replace(script.task, held_back=(pictures, order[labels]))


@bug("names in use in another order", "label_map_changed")
def _served_names(script: Script) -> None:
    script.served_names = tuple(reversed(script.served_names))


@bug("gradients not zeroed", "gradients_not_zeroed")
def _not_zeroed(script: Script) -> None:
    script.zero_gradients = False


@bug("class missing in training", "class_missing")
def _missing_class(script: Script) -> None:
    pictures, labels = script.task.train
    kept = labels != len(script.task.classes) // 2
    script.task = replace(script.task, train=(pictures[kept], labels[kept]))


def _some_weight(script: Script, *, place: float) -> nn.Module:
    """A layer of the body, some way through it."""
    layers = [
        one for one in script.model.modules() if isinstance(one, (nn.Conv2d, nn.Linear)) and one.weight.numel() > 400
    ]
    return layers[int(place * (len(layers) - 1))]


@bug("dead units at the start", "dead_units", "same_features", fits=lambda n, s: n != "vit" and trains_body(n, s))
def _dead(script: Script) -> None:
    norms = [one for one in script.model.modules() if follows_batches(one)]
    with torch.no_grad():
        for one in norms[len(norms) // 2 : len(norms) // 2 + 3]:
            one.bias.fill_(-30.0)  # type: ignore[union-attr, operator]


@bug("all weights zero", "zero_weights", "same_features", "dead_network", fits=trains_body)
def _zero(script: Script) -> None:
    with torch.no_grad():
        for one in script.model.modules():
            if isinstance(one, (nn.Conv2d, nn.Linear)):
                one.weight.zero_()


@bug("one layer of zeros", "zero_weights", "same_features")
def _zero_layer(script: Script) -> None:
    with torch.no_grad():
        _some_weight(script, place=0.5).weight.zero_()  # type: ignore[operator, union-attr]


@bug("same augmentation in every worker", "repeated_augmentation")
def _same_augmentation(script: Script) -> None:
    script.workers, script.keeps_generator = 2, True


class NoisyHead(nn.Module):
    """A network whose dropout ignores the mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, K)."""
        found: torch.Tensor = nn.functional.dropout(self.model(images), 0.2)
        return found


@bug("dropout always on", "random_evaluation")
def _dropout(script: Script) -> None:
    nn.init.normal_(script.model.linear.weight, std=0.02)  # type: ignore[union-attr, arg-type]
    script.model = NoisyHead(script.model)


@bug("evaluated in training mode", "evaluated_in_training_mode", fits=lambda n, s: n != "vit" and trains_all(n, s))
def _no_eval(script: Script) -> None:
    script.evaluates = False


@bug("layer not in the checkpoint", "not_loaded")
def _not_loaded(script: Script) -> None:
    _some_weight(script, place=0.6).reset_parameters()  # type: ignore[operator]


@bug("layer never initialised", "uninitialised", "weights_not_finite", "signal_explodes")
def _uninitialised(script: Script) -> None:
    layer = _some_weight(script, place=0.6)
    noise = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(script.seed))  # type: ignore[union-attr]
    with torch.no_grad():  # what lies in memory: any exponent
        layer.weight.copy_(torch.pow(10.0, 40 * noise - 20) * torch.sign(noise - 0.5))  # type: ignore[operator, union-attr]


@bug("a step that changes nothing", "step_changes_nothing", "no_learning", "rate_zero")
def _nothing(script: Script) -> None:
    def vanish() -> None:
        for one in script.model.parameters():
            if one.grad is not None:
                one.grad = None

    script.in_step = vanish


@bug("rate of zero", "step_changes_nothing", "no_learning", "lr_too_low", "rate_zero")
def _rate_zero(script: Script) -> None:
    multiply_rates(script, 0.0)


class Detached(nn.Module):
    """A network whose features are cut off from the gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, K)."""
        found: torch.Tensor = self.model.linear(self.model.features(images).detach())  # type: ignore[operator, union-attr]
        return found


@bug("features detached", "wrong_gradient", "unused_parameters", fits=trains_body)
def _detached(script: Script) -> None:
    nn.init.normal_(script.model.linear.weight, std=0.02)  # type: ignore[union-attr, arg-type]
    script.model = Detached(script.model)


@bug("labels from one", "targets_out_of_range")
def _from_one(script: Script) -> None:
    (pictures, labels), (theirs, known) = script.task.train, script.task.held_back
    script.task = replace(script.task, train=(pictures, labels + 1), held_back=(theirs, known + 1))
    script.loss = lambda outputs, targets: nn.functional.cross_entropy(outputs, targets.clamp(max=outputs.shape[1] - 1))


@bug("frozen parameters moved", "frozen_moves", fits=lambda n, s: s == "head")
def _frozen_moves(script: Script) -> None:
    script.optimizer = torch.optim.AdamW(script.model.parameters(), lr=1e-3, weight_decay=0.0)
    for one in script.model.parameters():  # of an earlier phase, in which all were trained
        one.grad = torch.full_like(one, 1e-3)

    def keep() -> None:
        for one in script.model.parameters():
            if one.grad is None:
                one.grad = torch.full_like(one, 1e-3)

    script.in_step = keep


@bug("NaN in an image", "inputs_not_finite", "loss_not_finite")
def _nan(script: Script) -> None:
    plain = script.loss
    in_both(script, std=(0.0, *script.train_pipeline.std[1:]))
    script.loss = lambda outputs, targets: plain(outputs, targets) * math.nan
