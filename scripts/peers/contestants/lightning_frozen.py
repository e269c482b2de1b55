"""A plain Lightning loop over a frozen backbone: a linear head, Adam at 1e-3, the whole network in every epoch."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning as L
import torch
from torch import nn

from peers.contestants.images import Pictures, describe, load_network, test_accuracy, test_transform, training_batches
from peers.contestants.protocol import Job, Stopwatch, contest, seed_everything

LEARNING_RATE = 1e-3


class FrozenClassifier(L.LightningModule):
    """A backbone that never changes and a linear head that learns."""

    def __init__(self, backbone: nn.Module, classes: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.head = nn.Linear(backbone.num_features, classes)  # type: ignore[arg-type]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, (N, K)."""
        self.backbone.eval()
        with torch.no_grad():
            features = self.backbone(images)
        logits: torch.Tensor = self.head(features)
        return logits

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        """Cross-entropy of a batch."""
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on the head alone."""
        return torch.optim.Adam(self.head.parameters(), lr=LEARNING_RATE)


class Evaluation(L.Callback):
    """Test accuracy after every epoch, while the clock stands."""

    def __init__(self, test: Pictures, job: Job, watch: Stopwatch) -> None:
        self.test, self.job, self.watch = test, job, watch

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Record a point; end training if the budget is spent."""
        with self.watch.evaluation():
            accuracy = test_accuracy(module, self.test)
        self.watch.record(accuracy, f"epoch {trainer.current_epoch + 1}")
        trainer.should_stop = self.watch.exceeds(self.job.budget)


def run(job: Job, watch: Stopwatch) -> dict[str, Any]:
    """Train the head without augmentation."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    seed_everything(job.seed, job.threads)
    about = describe(job.weights)
    model = FrozenClassifier(load_network(job.weights, 0), len(job.classes))
    transform = test_transform(about, job.size)
    batches = training_batches(Pictures(job, "train", transform), job)
    trainer = L.Trainer(
        max_epochs=job.epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Evaluation(Pictures(job, "test", transform), job, watch)],
    )
    watch.ready()
    trainer.fit(model, batches)
    return {"batch": job.batch, "lr": LEARNING_RATE}


if __name__ == "__main__":
    contest(run)
