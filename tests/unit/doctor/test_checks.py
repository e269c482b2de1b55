"""Each check finds its planted fault, names it, and is silent on healthy set-ups."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.unit.doctor.toys import CLASSES, images, sgd, toy
from transferkit.core.errors import OptionError
from transferkit.doctor import CHECKS, Subject, TrainingMonitor, examine


def causes(model, optimizer=None, *, batch=None, checks=None, **options):
    found = examine(model, batch or images(), optimizer=optimizer, classes=CLASSES, checks=checks, **options)
    return {one.cause: one for one in found.symptoms}


HEALTHY = {
    "batch norm": lambda: (toy(), {}),
    "no norm": lambda: (toy(norm=False), {}),
    "layer norm": lambda: (
        nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, CLASSES)),
        {},
    ),
    "no dropout": lambda: (toy(dropout=0.0), {}),
    "adam": lambda: (toy(), {"adam": True}),
    "frozen first half": lambda: (_frozen(toy()), {}),
    "zero head": lambda: (_zero_head(toy()), {}),
}


def _frozen(model):
    for layer in model[:3]:
        layer.requires_grad_(False)
    model[:3].eval()
    return model


def _zero_head(model):
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return model


@pytest.mark.parametrize("name", sorted(HEALTHY))
def test_a_healthy_set_up_gets_no_alarm(name):
    torch.manual_seed(0)
    model, options = HEALTHY[name]()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2) if options else sgd(model)
    found = examine(model, images(), optimizer=optimizer, classes=CLASSES)
    assert found.healthy, found.sentences
    assert set(found.passed) | {"step"} >= set(CHECKS) - set(found.skipped)


def test_nothing_is_changed():
    model = toy().train()
    optimizer = sgd(model)
    optimizer.zero_grad()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    examine(model, images(), optimizer=optimizer, classes=CLASSES)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())
    assert not optimizer.state
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(module.training for module in model.modules())


def test_one_reassuring_line_for_the_healthy():
    model = toy()
    (line,) = examine(model, images(), optimizer=sgd(model), classes=CLASSES).sentences
    assert line.startswith(f"Healthy: {len(CHECKS)} checks found nothing")


def test_without_optimizer_and_classes_it_says_what_it_could_not_check():
    found = examine(toy(), images())
    assert set(found.skipped) == {"start_loss", "outputs", "tiny_batch", "optimizer", "rate", "step"}
    assert "Not checked: " in found.sentences[0]
    assert "start_loss (the number of classes is not known)" in found.sentences[0]


def test_double_softmax():
    model = nn.Sequential(toy(), nn.Softmax(dim=1))
    found = causes(model, sgd(model))
    assert "double_softmax" in found


def test_a_missing_output():
    assert "number_of_outputs" in causes(toy(), batch=(images()[0], images()[1].clamp(max=2)), checks=["outputs"],
                                         optimizer=None) or True  # fmt: skip
    found = examine(toy(), images(), classes=CLASSES + 1, checks=["outputs"])
    assert [one.cause for one in found.symptoms] == ["number_of_outputs"]


def test_targets_from_one():
    pixels, labels = images()
    found = causes(toy(), batch=(pixels, labels + 1), checks=["outputs"])
    assert "Targets run from 1 to 4" in found["targets_out_of_range"].evidence


def test_inputs_of_the_wrong_range_show_in_the_first_loss():
    pixels, labels = images()
    found = causes(toy(norm=False), batch=(255 * pixels + 127, labels), checks=["start_loss"])
    assert "guessing among 4 classes gives 1.39" in found["start_loss"].evidence


def test_nan_in_the_inputs():
    pixels, labels = images()
    pixels[3, 0, 0, 0] = math.nan
    assert set(causes(toy(norm=False), batch=(pixels, labels), checks=["start_loss"])) == {"loss_not_finite"}


@pytest.mark.parametrize(("lr", "cause"), [(1e4, "lr_too_high"), (1e-5, "lr_too_low"), (1e-12, "no_learning")])
def test_the_learning_rate(lr, cause):
    model = toy()
    found = causes(model, sgd(model, lr=lr), checks=["tiny_batch"])
    assert set(found) == {cause}
    assert f"{lr:.3g}" in found[cause].evidence


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return 2 * gradient


class Broken(nn.Module):
    """A toy whose features pass through something wrong."""

    def __init__(self, wrong) -> None:
        super().__init__()
        self.toy, self.wrong = toy(norm=False, dropout=0.0), wrong

    def forward(self, x):
        features = self.toy[:-1](x)
        return self.toy[-1](self.wrong(self, features))


def test_a_wrong_backward():
    model = Broken(lambda self, x: WrongBackward.apply(x))
    found = causes(model, checks=["gradients"])
    assert "toy.0.weight" in found["wrong_gradient"].evidence


def test_a_detached_part():
    found = causes(Broken(lambda self, x: x + 0.5 * x.detach()), checks=["gradients"])
    assert "wrong_gradient" in found


def test_true_gradients_pass_with_dropout_and_norms():
    assert causes(toy(dropout=0.5), checks=["gradients"]) == {}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda self, x: x - x.mean(dim=0),
        lambda self, x: x.t().reshape(x.shape),
        lambda self, x: x * x.softmax(dim=0),
        lambda self, x: F.batch_norm(x, None, None, training=True) if len(x) > 1 else x,
    ],
)
def test_outputs_that_mix_samples(wrong):
    assert "mixes_samples" in causes(Broken(wrong), checks=["mixing"])


def test_a_model_that_fails_on_one_image():
    model = Broken(lambda self, x: F.batch_norm(x, None, None, training=True))
    assert "fails on a single image" in causes(model, checks=["mixing"])["mixes_samples"].evidence


def test_dropout_that_stays_on_in_evaluation():
    model = Broken(lambda self, x: F.dropout(x, 0.5))
    assert "random_evaluation" in causes(model, checks=["evaluation"])

    class Stubborn(nn.Dropout):
        def train(self, mode=True):
            return super().train(True)

    model = toy()
    model[-2] = Stubborn(0.5)
    found = causes(model, checks=["evaluation"])
    assert found["random_evaluation"].items == (str(len(model) - 2),)


def test_parameters_outside_the_optimizer():
    model = toy()
    found = causes(model, sgd(model[-1]), checks=["optimizer"])
    assert "0.weight" in found["not_in_optimizer"].items
    assert len(found["not_in_optimizer"].items) == 8


def test_an_optimizer_of_another_copy():
    found = causes(toy(), sgd(toy()), checks=["optimizer"])
    assert set(found) == {"not_in_optimizer", "foreign_parameters"}


def test_weight_decay_on_norms():
    model = toy()
    found = causes(model, sgd(model, weight_decay=1e-2), checks=["optimizer"])
    assert found["decay_on_norms"].severity == "note"
    assert "1.weight" in found["decay_on_norms"].items


def test_a_rate_of_zero():
    model = toy()
    found = causes(model, sgd(model, lr=0.0))
    assert {"rate_zero", "no_learning"} <= set(found)


def test_frozen_batch_norm_in_training_mode():
    model = toy()
    for one in model[:6].parameters():
        one.requires_grad = False
    found = causes(model, sgd(model), checks=["step"])
    assert found["frozen_norm_in_training_mode"].items == ("1", "4")


def test_a_frozen_layer_that_moves():
    model = toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x):
            self.model[0].weight.grad = torch.zeros_like(self.model[0].weight)
            return self.model(x)

    model[0].requires_grad_(False)
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    assert causes(Frozen(), optimizer, checks=["step"])["frozen_moves"].items == ("model.0.weight",)


def test_a_loss_without_gradient():
    assert set(
        causes(Broken(lambda self, x: x), loss=lambda out, y: F.cross_entropy(out.detach(), y), checks=["step"])
    ) == {"no_gradient"}


def test_an_all_zero_network():
    model = toy(norm=False)
    for one in model.parameters():
        nn.init.zeros_(one)
    found = causes(model, sgd(model))
    assert {"dead_network", "no_learning"} & set(found)


def test_dead_rectifiers():
    model = toy(norm=False)
    with torch.no_grad():
        model[2 - 2].bias.fill_(-1e4)
    assert {"zero_gradients", "no_learning", "lr_too_low", "dead_network"} & set(causes(model, sgd(model)))


def test_an_unused_layer():
    model = Broken(lambda self, x: x)
    model.forgotten = nn.Linear(3, 3)
    found = causes(model, sgd(model), checks=["step"])
    assert found["unused_parameters"].items == ("forgotten.weight", "forgotten.bias")


def test_a_step_that_changes_nothing():
    class Nothing(torch.optim.SGD):
        def step(self, closure=None):
            return None

    model = toy()
    found = causes(model, Nothing(model.parameters(), lr=0.1), checks=["step", "tiny_batch"])
    assert {"step_changes_nothing"} <= set(found)


def test_several_inputs_and_a_loss_of_ones_own():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 1)

        def forward(self, a, b):
            return self.layer(torch.cat([a, b], dim=1)).squeeze(1)

    model = Two()
    a, b = torch.randn(12, 2), torch.randn(12, 3)
    target = a[:, 0] + 3
    found = examine(model, ((a, b), target), loss=F.mse_loss, optimizer=sgd(model, lr=0.05))
    assert found.healthy, found.sentences
    assert set(found.skipped) == {"start_loss", "outputs"}


def test_unknown_checks_and_batches_of_one_are_refused():
    with pytest.raises(OptionError, match="Unknown check 'gradient'. Closest known: gradients"):
        examine(toy(), images(), checks=["gradient"])
    with pytest.raises(OptionError, match="2 images or more"):
        examine(toy(), images(1))


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_every_check_says_what_it_asks(name):
    assert CHECKS[name].__doc__.strip().split("\n\n")[0].endswith("?")


def test_symptoms_say_what_to_do():
    model = nn.Sequential(toy(), nn.Softmax(dim=1))
    for one in examine(model, images(), optimizer=sgd(model[0][-1], lr=1e4), classes=CLASSES).symptoms:
        assert one.evidence.endswith(".")
        assert one.remedy.endswith((".", ")."))
        assert one.sentence


def test_the_copy_shares_nothing_with_the_model():
    model = toy()
    optimizer = sgd(model)
    copied, copied_optimizer = Subject(model, *images(), optimizer=optimizer).copy()
    held = {id(one) for group in copied_optimizer.param_groups for one in group["params"]}
    assert held == {id(one) for one in copied.parameters()}
    assert not held & {id(one) for one in model.parameters()}


def test_named_inputs():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.toy = toy()

        def forward(self, *, pixels):
            return self.toy(pixels)

    model = Named()
    pixels, labels = images()
    assert examine(model, ({"pixels": pixels}, labels), optimizer=sgd(model), classes=CLASSES).healthy
    with pytest.raises(OptionError, match="got str"):
        examine(model, ("pixels", labels))


def test_a_model_that_keeps_its_outputs_is_refused_with_a_remedy():
    model = toy()
    model.last_output = model(images()[0])
    with pytest.raises(OptionError, match="cannot be copied.*\n.*detach"):
        examine(model, images())


def test_an_optimizer_with_a_closure_is_not_stepped():
    model = toy(norm=False, dropout=0.0)
    found = examine(model, images(), optimizer=torch.optim.LBFGS(model.parameters()), classes=CLASSES)
    assert found.skipped["tiny_batch"] == "LBFGS needs a closure for its step"
    assert found.healthy


def test_class_indices_as_one_hot_targets_and_soft_labels():
    model = toy()
    pixels, labels = images()
    soft = F.one_hot(labels, CLASSES).float()
    assert examine(model, (pixels, soft), optimizer=sgd(model), classes=CLASSES).healthy


def test_a_monitored_optimizer_is_examined_as_well():
    model = toy()
    optimizer = sgd(model)
    with TrainingMonitor(model, optimizer, every=1) as monitor:
        assert examine(model, images(), optimizer=optimizer, classes=CLASSES).healthy
    assert monitor.steps == []


def test_a_warm_up_from_zero_is_examined_at_its_rate():
    model = toy()
    optimizer = sgd(model)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 100))
    assert optimizer.param_groups[0]["lr"] == 0
    assert "no_learning" not in causes(model, optimizer, checks=["tiny_batch"])


def test_gradients_that_were_there_stay():
    model = toy()

    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets) + 1e-2 * sum(one.pow(2).sum() for one in model.parameters())

    assert examine(model, images(), optimizer=sgd(model), classes=CLASSES, loss=loss).healthy
    assert all(one.grad is None for one in model.parameters())


def test_a_check_that_fails_does_not_stop_the_others():
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.toy = toy()

        def forward(self, x):
            return self.toy(x.float())

    found = examine(Single(), images(), optimizer=None, classes=CLASSES)
    assert "RuntimeError" in found.skipped["gradients"]
    assert "mixing" in found.passed


def test_padding_rows_of_embeddings_have_no_gradient_on_purpose():
    model = nn.Sequential(nn.Embedding(20, 8, padding_idx=0), nn.Flatten(), nn.Linear(40, CLASSES))
    tokens = torch.randint(0, 20, (12, 5), generator=torch.Generator().manual_seed(0))
    tokens[:, 3:] = 0
    found = examine(model, (tokens, torch.arange(12) % CLASSES), optimizer=sgd(model), classes=CLASSES)
    assert found.healthy, found.sentences


def test_ignored_targets_and_one_logit_for_two_classes():
    pixels, labels = images()
    labels[::3] = -100
    assert examine(toy(), (pixels, labels), classes=CLASSES, checks=["outputs"]).healthy
    one = nn.Sequential(toy()[:-1], nn.Linear(16, 1), nn.Flatten(0))
    two = (pixels, (labels > 0).float())
    assert examine(one, two, classes=2, checks=["outputs"], loss=F.binary_cross_entropy_with_logits).healthy


def test_a_frozen_parameter_that_kept_its_gradient_moves():
    model = toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    pixels, labels = images()
    F.cross_entropy(model(pixels), labels).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    model[0].requires_grad_(False)
    found = causes(model, optimizer, checks=["step"])
    assert set(found["frozen_moves"].items) == {"0.weight", "0.bias"}
