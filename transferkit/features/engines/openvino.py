"""The engine "openvino": OpenVINO on the CPU, one stream per thread that calls."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from transferkit.features.engines.engine import ENGINES, Engine, EngineJob, Run, in_fixed_batches
from transferkit.features.engines.graph import INPUT, to_onnx

if TYPE_CHECKING:
    import openvino

__all__: list[str] = []


@functools.cache
def _core() -> openvino.Core:
    """OpenVINO's runtime, kept for the life of the process.

    Its CPU plugin replaces the signal stack of the thread that loads it, and frees that stack when the last compiled
    network is released. If that happens in another thread, the next signal (Ctrl-C, the exit of a child process) is
    delivered to freed memory, and Python crashes.
    """
    import openvino

    return openvino.Core()


def _open(job: EngineJob) -> Run:
    core = _core()
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
