"""Whole set-ups: the data behind the loaders, and the loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from tests.unit.doctor.toys import CLASSES, images, sgd, toy
from transferkit.core.errors import DataError, OptionError
from transferkit.doctor import LoopWatch, examine_training
from transferkit.doctor.loaders import (
    all_labels,
    check_held_back,
    check_order,
    check_splits,
    check_workers,
    draw_sample,
)
from transferkit.measure import compare_label_maps, label_signal
from transferkit.records import Preprocessing

PLAIN = Preprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")


def loader(pixels, labels, *, shuffle=True, **options):
    return DataLoader(TensorDataset(pixels, labels), batch_size=16, shuffle=shuffle, **options)


def splits(seed=0):
    """Two sets of 96 images: noise whose class is a bright channel."""
    pixels, labels = images(192)
    return (pixels[:96], labels[:96]), (pixels[96:], labels[96:])


def alarms(train, held_back=None, **options):
    net = toy()
    found = examine_training(net, train, held_back=held_back, optimizer=sgd(net), classes=CLASSES, **options)
    return [one.cause for one in found.alarms]


def test_a_healthy_set_up_has_no_alarm():
    ours, theirs = splits()
    assert alarms(loader(*ours), loader(*theirs, shuffle=False)) == []


def test_the_generator_is_as_before():
    ours, _ = splits()
    before = torch.get_rng_state()
    examine_training(toy(), loader(*ours), classes=CLASSES)
    assert torch.equal(torch.get_rng_state(), before)


def test_shuffled_labels():
    (pixels, labels), theirs = splits()
    shuffled = labels[torch.randperm(96, generator=torch.Generator().manual_seed(0))]
    net = toy()
    found = examine_training(net, loader(pixels, shuffled), held_back=loader(*theirs), classes=CLASSES)
    assert [(one.cause, one.severity) for one in found.symptoms] == [("labels_unrelated", "note")]
    found = examine_training(net, loader(pixels, shuffled), classes=CLASSES, preprocessing=PLAIN)
    assert "labels_unrelated" in [one.cause for one in found.alarms]


def test_a_label_map_that_changed():
    ours, (pixels, labels) = splits()
    assert alarms(loader(*ours), loader(pixels, (labels + 1) % CLASSES)) == ["label_map_changed"]


def test_two_exchanged_classes():
    ours, (pixels, labels) = splits()
    swapped = torch.tensor([1, 0, 2, 3])[labels]
    net = toy()
    found = examine_training(net, loader(*ours), held_back=loader(pixels, swapped), optimizer=sgd(net), classes=CLASSES)
    (one,) = found.alarms
    assert one.cause == "label_map_changed"
    assert one.items == ("0", "1")


def test_a_class_without_training_images():
    (pixels, labels), theirs = splits()
    kept = labels != 2
    assert alarms(loader(pixels[kept], labels[kept]), loader(*theirs)) == ["class_missing"]


def test_labels_that_start_at_one():
    (pixels, labels), theirs = splits()
    found = alarms(loader(pixels, labels + 1), loader(*theirs))
    assert found[0] == "targets_out_of_range"


def test_images_in_the_order_of_their_classes():
    (pixels, labels), theirs = splits()
    order = labels.argsort(stable=True)
    assert "not_shuffled" in alarms(loader(pixels[order], labels[order], shuffle=False), loader(*theirs))


def test_random_order_is_no_order():
    rng = np.random.default_rng(0)
    for classes in (2, 5, 50):
        assert not list(check_order(rng.integers(0, classes, 400)))
    assert not list(check_order(np.zeros(100, dtype=np.int64)))


def test_sizes_ranges_and_colours_of_two_splits():
    generator = torch.Generator().manual_seed(0)
    train, other = torch.rand(2, 40, 3, 16, 16, generator=generator).unbind(0)
    shade = torch.tensor([1.0, 0.8, 0.5])[:, None, None]

    def causes(first, second):
        return [(one.cause, one.severity) for one in check_splits(first, second)]

    assert causes(train * shade, other * shade) == []
    assert causes(train * shade, (other * shade).flip(1)) == [("channel_order", "alarm")]
    assert causes(train, 255 * other) == [("range", "alarm")]
    assert causes(train, 2 * other - 1) == [("mean_std", "alarm")]
    assert causes(train, other[:, :, ::2, ::2]) == [("size", "alarm")]
    larger = nn.functional.interpolate(other, (18, 18))
    assert causes(train, larger) == [("size", "note")]


def test_copies_of_held_back_images_in_training():
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(160, 3, 8, 8, generator=generator)
    labels = torch.arange(160) % CLASSES
    rough[torch.arange(160), labels.clamp(max=2)] += 1.0
    pixels = nn.functional.interpolate(rough, (32, 32), mode="bilinear")
    clean = alarms(loader(pixels[:100], labels[:100]), loader(pixels[100:], labels[100:]))
    assert "leak_across_splits" not in clean
    rows = torch.cat([torch.arange(100), torch.arange(100, 110)])
    copied = torch.where(torch.arange(110)[:, None, None, None] >= 105, pixels[rows].flip(3), pixels[rows])
    leaky = alarms(loader(copied, labels[rows]), loader(pixels[100:], labels[100:]))
    assert "leak_across_splits" in leaky


class Noisy(Dataset):
    """An image with noise from torch's generator, or from one of its own."""

    def __init__(self, own):
        self.own = np.random.default_rng(0) if own else None

    def __len__(self):
        return 16

    def __getitem__(self, index):
        noise = float(torch.rand(())) if self.own is None else self.own.random()
        return torch.full((3, 4, 4), float(index)) + noise, index % 2


