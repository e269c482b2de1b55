"""TransferDataModule under a real Trainer: who is trained on, in which order, also after a resume."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from transferkit.core.errors import OptionError
from transferkit.data import open_data
from transferkit.data.module import TransferDataModule
from transferkit.records import Preprocessing

WANTS = Preprocessing(size=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop_pct=0.8)


class Listener(pl.LightningModule):
    """Learns next to nothing, and notes every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 10)
        self.seen: list[tuple[int, bytes, list[int]]] = []
        self.held_back = self.tested = 0

    def training_step(self, batch, batch_idx):
        images, labels = batch
        self.seen.append((self.current_epoch, images.numpy().tobytes(), labels.tolist()))
        return torch.nn.functional.cross_entropy(self.layer(images.float().mean(dim=(2, 3))), labels)

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.held_back += len(batch[1])

    def test_step(self, batch, batch_idx):
        self.tested += len(batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(tmp_path, epochs: int) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.fixture(autouse=True)
def quiet():
    """Lightning warns of what is meant to be so: no workers, few batches, and of its own use of torch."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="(pytorch_)?lightning.*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*|.*treespec.*")
        yield


def module(official, **options) -> TransferDataModule:
    return TransferDataModule(official, preprocessing=WANTS, batch_size=4, workers=0, **options)


def test_a_trainer_sees_each_split_and_resumes_where_it_was(official, tmp_path):
    straight = Listener()
    data = module(official, val=0.2)
    run = trainer(tmp_path, 3)
    run.fit(straight, data)
    assert [epoch for epoch, _, _ in straight.seen] == [0] * 3 + [1] * 3 + [2] * 3
    assert straight.held_back == 3 * 2
    run.test(straight, data, verbose=False)
    assert straight.tested == 4

    first = Listener()
    begun = trainer(tmp_path, 1)
    begun.fit(first, module(official, val=0.2))
    begun.save_checkpoint(tmp_path / "one.ckpt")
    rest = Listener()
    torch.manual_seed(77)
    trainer(tmp_path, 3).fit(rest, module(official, val=0.2), ckpt_path=tmp_path / "one.ckpt")
    assert first.seen + rest.seen == straight.seen
    assert len({pixels for _, pixels, _ in straight.seen}) == 9  # augmented anew each time


def test_without_anything_held_back_a_trainer_only_trains(official, tmp_path):
    listener = Listener()
    trainer(tmp_path, 1).fit(listener, module(official, val=0.0))
    assert sum(len(labels) for _, _, labels in listener.seen) == 12
    assert listener.held_back == 0


def test_splits_and_classes_are_those_of_open_data(official):
    data = module(official, val=0.2, seed=5)
    own = open_data(official, val=0.2, seed=5)
    assert data.classes == own.summary.classes == ("cat", "dog")
    assert data.data.splits.tolist() == own.splits.tolist()


def test_held_back_pictures_are_the_checkpoints_own(official):
    data = module(official, val=0.3, augment="strong", flip=True)
    data.setup("fit")
    ((images, labels),) = list(data.val_dataloader())
    held_back = data.data.indices("val")
    assert labels.tolist() == data.data.labels[held_back].tolist()
    assert np.array_equal(images.numpy(), np.stack([data.data.pixels(int(index), WANTS) for index in held_back]))


def test_mixing_gives_shares_of_classes_in_training_only(official):
    data = module(official, val=0.3, mixup=0.5)
    data.setup("fit")
    _, targets = next(iter(data.train_dataloader()))
    assert targets.shape == (4, 2)
    assert torch.allclose(targets.sum(dim=1), torch.ones(4))
    assert next(iter(data.val_dataloader()))[1].ndim == 1


def test_mirroring_waits_until_it_is_asked_for(official):
    assert module(official).augmentation.flip is False
    assert module(official, flip=True).augmentation.flip is True
    assert module(official).augmentation.preset == "light"


def test_balanced_epochs_show_small_classes_more_often(unsplit):
    data = module(unsplit, val=0.0, test=0.0, balanced=True)
    data.setup("fit")
    labels = torch.cat([labels for _, labels in data.train_dataloader()])
    assert torch.bincount(labels).tolist() == [15, 15]


def test_what_is_opened_already_is_taken_as_it_is(official):
    opened = open_data(official, val=0.2)
    data = module(opened)
    assert data.data is opened
    assert open_data(opened) is opened
    assert open_data(data) is opened


def test_another_setup_keeps_the_pictures_that_are_there(official):
    data = module(official, val=0.2)
    data.setup("fit")
    before = data.train_dataloader().dataset
    data.setup("test")
    data.setup("fit")
    assert data.train_dataloader().dataset is before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "mild"}, "Unknown augmentation 'mild'"),
        ({"mixup": -1.0}, "mixup must be >= 0"),
    ],
)
def test_wrong_options_are_met_at_once(official, options, message):
    with pytest.raises(OptionError, match=message):
        module(official, **options)
