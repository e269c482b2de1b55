"""The one weights file that all contestants read."""

from __future__ import annotations

import json
from pathlib import Path

from regret.paths import MODEL
from safetensors.torch import save_file

from transferkit import zoo


def write_weights(path: Path, model: str = MODEL) -> Path:
    """Write a backbone's state dict under timm's names, with what a contestant must know of it in the metadata.

    Args:
        path: Where; an existing file is kept.
        model: A name that transferkit knows, of a network that timm has.
    """
    if path.exists():
        return path
    network, spec = zoo.load(model)
    about = {
        "model": model,
        "architecture": model.rpartition("/")[2],
        "classes": spec.num_classes,
        "features": network.num_features,
        "size": spec.preprocessing.size,
        "mean": spec.preprocessing.mean,
        "std": spec.preprocessing.std,
        "crop_pct": spec.preprocessing.crop_pct,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, partial, metadata={"backbone": json.dumps(about)})
    partial.replace(path)
    return path
