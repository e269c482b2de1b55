"""The engine "onnxruntime": ONNX Runtime on the CPU, one core per thread that calls."""

from __future__ import annotations

from transferkit.features.engines.engine import ENGINES, Engine, EngineJob, Run, in_fixed_batches
from transferkit.features.engines.graph import INPUT, to_onnx

__all__: list[str] = []

ONLY_ERRORS = 3
"""Of ONNX Runtime's log levels."""


def _open(job: EngineJob) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Several threads run the session at once. Each computes alone: its batch fits into its core's cache, and
    # nobody waits for the others.
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ONLY_ERRORS
    session = onnxruntime.InferenceSession(to_onnx(job), options, providers=["CPUExecutionProvider"])
    kinds = list(job.kinds)
    return in_fixed_batches(job, lambda pixels: session.run(kinds, {INPUT: pixels}))


ENGINES.register("onnxruntime")(Engine(_open, packages=("onnxruntime", "onnx"), extra="onnx", automatic=True))
