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
from transferkit.types import Preprocessing

__all__ = ["export_onnx"]


IN_PICTURES, IN_TENSORS = "pixels", "tensors"
"""Name of the input: uint8 pictures that the file normalises, or tensors that were prepared outside."""


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
        The path. Input "pixels": (N, 3, S, S) uint8, resized and cropped as the metadata says, deeper images scaled by
        its value_range; of a model that was fitted on prepared tensors, input "tensors": (N, 3, H, W) float32, taken as
        they are. Output "probabilities": (N, K) float32. Metadata "classes" and "preprocessing" are JSON, "input" is a
        sentence.

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
    wants = model.preprocessing
    height, width = wants.shape or (wants.size, wants.size)
    example = torch.zeros(2, 3, height, width, dtype=torch.float32 if wants.prepared else torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its internals
        program = torch.onnx.export(
            _PixelsToProbabilities(model).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[IN_TENSORS if wants.prepared else IN_PICTURES],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("images")},),
        )
    assert program is not None
    proto = program.model_proto
    for key, value in (("classes", list(model.classes)), ("preprocessing", asdict(wants))):
        proto.metadata_props.add(key=key, value=json.dumps(value))
    proto.metadata_props.add(key="input", value=_say_input(wants))
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, str(path))
    return path


def _say_input(wants: Preprocessing) -> str:
    """What the input must be, in a sentence."""
    height, width = wants.shape or (wants.size, wants.size)
    if wants.prepared:
        return f"float32 (N, 3, {height}, {width}), prepared outside as the training tensors were; not normalised here"
    deep = ""
    if wants.value_range is not None:
        black, white = wants.value_range
        deep = f", images deeper than 8 bits scaled so that {black:g} is 0 and {white:g} is 255"
    return f"uint8 (N, 3, {height}, {width}), RGB, resized and cropped as preprocessing says{deep}; normalised here"
