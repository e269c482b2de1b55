"""A fitted model's answers on the images of a session that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax

from transferkit.features import choose_device
from transferkit.nn import TransferModel, logits_of
from transferkit.records import HeldOut
from transferkit.workflow.fit import Outcome
from transferkit.workflow.session import Session

__all__ = ["score_splits"]


def score_splits(session: Session, fitted: Outcome, splits: Sequence[str]) -> dict[str, HeldOut]:
    """Split name -> the model's probabilities there; a split without images is left out.

    Args:
        session: The images, and the features of the backbone as it was.
        fitted: The model.
        splits: "val", "test".
    """
    answers = {}
    for split in splits:
        indices = session.data.indices(split)
        if not len(indices):
            continue
        answers[split] = HeldOut(
            split=split,
            labels=session.data.labels[indices],
            probabilities=_predictions(_logits(session, fitted, indices), fitted.model.task),
            targets=None if session.data.targets is None else session.data.targets.take(indices),
            thresholds=fitted.model.thresholds,
            items=tuple(session.data.items[index] for index in indices),
        )
    return answers


def _predictions(logits: npt.NDArray[np.float32], task: str) -> npt.NDArray[np.float32]:
    if task == "regression":
        return logits
    return np.asarray(expit(logits) if task == "multi_label" else softmax(logits, axis=1))


def _logits(session: Session, fitted: Outcome, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """(N, K) from features, kept in the bank, where the backbone is as it was; else by running the model."""
    model = fitted.model
    if isinstance(model, TransferModel) and fitted.is_probe:
        weight, bias = (tensor.detach().numpy() for tensor in (model.linear.weight, model.linear.bias))
        table = session.run_features(indices, progress=True)
        _, columns = table.select(model.stages)
        return np.concatenate([chunk @ weight.T + bias for chunk in table.chunks(columns)])
    pictures = (session.data.pixels(int(index), model.preprocessing) for index in indices)
    logits: npt.NDArray[np.float32] = logits_of(model, pictures, device=choose_device(session.options.device)).numpy()
    return logits
