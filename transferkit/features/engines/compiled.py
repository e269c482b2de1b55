"""The engine "compile": the backbone compiled by torch for this machine, which takes half a minute."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from transferkit.features.engines.engine import ENGINES, Engine, EngineJob, JoinedRows, Run, in_fixed_batches
from transferkit.nn.running import tracing, without_tracing

__all__: list[str] = []


def _open(job: EngineJob) -> Run:
    module = JoinedRows(job).eval()
    example = torch.from_numpy(job.pixels).to(job.device)
    with tracing(), torch.no_grad():
        # Exported first: the hooks that read the stages are Python, which the compiler would stop at.
        program = torch.export.export(module, (example,)).module()
        compiled: Any = torch.compile(program, mode="default" if job.device.type == "cpu" else "reduce-overhead")
        compiled(example)  # compiles now, while no other thread runs

    def compute(pixels: npt.NDArray[Any]) -> list[npt.NDArray[np.float32]]:
        with without_tracing(), torch.no_grad(), torch.autocast(job.device.type, enabled=False):
            return [rows.float().cpu().numpy() for rows in compiled(torch.from_numpy(pixels).to(job.device))]

    return in_fixed_batches(job, compute)


ENGINES.register("compile")(Engine(_open))
