"""ONNX: pixels in, probabilities out, class names and preprocessing inside the file."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from transferkit.core.errors import MissingDependencyError
from transferkit.core.paths import make_folder
from transferkit.nn import Classifier, tracing
from transferkit.nn.model import predictions_of
from transferkit.records import Preprocessing

__all__ = ["export_onnx", "input_geometries"]


IN_PICTURES, IN_TENSORS = "pixels", "tensors"
"""Name of the input: uint8 pictures that the file normalises, or tensors that were prepared outside."""


class _PixelsToProbabilities(nn.Module):
    """Mirrored views are computed inside, from one picture per geometry."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model
        self.geometries = input_geometries(model.preprocessing)
        self.views = [
            (self.geometries.index(replace(view, mirrored=False)), view.mirrored)
            for view in model.preprocessing.each_view
        ]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return predictions_of(self.model(self._views(self.model.normalise(pixels))), self.model.task)

    def _views(self, images: torch.Tensor) -> torch.Tensor:
        if not self.model.preprocessing.views:
            return images.flip(-1) if self.views[0][1] else images
        each = images.unsqueeze(1) if len(self.geometries) == 1 else images
        return torch.stack([each[:, at].flip(-1) if mirrored else each[:, at] for at, mirrored in self.views], dim=1)


def input_geometries(preprocessing: Preprocessing) -> tuple[Preprocessing, ...]:
    """The geometries that an exported model takes each image in, in order; it mirrors them itself."""
    return tuple(dict.fromkeys(replace(view, mirrored=False) for view in preprocessing.each_view))


def export_onnx(model: Classifier, path: str | Path) -> Path:
    """Write the model as ONNX.

    Args:
        model: In evaluation mode, on the CPU.
        path: The file to write; a batch may have any size.

    Returns:
        The path. Input "pixels": (N, 3, S, S) uint8, resized and cropped as the metadata says, deeper images scaled by
        its value_range. Where predictions are averaged over views of several geometries (N, G, 3, S, S): each image G
        times, in the order of the metadata's "geometries"; mirroring and averaging are done inside. Of a model that
        was fitted on prepared tensors, input "tensors": (N, 3, H, W) float32, taken as they are. Output
        "probabilities": (N, K) float32; of a regression "values". Metadata "classes", "task", "thresholds",
        "preprocessing" and "geometries" are JSON, "input" is a sentence.

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
    wants, geometries = model.preprocessing, input_geometries(model.preprocessing)
    height, width = wants.height_width
    views = () if len(geometries) == 1 else (len(geometries),)
    example = torch.zeros(2, *views, 3, height, width, dtype=torch.float32 if wants.prepared else torch.uint8)
    with tracing(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its internals
        program = torch.onnx.export(
            _PixelsToProbabilities(model).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[IN_TENSORS if wants.prepared else IN_PICTURES],
            output_names=["values" if model.task == "regression" else "probabilities"],
            dynamic_shapes=({0: torch.export.Dim("images")},),
        )
    assert program is not None
    proto = program.model_proto
    metadata = {
        "classes": list(model.classes),
        "task": model.task,
        "thresholds": list(model.thresholds),
        "preprocessing": asdict(wants),
        "geometries": [asdict(geometry) for geometry in geometries],
    }
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=json.dumps(value))
    proto.metadata_props.add(key="input", value=_say_input(wants))
    make_folder(path.parent)
    onnx.save(proto, str(path))
    return path


def _say_input(wants: Preprocessing) -> str:
    """What the input is, in a sentence."""
    height, width = wants.height_width
    if wants.prepared:
        return f"float32 (N, 3, {height}, {width}), prepared outside as the training tensors were; not normalised here"
    deep = ""
    if wants.value_range is not None:
        black, white = wants.value_range
        deep = f", images deeper than 8 bits scaled so that {black:g} is 0 and {white:g} is 255"
    count = len(input_geometries(wants))
    if count > 1:
        return (
            f"uint8 (N, {count}, 3, {height}, {width}), RGB, each image once for each of the geometries, resized and "
            f"cropped as it says{deep}; normalised, mirrored and averaged here"
        )
    return f"uint8 (N, 3, {height}, {width}), RGB, resized and cropped as preprocessing says{deep}; normalised here"
