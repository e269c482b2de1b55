"""The engine "torch": the backbone as simplified for inference, run by torch."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from transferkit.features.engines.engine import ENGINES, Engine, EngineJob, Run
from transferkit.features.extractor import Rows
from transferkit.features.forward import Forward, features_and_moments

__all__: list[str] = []


def _open(job: EngineJob) -> Run:
    forward = Forward(job.backbone, job.device, features_and_moments(job.backbone, job.pooling))
    kinds = frozenset(job.kinds)
    rows = forward.rows if job.device.type == "cpu" else forward.rows_within_memory

    def run(pixels: npt.NDArray[Any]) -> Rows:
        return rows(pixels, kinds)

    return run


ENGINES.register("torch")(Engine(_open, automatic=True))
