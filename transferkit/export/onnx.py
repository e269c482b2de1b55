"""ONNX: pixels in, probabilities out, class names and preprocessing inside the file."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from transferkit.errors import MissingDependencyError
from transferkit.nn import Classifier

__all__ = ["export_onnx"]


class _PixelsToProbabilities(nn.Module):
    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.model(self.model.normalise(pixels)), dim=1)


def export_onnx(model: Classifier, path: str | Path) -> Path:
    """Write the model as ONNX.

    Args:
        model: In evaluation mode, on the CPU.
        path: The file to write; a batch may have any size.

    Returns:
        The path. Input "pixels": (N, 3, S, S) uint8, resized and cropped as the metadata says; output
        "probabilities": (N, K) float32. Metadata "classes" and "preprocessing" are JSON.

    Raises:
        MissingDependencyError: If the ONNX packages are not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "Exporting to ONNX needs two more packages: pip install 'transferkit[onnx]'"
        ) from error
    path = Path(path)
    side = model.preprocessing.size
    example = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its internals
        program = torch.onnx.export(
            _PixelsToProbabilities(model).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["pixels"],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("images")},),
        )
    assert program is not None
    proto = program.model_proto
    for key, value in (("classes", list(model.classes)), ("preprocessing", asdict(model.preprocessing))):
        proto.metadata_props.add(key=key, value=json.dumps(value))
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, str(path))
    return path
