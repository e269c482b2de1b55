"""A backbone's rows as an ONNX graph, for engines that read one.

Made by torch's older exporter, which traces: 0.2 seconds for EfficientNet-Lite0, where the newer one takes 4, more than
an engine saves in a pass over a thousand images.
"""

from __future__ import annotations

import io
import logging
import warnings

import torch

from transferkit.features.engines.engine import EngineJob, JoinedRows
from transferkit.nn.running import tracing

__all__ = ["INPUT", "to_onnx"]

INPUT = "pixels"
"""The graph's input; its outputs are the kinds of rows."""


def to_onnx(job: EngineJob) -> bytes:
    """The graph, for batches of the size of the job's.

    Raises:
        Exception: Whatever torch raises for a network that it cannot export.
    """
    module = JoinedRows(job).eval()
    example = torch.from_numpy(job.pixels)
    buffer = io.BytesIO()
    exporter_log = logging.getLogger("torch.onnx")
    before = exporter_log.level
    with tracing(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that it is deprecated, and that a trace is fixed to the shape in hand
        exporter_log.setLevel(logging.ERROR)
        try:
            torch.onnx.export(
                module,
                (example,),
                buffer,  # type: ignore[arg-type]  # the annotation is that of the newer exporter
                dynamo=False,
                input_names=[INPUT],
                output_names=list(job.kinds),
            )
        finally:
            exporter_log.setLevel(before)
    return buffer.getvalue()
