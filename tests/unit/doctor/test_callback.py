"""The callback in a person's own trainer: it watches, keeps the step that breaks, and changes nothing."""

from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.unit.doctor.toys import CLASSES, images, toy
from tests.unit.finetune.training_toys import QUIET
from transferkit.core.errors import OptionError, RunFolderError
from transferkit.doctor import DoctorCallback, replay
from transferkit.doctor.capsule import CAPSULE

QUIET_HERE = (
    *QUIET,
    ".*does not have many workers.*",
    ".*`training_step` returned `None`.*",
    ".*exists and is not empty.*",
    ".*You are using a CUDA device.*",
)


class Net(pl.LightningModule):
    """A toy that breaks where it is told to."""

    def __init__(self, *, breaks: str = "", at: int = 3, dropout: float = 0.2) -> None:
        super().__init__()
        self.network = toy(dropout=dropout)
        self.breaks, self.at, self.seen = breaks, at, 0

    def forward(self, pixels):
        return self.network(pixels)

    def training_step(self, batch, batch_idx):
        pixels, labels = batch
        if self.breaks == "layer" and self.seen >= self.at:
            with torch.no_grad():
                self.network[3].bias.fill_(3e38)
                self.network[3].weight.fill_(3e38)
        loss = F.cross_entropy(self(pixels), labels)
        if self.breaks == "loss" and self.seen >= self.at:
            loss = loss + torch.log(loss.detach() * 0 - 1)
        if self.breaks == "gradient" and self.seen >= self.at:
            loss = loss + torch.sqrt((self.network[9].weight * 0).sum())
        self.seen += 1
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        pixels, labels = batch
        outputs = self(pixels)
        self.log("val_loss", F.cross_entropy(outputs, labels))
        self.log("val_accuracy", (outputs.argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Adversaries(pl.LightningModule):
    """Two networks with an optimizer each, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second = toy(dropout=0.0), toy(dropout=0.0)

    def training_step(self, batch, batch_idx):
        pixels, labels = batch
        for network, optimizer in zip((self.first, self.second), self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(network(pixels), labels))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.first.parameters(), lr=0.1), torch.optim.SGD(self.second.parameters(), lr=0.01)]


def loader(count: int = 64, *, batch: int = 8) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*images(count)), batch_size=batch)


def fit(
    module, folder: Path, callback=None, *, ckpt=None, epochs=3, held_back=True, callbacks=(), **options
) -> pl.Trainer:
    torch.manual_seed(0)
    callbacks = [*([] if callback is None else [callback]), *callbacks]
    with warnings.catch_warnings():
        for message in QUIET_HERE:
            warnings.filterwarnings("ignore", message=message)
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            devices=1,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
            **{"logger": False, "enable_checkpointing": False, **options},
        )
        trainer.fit(module, loader(), loader(16) if held_back else None, ckpt_path=ckpt)
    return trainer


def weights(module):
    return {name: one.clone() for name, one in module.state_dict().items()}


def test_training_is_the_same_bit_for_bit_and_what_was_seen_is_written(tmp_path, capsys):
    plain, watched = Net(), Net()
    fit(plain, tmp_path)
    doctor = DoctorCallback(every=5, classes=CLASSES)
    fit(watched, tmp_path, doctor)
    assert all(torch.equal(one, weights(watched)[name]) for name, one in weights(plain).items())
    with open(tmp_path / "doctor" / "steps.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted({int(row["step"]) for row in rows}) == [0, 5, 10, 15, 20]
    assert {row["group"] for row in rows} == {f"network.{n}" for n in (0, 1, 3, 4, 9)}
    assert float(rows[-1]["similarity"]) < 1
    assert doctor.record().compared == (24,)
    assert [len(one.dead) for one in doctor.record().stages] == [0, 2, 0, 2, 0]
    assert capsys.readouterr().out.startswith("Healthy: the training loss goes from")
    assert doctor.symptoms == ()
    assert not (tmp_path / "doctor" / CAPSULE).exists()
    assert not any(one._forward_hooks for one in watched.modules())


def test_a_resumed_run_records_what_an_uninterrupted_one_does(tmp_path):
    doctor = DoctorCallback(every=5, folder=tmp_path / "whole", verbose=False)
    fit(Net(dropout=0.0), tmp_path, doctor, epochs=4)
    broken = DoctorCallback(every=5, folder=tmp_path / "parts", verbose=False)

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "last.ckpt")
                trainer.should_stop = True

    with warnings.catch_warnings():
        for message in QUIET_HERE:
            warnings.filterwarnings("ignore", message=message)
        torch.manual_seed(0)
        options = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
                   "enable_model_summary": False, "max_epochs": 4, "enable_checkpointing": False}  # fmt: skip
        pl.Trainer(callbacks=[broken, Stop()], default_root_dir=tmp_path, **options).fit(
            Net(dropout=0.0), loader(), loader(16)
        )
        resumed = DoctorCallback(every=5, folder=tmp_path / "parts", verbose=False)
        pl.Trainer(callbacks=[resumed], default_root_dir=tmp_path, **options).fit(
            Net(dropout=0.0), loader(), loader(16), ckpt_path=tmp_path / "last.ckpt"
        )
    assert resumed.record() == doctor.record()
    assert resumed._curves.state_dict() == doctor._curves.state_dict()
    one, other = ((tmp_path / name / "steps.csv").read_text() for name in ("whole", "parts"))
    assert one == other


def test_a_second_fit_starts_anew(tmp_path):
    doctor = DoctorCallback(every=5, verbose=False)
    fit(Net(), tmp_path, doctor)
    fit(Net(), tmp_path, doctor)
    assert doctor.record().steps == (0, 5, 10, 15, 20)
    assert len(doctor._curves.epochs) == 3


def test_accumulated_losses_are_not_divided(tmp_path):
    doctor = DoctorCallback(every=1, verbose=False)
    fit(Net(), tmp_path, doctor, accumulate_grad_batches=4, epochs=1)
    assert doctor.record().losses[0] == pytest.approx(math.log(CLASSES), rel=0.3)
    assert doctor._curves.epochs[0][0] == pytest.approx(doctor.record().losses[0], rel=0.3)


def test_several_optimizers_stepped_by_hand(tmp_path):
    doctor = DoctorCallback(every=4, verbose=False)
    fit(Adversaries(), tmp_path, doctor, held_back=False, epochs=1)
    first, second = doctor.monitors
    assert [one.step for one in first.steps] == [0, 4]
    assert {name.partition(".")[0] for name in first.steps[0].groups} == {"first"}
    assert {name.partition(".")[0] for name in second.steps[0].groups} == {"second"}
    assert second.steps[1].groups["second.9"].lr == 0.01
    assert (tmp_path / "doctor" / "steps-1.csv").is_file()


def test_mixed_precision(tmp_path):
    doctor = DoctorCallback(every=4, verbose=False)
    fit(Net(), tmp_path, doctor, precision="bf16-mixed")
    assert all(loss is not None for loss in doctor.record().losses)
    assert doctor.record().compared


def test_histograms_go_to_tensorboard_and_scalars_to_every_logger(tmp_path):
    pytest.importorskip("tensorboard")
    loggers = [pl.loggers.TensorBoardLogger(tmp_path, name="board"), pl.loggers.CSVLogger(tmp_path, name="csv")]
    fit(Net(), tmp_path, DoctorCallback(every=5, verbose=False), logger=loggers, log_every_n_steps=1)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(loggers[0].log_dir, size_guidance={"histograms": 0}).Reload()
    assert "doctor/weights/network.0" in board.Tags()["histograms"]
    assert len(board.Histograms("doctor/gradients/network.9")) == 5
    assert "doctor/ratio/network.9" in board.Tags()["scalars"]
    assert "doctor/ratio/network.9" in Path(loggers[1].log_dir, "metrics.csv").read_text()
    assert (Path(loggers[0].log_dir) / "doctor" / "steps.csv").is_file()


@pytest.mark.parametrize(
    ("breaks", "cause", "item"),
    [
        ("layer", "activation_not_finite", "network.3"),
        ("loss", "loss_not_finite", None),
        ("gradient", "gradient_not_finite", "network.9.weight"),
    ],
)
def test_the_step_that_breaks_is_kept_and_run_again(breaks, cause, item, tmp_path, capsys):
    doctor = DoctorCallback(every=5)
    fit(Net(breaks=breaks), tmp_path, doctor, epochs=1)
    path = tmp_path / "doctor" / CAPSULE
    content = torch.load(path, weights_only=True)
    assert (content["step"], content["batch_index"], content["epoch"]) == (3, 3, 0)
    assert torch.equal(content["batch"][0], images(64)[0][24:32])
    assert doctor.symptoms[0].cause == "not_finite"
    assert "Alarm: In step 3 (epoch 1) the loss is" in capsys.readouterr().out
    found = replay(path, model=Net(breaks=breaks, at=0))
    (symptom,) = found.symptoms
    assert symptom.cause == cause
    assert symptom.severity == "alarm"
    assert item is None or item in symptom.items


def test_the_weights_are_those_before_the_step_and_so_are_the_running_statistics(tmp_path):
    whole = Net(breaks="loss")
    fit(whole, tmp_path, DoctorCallback(verbose=False), epochs=1, held_back=False)
    before = Net()
    fit(before, tmp_path / "other", epochs=1, held_back=False, limit_train_batches=3)
    state = torch.load(tmp_path / "doctor" / CAPSULE, weights_only=True)["state"]
    expected = before.state_dict()
    for name, one in state.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(one, expected[name]), name


def test_dropout_is_drawn_as_in_the_step(tmp_path):
    fit(Net(breaks="loss", dropout=0.5), tmp_path, DoctorCallback(verbose=False), epochs=1, held_back=False)
    path = tmp_path / "doctor" / CAPSULE
    seen = []

    class Told(Net):
        def training_step(self, batch, batch_idx):
            outputs = self(batch[0])
            seen.append(outputs.detach())
            return F.cross_entropy(outputs, batch[1])

    generator = torch.get_rng_state()
    for _ in range(2):
        found = replay(path, model=Told(dropout=0.5))
        torch.manual_seed(len(seen))
    assert torch.equal(*seen)
    (note,) = found.symptoms
    assert note.cause == "not_reproduced"
    assert note.evidence.endswith("are finite when the step is run again; its loss was nan.")
    assert not torch.equal(torch.get_rng_state(), generator)


def test_a_network_and_its_loss_will_do(tmp_path):
    fit(Net(breaks="loss"), tmp_path, DoctorCallback(verbose=False), epochs=1)
    path = tmp_path / "doctor" / CAPSULE
    assert replay(path, model=toy()).healthy
    found = replay(path, model=toy(), loss=lambda outputs, labels: F.cross_entropy(outputs, labels) / 0)
    assert found.symptoms[0].evidence.startswith(
        "All layers give finite outputs, but the loss is inf; outputs: values from"
    )
    with pytest.raises(OptionError, match="The model does not fit the capsule, which has no"):
        replay(path, model=nn.Sequential(nn.Conv2d(3, 4, 3), nn.LSTM(3, 4)))
    with pytest.raises(OptionError, match=r"network of your own \(tests.*Net\): in Python, transferkit.doctor.replay"):
        replay(path)


def test_images_and_weights_that_are_not_finite_are_named(tmp_path):
    module, pixels = Net(), images(64)[0].clone()
    pixels[10, 0, 0, 0] = math.nan
    with warnings.catch_warnings():
        for message in QUIET_HERE:
            warnings.filterwarnings("ignore", message=message)
        trainer = pl.Trainer(max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                             enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
                             callbacks=[DoctorCallback(verbose=False)])  # fmt: skip
        trainer.fit(module, DataLoader(TensorDataset(pixels, images(64)[1]), batch_size=8))
    path = tmp_path / "doctor" / CAPSULE
    (symptom,) = replay(path, model=Net()).symptoms
    assert symptom.evidence == "The batch itself is not finite: 1 of 8 rows hold NaN or infinity (number 2)."
    content = torch.load(path, weights_only=True)
    content["batch"] = images(8)
    content["state"]["network.3.weight"][0] = math.nan
    torch.save(content, path)
    (symptom,) = replay(path, model=Net()).symptoms
    assert "layer 'network.3' (Conv2d) is not finite: network.3.weight held NaN" in symptom.evidence


def test_what_is_no_capsule(tmp_path):
    (tmp_path / "other.pt").write_text("nothing")
    with pytest.raises(RunFolderError, match="is no capsule of a training step"):
        replay(tmp_path / "other.pt", model=Net())
    with pytest.raises(RunFolderError, match="is no capsule of a training step"):
        replay(tmp_path / "missing.pt", model=Net())
    torch.save({"schema": 99}, tmp_path / "new.pt")
    with pytest.raises(RunFolderError, match="has schema 99, this version reads 1"):
        replay(tmp_path / "new.pt", model=Net())


class PlainBackward(Net):
    """Steps by hand, with a backward pass that nothing can observe."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        if self.breaks:
            self.log(self.breaks, loss, on_step=False, on_epoch=True)


def test_a_loss_that_nothing_can_observe_is_no_alarm(tmp_path):
    doctor = DoctorCallback(every=5, classes=CLASSES, verbose=False)
    fit(PlainBackward(), tmp_path, doctor)
    assert doctor.symptoms == ()
    assert doctor.report.startswith("Healthy: all gradients are finite.")
    assert "call manual_backward, or log 'train_loss'" in doctor.report
    logging = PlainBackward()
    logging.breaks = "train_loss"
    fit(logging, tmp_path, doctor)
    assert doctor.report.startswith("Healthy: the training loss goes from")


def test_the_epoch_in_which_an_average_is_measured_is_none(tmp_path):
    doctor = DoctorCallback(every=5, verbose=False)
    average = pl.callbacks.StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1)
    fit(Net(), tmp_path, doctor, callbacks=[average])
    assert len(doctor._curves.epochs) == 3
    assert "not_finite" not in [one.cause for one in doctor.symptoms]


def test_losses_of_adversaries_are_not_one_curve(tmp_path):
    doctor = DoctorCallback(every=4, classes=CLASSES, verbose=False)
    fit(Adversaries(), tmp_path, doctor, held_back=False, epochs=1)
    assert "several optimizers are not read" in doctor.report


def test_a_run_of_one_epoch_has_a_curve_by_batches(tmp_path):
    doctor = DoctorCallback(every=5, verbose=False)
    fit(Net(), tmp_path, doctor, epochs=4, held_back=False)
    assert "in 32 batches" in doctor.report


def test_other_names_are_said(tmp_path):
    doctor = DoctorCallback(every=5, held_back_loss="valid/loss", verbose=False)
    fit(Net(), tmp_path, doctor)
    assert "No 'valid/loss' was logged (but val_accuracy, val_loss): name yours with held_back_loss=." in doctor.report


def test_a_trial_run_leaves_no_files(tmp_path):
    fit(Net(), tmp_path, DoctorCallback(verbose=False), fast_dev_run=True)
    assert not list(tmp_path.rglob("*"))


class Interrupts(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 4:
            raise ValueError("enough")


def test_what_an_exception_cut_short_is_said(tmp_path):
    doctor = DoctorCallback(every=2, verbose=False)
    with pytest.raises(ValueError, match="enough"):
        fit(Net(), tmp_path, doctor, callbacks=[Interrupts()], held_back=False)
    assert "Training was interrupted in step 5 (ValueError)." in doctor.report
    assert (tmp_path / "doctor" / "steps.csv").is_file()


@pytest.mark.filterwarnings("ignore:Error detected in")
def test_anomaly_detection_stops_before_the_step_and_a_capsule_is_written(tmp_path):
    doctor = DoctorCallback(every=5, verbose=False)
    with pytest.raises(RuntimeError, match="returned nan values"):
        fit(Net(breaks="gradient"), tmp_path, doctor, epochs=1, detect_anomaly=True)
    assert "norm of its gradient nan" in doctor.not_finite
    found = replay(tmp_path / "doctor" / CAPSULE, model=Net(breaks="gradient", at=0))
    assert found.symptoms[0].cause == "gradient_not_finite"


class Asking(Net):
    """Asks its trainer where it is, and counts in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.count = self.count + 1
        late = self.current_epoch == 1 and self.trainer.global_step == 10 and self.count == 11
        return loss / (0 if late else 1)


def test_a_replayed_step_knows_where_in_training_it_is(tmp_path):
    fit(Asking(), tmp_path, DoctorCallback(verbose=False), epochs=2, held_back=False)
    (symptom,) = replay(tmp_path / "doctor" / CAPSULE, model=Asking()).symptoms
    assert "the loss is inf" in symptom.evidence


class Divides(Net):
    def training_step(self, batch, batch_idx):
        pixels = batch[0] * 1e30 if self.breaks == "large" else batch[0] / (0 if batch_idx == 3 else 1)
        return F.cross_entropy(self(pixels), batch[1])


def test_what_happens_before_the_first_layer_is_told_from_what_the_layer_does(tmp_path):
    fit(Divides(), tmp_path, DoctorCallback(verbose=False), epochs=1, held_back=False)
    (symptom,) = replay(tmp_path / "doctor" / CAPSULE, model=Divides()).symptoms
    assert symptom.evidence.startswith("The input of layer 'network.0' (Conv2d) is not finite")
    assert symptom.evidence.endswith("though the batch is.")


def test_another_step_is_told_from_the_same_one(tmp_path):
    fit(Net(breaks="gradient"), tmp_path, DoctorCallback(verbose=False), epochs=1, held_back=False)
    path = tmp_path / "doctor" / CAPSULE
    assert "same loss" not in replay(path, model=Net(breaks="gradient", at=0)).skipped
    found = replay(path, model=toy(), loss=lambda outputs, labels: 2 * F.cross_entropy(outputs, labels))
    assert "when the step is run again" in found.skipped["same loss"]


def test_a_step_by_hand_is_not_run_again(tmp_path):
    fit(Net(breaks="loss"), tmp_path, DoctorCallback(verbose=False), epochs=1, held_back=False)
    with pytest.raises(OptionError, match="training_step steps its optimizers itself"):
        replay(tmp_path / "doctor" / CAPSULE, model=PlainBackward())
