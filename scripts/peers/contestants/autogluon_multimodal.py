"""AutoGluon MultiModal: its default recipe for image classification, with the same backbone instead of a download."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from autogluon.multimodal import MultiModalPredictor
from safetensors.torch import load_file

from peers.contestants.images import describe
from peers.contestants.protocol import Job, Stopwatch, accuracy_of, contest, seed_everything


def write_checkpoint(job: Job, folder: Path) -> Path:
    """The weights in the form that AutoGluon reads offline: timm's hub format, without the classifier."""
    about = describe(job.weights)
    state = {name: one for name, one in load_file(job.weights).items() if not name.startswith("classifier.")}
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    config = {
        "architecture": about["architecture"],
        "num_features": about["features"],
        "num_classes": 0,
        "input_size": [3, about["size"], about["size"]],
        # AutoGluon takes another image size only from networks whose test size differs from their training size.
        "test_input_size": [3, job.size, job.size],
        "mean": about["mean"],
        "std": about["std"],
        "crop_pct": about["crop_pct"],
        "interpolation": "bicubic",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def table(job: Job, split: str) -> pd.DataFrame:
    """Paths and labels of a split."""
    files, labels = job.files(split)
    return pd.DataFrame({"image": [str(path) for path in files], "label": labels})


def run(job: Job, watch: Stopwatch) -> dict[str, Any]:
    """`fit` with its defaults: 20 epochs at most, a tenth of the images held back, greedy soup of three checkpoints."""
    seed_everything(job.seed, job.threads)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        settings: dict[str, Any] = {
            "model.names": ["timm_image"],
            "model.timm_image.checkpoint_name": str(write_checkpoint(job, place / "backbone")),
            "model.timm_image.image_size": job.size,
            "env.num_gpus": 0,
            "env.accelerator": "cpu",
            "env.num_workers": 0,
            "env.num_workers_inference": 0,
        }
        if "batch" in job.options:
            settings["env.batch_size"] = int(job.options["batch"])
        predictor = MultiModalPredictor(label="label", problem_type="multiclass", path=str(place / "run"), verbosity=1)
        train, test = table(job, "train"), table(job, "test")
        watch.ready()
        predictor.fit(train, hyperparameters=settings, time_limit=job.budget, seed=job.seed)
        with watch.evaluation():
            accuracy = accuracy_of(predictor.predict(test, as_pandas=False), list(test["label"]))
        watch.record(accuracy, "done")
    return {name: value for name, value in settings.items() if name.startswith("env.") or name.endswith("size")}


if __name__ == "__main__":
    contest(run)
