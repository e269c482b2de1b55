"""scikit-learn on the penultimate features: logistic regression, its C chosen by cross-validation."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader

from peers.contestants.images import EVALUATION_BATCH, Pictures, describe, load_network, test_transform
from peers.contestants.protocol import Job, Stopwatch, accuracy_of, contest, seed_everything

PENALTIES = np.logspace(-4, 1, 6)
"""Values of C on standardised features; above 10 the fits of these tasks no longer change."""

FOLDS = 5
MAX_ITERATIONS = 1000


def extract(network: torch.nn.Module, pictures: Pictures) -> np.ndarray:
    """(N, D) float32, one forward pass in batches of 64."""
    with torch.inference_mode():
        parts = [
            network(images.contiguous(memory_format=torch.channels_last)).numpy()
            for images, _ in DataLoader(pictures, batch_size=EVALUATION_BATCH)
        ]
    return np.concatenate(parts)


def run(job: Job, watch: Stopwatch) -> dict[str, Any]:
    """Extract once, choose C, fit on everything."""
    seed_everything(job.seed, job.threads)
    network = load_network(job.weights, 0).eval().to(memory_format=torch.channels_last)
    transform = test_transform(describe(job.weights), job.size)
    train, test = Pictures(job, "train", transform), Pictures(job, "test", transform)
    folds = min(FOLDS, *Counter(train.labels).values())
    watch.ready()
    features = extract(network, train)
    head: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
    if folds > 1:
        head = GridSearchCV(head, {"logisticregression__C": PENALTIES}, cv=folds)
    head.fit(features, train.labels)
    with watch.evaluation():
        accuracy = accuracy_of(head.predict(extract(network, test)), test.labels)
    watch.record(accuracy, "done")
    chosen = head.best_params_["logisticregression__C"] if folds > 1 else 1.0
    return {"C": float(chosen), "folds": folds}


if __name__ == "__main__":
    contest(run)
