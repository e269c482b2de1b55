"""The engine "openvino": OpenVINO on the CPU, one stream per thread that calls."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.features.engines.engine import ENGINES, Engine, EngineJob, Run, in_fixed_batches
from transferkit.features.engines.graph import INPUT, to_onnx

__all__: list[str] = []


def _open(job: EngineJob) -> Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(to_onnx(job))
    settings = {
        "INFERENCE_NUM_THREADS": job.workers * job.threads,
        "NUM_STREAMS": job.workers,
        # Its default is bfloat16 where the processor has it, and then bits differ.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(model, "CPU", settings)
    own = threading.local()

    def compute(pixels: npt.NDArray[Any]) -> list[npt.NDArray[np.float32]]:
        if not hasattr(own, "request"):  # a request is one thread's
            own.request = compiled.create_infer_request()
        found = own.request.infer({INPUT: pixels})
        return [found[kind].copy() for kind in job.kinds]  # the request writes into the same memory again

    return in_fixed_batches(job, compute)


ENGINES.register("openvino")(Engine(_open, packages=("openvino", "onnx"), extra="openvino", automatic=True))