def test_workers_that_draw_the_same_numbers():
    def causes(own, workers):
        return [one.cause for one in check_workers(DataLoader(Noisy(own), batch_size=4, num_workers=workers))]

    assert causes(own=True, workers=2) == ["repeated_augmentation"]
    assert causes(own=True, workers=1) == ["repeated_augmentation"]
    assert causes(own=False, workers=2) == []


def test_no_augmentation_is_none_that_repeats():
    pixels, labels = images(16)
    assert not list(check_workers(DataLoader(TensorDataset(pixels, labels), batch_size=4, num_workers=2)))


def test_labels_behind_subsets_and_joined_datasets():
    whole = TensorDataset(torch.zeros(6, 1), torch.arange(6))
    joined = torch.utils.data.ConcatDataset([Subset(whole, [4, 1]), whole])
    assert all_labels(DataLoader(joined)).tolist() == [4, 1, 0, 1, 2, 3, 4, 5]
    assert all_labels(DataLoader(Noisy(own=False))) is None
    assert all_labels([]) is None


def test_empty_and_odd_loaders_are_refused():
    with pytest.raises(OptionError, match="gives no batch"):
        draw_sample([], images=10)
    with pytest.raises(OptionError, match=r"Expected batches of \(inputs, targets\), got Tensor.\n.*unpack="):
        draw_sample([torch.zeros(3, 2)], images=10)
    with pytest.raises(OptionError, match="more than once, got generator"):
        draw_sample((one for one in [images()]), images=10)


def test_a_sample_ends_when_there_are_enough():
    ours, _ = splits()
    found = draw_sample(loader(*ours), images=40)
    assert len(found.labels) == 48
    assert not found.is_whole
    assert draw_sample(loader(*ours), images=1000).is_whole


