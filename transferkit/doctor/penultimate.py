"""The features that the last layer of a classifier reads."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from transferkit.doctor.subject import first_tensor, run_model
from transferkit.nn.stages import evaluating

__all__ = ["penultimate_features"]


def penultimate_features(model: nn.Module, inputs: Any, *, evaluated: bool = True) -> torch.Tensor | None:
    """(N, D) inputs of the last linear layer that runs, in evaluation mode or as the model is; None if there is none
    with a row for each image."""
    seen: list[torch.Tensor] = []
    images = len(first_tensor(inputs, "Inputs"))

    def hook(module: nn.Module, given: Any, output: Any) -> None:
        if given and isinstance(given[0], torch.Tensor) and given[0].dim() == 2 and len(given[0]) == images:
            seen[:] = [given[0].detach().float()]

    handles = [one.register_forward_hook(hook) for one in model.modules() if isinstance(one, nn.Linear)]
    try:
        with evaluating(model) if evaluated else nullcontext(), torch.no_grad():
            run_model(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0] if seen else None
