"""Paths of the benchmark's results, and its backbones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CELLS = ROOT / "benchmarks" / "regret"
SCORES = ROOT / "benchmarks" / "regret.json"
PROMISES = ROOT / "benchmarks" / "promises.json"
LIMITS = ROOT / "benchmarks" / "regret_limits.json"
KNOWLEDGE = ROOT / "transferkit" / "knowledge" / "gain_model.json"

SCRIPT = "scripts/bench_regret.py"

MODEL = "packaged/tf_efficientnet_lite0"
"""The backbone whose cells are in `CELLS` itself; those of others are in a subfolder each."""

HALF_RESNET = "resnet50_half"
"""The backbone of `regret_backbones.py`."""

SIZE = 96


def folder_of(model: str) -> Path:
    """The folder of a backbone's cells.

    Example:
        >>> folder_of(MODEL) == CELLS, folder_of("resnet50_half").name, folder_of("packaged/mobilenetv2_100").name
        (True, 'resnet50_half', 'mobilenetv2_100')
    """
    return CELLS if model == MODEL else CELLS / model.rpartition("/")[2].replace(":", "_")


def load_model(model: str) -> Any:
    """A backbone by its transferkit name, or one of `regret_backbones.py`."""
    if model == HALF_RESNET:
        from regret_backbones import load_half_resnet50

        return load_half_resnet50(image_size=SIZE)
    from transferkit.workflow.session import load_backbone

    return load_backbone(model, image_size=SIZE)


def write(path: Path, plain: Mapping[str, Any]) -> None:
    """Write JSON in one line, atomically."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(plain, separators=(",", ":")) + "\n", encoding="utf-8")
    partial.replace(path)
