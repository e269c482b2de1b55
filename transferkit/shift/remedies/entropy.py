"""Entropy of the predictions minimised over scale and shift of batch normalisation, with an early end."""

from __future__ import annotations

import numpy as np
import torch

from transferkit.nn import Classifier
from transferkit.nn.norm.recalibration import follows_batches
from transferkit.shift.remedies.norm_statistics import blend_statistics, new_pictures
from transferkit.shift.remedies.registry import REMEDIES, ShiftCase

__all__ = ["minimise_entropy"]

STEPS, LR, BATCH = 10, 2.5e-4, 32

LEAST_DIVERSE = 0.9
"""Entropy of the mean prediction, as a share of its first value, below which steps are taken back: predictions that
collapse to a few classes have a low entropy as well."""


@REMEDIES.register("entropy")
def minimise(situation: ShiftCase) -> Classifier:
    """Blend the statistics as `norm_statistics`, then a few steps towards confident predictions.

    References:
        Wang et al., Tent, ICLR 2021. Deviations: statistics are blended and then fixed, the mean prediction is kept
        diverse (as in SHOT), and steps after which it is not are taken back.
    """
    pictures = new_pictures(situation)
    return minimise_entropy(blend_statistics(situation.result.model, pictures), pictures, seed=situation.seed)


def minimise_entropy(model: Classifier, pictures: np.ndarray, *, seed: int = 0, steps: int = STEPS) -> Classifier:
    """Change the affine parameters of batch normalisation of a model, in place; returns it.

    Args:
        model: A copy of one's own, in evaluation mode, which it stays in.
        pictures: (n, ...) uint8.
        seed: Of the batches.
        steps: Of gradient descent at most.
    """
    layers = [module for module in model.modules() if follows_batches(module)]
    trained = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    if not trained:
        return model
    images = model.normalise(torch.from_numpy(np.array(pictures)))
    rng = np.random.default_rng(seed)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    first: float | None = None
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for tensor in trained:
            tensor.requires_grad_(True)
        optimizer = torch.optim.Adam(trained, lr=LR)
        for _ in range(steps):
            rows = torch.from_numpy(rng.permutation(len(images))[:BATCH])
            before = [tensor.detach().clone() for tensor in trained]
            probabilities = torch.softmax(model(images[rows]), dim=1)
            diverse = _entropy(probabilities.mean(dim=0))
            loss = _entropy(probabilities).mean() - diverse
            first = float(diverse.detach()) if first is None else first
            if not bool(torch.isfinite(loss)) or float(diverse.detach()) < LEAST_DIVERSE * first:
                break
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if not all(bool(tensor.isfinite().all()) for tensor in trained):
                with torch.no_grad():
                    for tensor, kept in zip(trained, before, strict=True):
                        tensor.copy_(kept)
                break
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    return model.eval()


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    return -(probabilities * probabilities.clamp(min=1e-8).log()).sum(dim=-1)
