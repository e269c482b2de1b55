"""What it takes to run a thing again: seeds, versions, machine."""

from __future__ import annotations

import hashlib
import os
import platform
import random
from importlib import metadata

import numpy as np

__all__ = ["draw_seed", "environment", "seed_everything"]

PACKAGES = ("transferkit", "torch", "torchvision", "timm", "pytorch-lightning", "scikit-learn", "numpy", "pillow")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def environment(*, seed: int, device: str) -> dict[str, str | int]:
    """Versions, machine and seed of this run, as a flat table."""
    return {
        **{package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "device": device,
        "seed": seed,
    }


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators: libraries that take no generator draw from these."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def draw_seed(*where: int | str) -> int:
    """A seed in [0, 2^63) for whatever is drawn there, e.g. (seed, "crop", epoch, image); 1 microsecond.

    Example:
        >>> draw_seed(0, "crop", 1, 2) == draw_seed(0, "crop", 1, 2) != draw_seed(0, "crop", 2, 1)
        True
    """
    # A hash, because torch's generator reads only the low 32 bits of a seed, and nearby seeds should not be alike.
    digest = hashlib.blake2b("|".join(map(str, where)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