def test_label_signal_against_the_direct_way():
    """Leave-one-out accuracy from the hat matrix is that of 40 separate fits."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    rows = rng.normal(size=(40, 6)) + 1.5 * np.eye(6)[labels]
    scaled = (rows - rows.mean(0)) / rows.std(0)
    targets = np.eye(2)[labels] - 0.5
    penalty = 0.1 * np.trace(scaled @ scaled.T) / 40
    right = 0
    for one in range(40):
        kept = np.arange(40) != one
        gram = scaled[kept].T @ scaled[kept] + penalty * np.eye(6)
        right += (scaled[one] @ np.linalg.solve(gram, scaled[kept].T @ targets[kept])).argmax() == labels[one]
    assert label_signal(rows, labels).accuracy == pytest.approx(right / 40)


def test_label_signal_of_permuted_labels_is_that_of_chance():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(100, 20))
    found = [label_signal(rows, rng.integers(0, 4, 100), seed=seed).z for seed in range(20)]
    assert abs(np.mean(found)) < 0.8
    assert max(map(abs, found)) < 4


def test_label_maps_that_agree_move_nothing():
    rows, labels = np.repeat(np.eye(4), 10, axis=0), np.repeat(np.arange(4), 10)
    found = compare_label_maps(rows, labels, rows, labels)
    assert (found.accuracy, found.best, found.z, found.moved) == (1.0, 1.0, 0.0, ())


def test_labels_of_one_class_or_another_length_are_refused():
    with pytest.raises(DataError, match="two classes or more"):
        label_signal(np.zeros((3, 2)), np.zeros(3, dtype=int))
    with pytest.raises(DataError, match=r"Expected \(N, D\) features and \(N,\) labels"):
        label_signal(np.zeros((3, 2)), np.arange(4))
    with pytest.raises(DataError, match="as many labels as images, got 1 for 2"):
        compare_label_maps(np.eye(2), np.arange(2), np.eye(2), np.zeros(1, dtype=int))


def loop(model, optimizer, *, steps=12, zero=True, evaluate=None, watch=None):
    pixels, labels = images(16)
    for _ in range(steps):
        if zero:
            optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(pixels), labels)
        watch.observe(loss)
        loss.backward()
        optimizer.step()
        if evaluate is not None:
            with torch.no_grad():
                evaluate()


def watched(model, optimizer, **options):
    with LoopWatch(model, optimizer) as watch:
        loop(model, optimizer, watch=watch, **options)
    return [one.cause for one in watch.diagnose().symptoms]


def test_a_healthy_loop_is_left_alone():
    net = toy().train()

    def evaluate():
        net.eval()
        net(images(16)[0])
        net.train()

    assert watched(net, sgd(net), evaluate=evaluate) == []


def test_gradients_of_earlier_steps():
    net = toy().train()
    assert "gradients_not_zeroed" in watched(net, sgd(net, lr=1e-3), zero=False)


def test_accumulated_gradients_are_meant():
    net, (pixels, labels) = toy().train(), images(16)
    optimizer = sgd(net)
    with LoopWatch(net, optimizer) as watch:
        for _ in range(6):
            optimizer.zero_grad()
            for half in (slice(0, 8), slice(8, 16)):
                (nn.functional.cross_entropy(net(pixels[half]), labels[half]) / 2).backward()
            optimizer.step()
    assert watch.diagnose().symptoms == ()


def test_evaluation_in_training_mode():
    net = toy().train()
    assert watched(net, sgd(net), evaluate=lambda: net(images(16)[0])) == ["evaluated_in_training_mode"]


def test_training_in_evaluation_mode_is_worth_a_note():
    net = toy().eval()
    assert watched(net, sgd(net)) == ["trained_in_evaluation_mode"]


def test_statistics_of_frozen_layers_that_move():
    net = toy().train()
    for layer in net[:3]:
        layer.requires_grad_(False)
    assert watched(net, sgd(net)) == ["frozen_norm_in_training_mode"]


def test_an_optimizer_of_another_copy_moves_nothing():
    net, other = toy().train(), toy()
    optimizer = sgd(other)
    for one in other.parameters():
        one.grad = torch.ones_like(one)
    with LoopWatch(net, optimizer) as watch:
        for _ in range(5):
            optimizer.step()
    assert [one.cause for one in watch.diagnose().symptoms] == ["step_changes_nothing"]


def test_rates_far_too_high_and_low():
    net = toy(norm=False).train()
    assert "lr_too_high" in watched(net, sgd(net, lr=30.0))
    net = toy(norm=False).train()
    assert watched(net, sgd(net, lr=1e-7)) == ["lr_too_low"]


def test_all_hooks_go():
    net = toy()
    optimizer = sgd(net)
    with LoopWatch(net, optimizer):
        pass
    assert not net._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not any(one._post_accumulate_grad_hooks or one._backward_hooks for one in net.parameters())


class Blind(nn.Module):
    """A network whose features are noise."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, CLASSES)

    def forward(self, pixels):
        seeds = (1e3 * pixels.flatten(1).sum(1)).long()
        noise = [torch.randn(6, generator=torch.Generator().manual_seed(int(one))) for one in seeds]
        return self.head(torch.stack(noise))


def test_a_blind_backbone_does_not_make_labels_wrong():
    (pixels, labels), theirs = splits()
    net = Blind()
    found = examine_training(net, loader(pixels, labels), held_back=loader(*theirs), classes=CLASSES)
    assert "labels_unrelated" not in [one.cause for one in found.symptoms]
    wrong = loader(pixels, labels[torch.randperm(96, generator=torch.Generator().manual_seed(0))])
    assert "labels_unrelated" in [one.cause for one in examine_training(net, wrong, classes=CLASSES).symptoms]
    exchanged = loader(theirs[0], (theirs[1] + 1) % CLASSES)
    found = examine_training(net, loader(pixels, labels), held_back=exchanged, classes=CLASSES)
    assert "label_map_changed" in [one.cause for one in found.symptoms]


class Named(Dataset):
    """Items as dictionaries, with a third thing."""

    def __init__(self, pixels, labels):
        self.pixels, self.labels = pixels, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"image": self.pixels[index], "label": int(self.labels[index]), "index": index}


def test_dictionaries_are_unpacked():
    ours, theirs = splits()
    loaders = [DataLoader(Named(*one), batch_size=16, shuffle=True, num_workers=0) for one in (ours, theirs)]
    net = toy()
    found = examine_training(
        net,
        loaders[0],
        held_back=loaders[1],
        optimizer=sgd(net),
        classes=CLASSES,
        unpack=lambda batch: (batch["image"], batch["label"]),
    )
    assert found.healthy, found.sentences
    assert {"labels", "held_back", "batches"} <= set(found.passed)


