"""The device that networks run on."""

from __future__ import annotations

import os

import torch

from transferkit.core.errors import OptionError

__all__ = ["choose_device"]


def choose_device(device: str) -> torch.device:
    """ "auto" is CUDA, else MPS, else the CPU; any other name is a device of torch.

    Raises:
        OptionError: If there is no such device here.
    """
    if device == "auto":
        if torch.cuda.is_available():
            rank = int(os.environ.get("LOCAL_RANK") or 0)  # of processes on one machine each has its own
            return torch.device("cuda", rank) if 0 < rank < torch.cuda.device_count() else torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except Exception as error:
        reason = str(error).split("\n")[0]
        if reason.startswith("Expected one of"):  # torch names 22 kinds of device here
            reason = "such a device is unknown. Known are cpu, cuda, cuda:1 and mps."
        raise OptionError(
            f"The device {device!r} cannot be used here: {reason} Use device=auto or device=cpu."
        ) from error
    return chosen
