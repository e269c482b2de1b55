"""fastai: `vision_learner(...).fine_tune(n)`, one frozen epoch and n more, with the same weights."""

from __future__ import annotations

from typing import Any

from fastai.callback.core import Callback, CancelFitException
from fastai.callback.schedule import Learner
from fastai.metrics import accuracy
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageDataLoaders
from fastai.vision.learner import vision_learner

from peers.contestants.images import describe, overlay
from peers.contestants.protocol import Job, Stopwatch, contest, seed_everything


class Points(Callback):
    """Stops the clock during validation, which is on the test images, and records its accuracy; keeps to the budget."""

    order = 60  # after fastai's Recorder, which computes the metrics

    def __init__(self, watch: Stopwatch, budget: float | None) -> None:
        self.watch, self.budget, self.epochs, self.standing = watch, budget, 0, None

    def before_epoch(self) -> None:
        """Begin no epoch after the budget is spent."""
        if self.watch.exceeds(self.budget):
            raise CancelFitException

    def before_validate(self) -> None:
        """Stop the clock."""
        self.standing = self.watch.evaluation()
        self.standing.__enter__()

    def after_validate(self) -> None:
        """Let it run again and record a point."""
        self.standing.__exit__(None, None, None)
        self.epochs += 1
        self.watch.record(float(self.recorder.metrics[0].value), f"epoch {self.epochs}")


def make_learner(job: Job) -> Learner:
    """The learner of fastai's tutorials on this task; with `augment=yes` also their `aug_transforms()`."""
    loaders = ImageDataLoaders.from_folder(
        job.task,
        train="train",
        valid="test",
        item_tfms=Resize(job.size),
        batch_tfms=aug_transforms() if job.options.get("augment") == "yes" else None,
        bs=job.batch,
        val_bs=64,
        seed=job.seed,
        num_workers=0,
    )
    return vision_learner(
        loaders,
        describe(job.weights)["architecture"],
        metrics=accuracy,
        pretrained_cfg_overlay=overlay(job.weights),
    )


def run(job: Job, watch: Stopwatch) -> dict[str, Any]:
    """`fine_tune(epochs)`, which begins with one epoch on the frozen backbone."""
    seed_everything(job.seed, job.threads)
    learner = make_learner(job)
    learner.add_cb(Points(watch, job.budget))
    watch.ready()
    with learner.no_bar():
        learner.fine_tune(job.epochs)
    return {"batch": job.batch, **job.options}


if __name__ == "__main__":
    contest(run)