class Described(nn.Module):
    """A network with named inputs."""

    def __init__(self):
        super().__init__()
        self.net, self.more = toy(), nn.Linear(2, CLASSES)

    def forward(self, image, more):
        return self.net(image) + self.more(more)


def test_inputs_that_are_dictionaries():
    train, held_back = (
        DataLoader(
            [({"image": one, "more": torch.zeros(2)}, int(label)) for one, label in zip(*split, strict=True)],
            batch_size=16,
            shuffle=True,
        )
        for split in splits()
    )
    net = Described()
    found = examine_training(net, train, held_back=held_back, optimizer=sgd(net), classes=CLASSES)
    assert found.healthy, found.sentences
    assert {"labels", "held_back"} <= set(found.passed)


def test_the_loaders_own_generators_are_as_before():
    ours, _ = splits()
    generator = torch.Generator().manual_seed(3)
    examine_training(toy(), loader(*ours, generator=generator), classes=CLASSES)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(3).get_state())


def test_batches_of_a_single_image():
    (pixels, labels), _ = splits()
    single = DataLoader(TensorDataset(pixels, labels), batch_size=1, shuffle=True)
    assert alarms(single) == ["batch_of_one"]
    net = toy(norm=False)
    found = examine_training(net, single, optimizer=sgd(net, lr=0.01), classes=CLASSES)
    assert "batches" in found.passed


def test_a_last_batch_of_a_single_image():
    (pixels, labels), _ = splits()
    net = nn.Sequential(toy(), nn.BatchNorm1d(CLASSES))

    def causes(count, **options):
        found = examine_training(net, loader(pixels[:count], labels[:count], **options), classes=CLASSES)
        return [one.cause for one in found.alarms]

    assert "batch_of_one" in causes(81)
    assert "batch_of_one" not in causes(81, drop_last=True)
    assert "batch_of_one" not in causes(82)


def test_held_back_images_that_are_augmented():
    assert [one.cause for one in check_held_back(DataLoader(Noisy(own=False)))] == ["augmented_held_back"]
    assert [one.cause for one in check_held_back(DataLoader(Noisy(own=True)))] == ["augmented_held_back"]
    pixels, labels = images()
    assert list(check_held_back(loader(pixels, labels))) == []


def test_class_names_of_two_folders():
    ours, theirs = splits()
    loaders = [loader(*one) for one in (ours, theirs)]
    for one, names in zip(loaders, ("abcd", "acd"), strict=True):
        one.dataset.classes = list(names)
    assert "other_classes" in alarms(*loaders)
    loaders[1].dataset.classes = list("abc")  # the last is missing: numbers agree
    assert alarms(*loaders) == []


@pytest.mark.parametrize("norm", [True, False])
def test_a_loop_that_stays_in_evaluation_mode(norm):
    net = toy(norm=norm).train()

    def evaluate():
        net.eval()
        net(images(16)[0])

    assert watched(net, sgd(net, lr=0.01), evaluate=evaluate) == ["trained_in_evaluation_mode"]


def test_gradients_zeroed_before_the_step_and_never_computed():
    net = toy().train()
    optimizer = sgd(net)
    for between, said in ((True, "were gone before the step"), (False, "gave them no gradient")):
        with LoopWatch(net, optimizer) as watch:
            for _ in range(6):
                loss = nn.functional.cross_entropy(net(images()[0]), images()[1])
                if between:
                    loss.backward()
                    optimizer.zero_grad()
                optimizer.step()
        (one,) = watch.diagnose().symptoms
        assert one.cause == "step_changes_nothing"
        assert said in one.evidence


def schedule(step, steps=40):
    net = toy(norm=False).train()
    optimizer = sgd(net, lr=0.01)
    plan = torch.optim.lr_scheduler.LambdaLR(optimizer, step)
    with LoopWatch(net, optimizer) as watch:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images()[0]), images()[1]).backward()
            optimizer.step()
            plan.step()
    return [one.cause for one in watch.diagnose().symptoms]


def test_a_schedule_that_ends_before_the_loop():
    assert schedule(lambda step: 0.6**step) == ["rate_vanishes"]
    assert schedule(lambda step: max(0.0, 1 - step / 10)) == ["rate_vanishes"]
    assert schedule(lambda step: (1 + np.cos(np.pi * step / 40)) / 2) == []
    assert schedule(lambda step: min(1.0, step / 100)) == []


def test_gradients_of_nan_are_not_old_ones():
    net = toy(norm=False).train()
    optimizer = sgd(net)
    with LoopWatch(net, optimizer) as watch:
        for _ in range(6):
            optimizer.zero_grad()
            loss = net(images()[0]).mean() * float("nan")
            watch.observe(loss)
            loss.backward()
            optimizer.step()
    assert [one.cause for one in watch.diagnose().alarms] == ["loss_not_finite"]
