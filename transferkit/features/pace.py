"""How long an extractor takes for an image on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from transferkit.features.device import choose_device
from transferkit.features.engines.torch import stage_extractor
from transferkit.features.extractor import FEATURES
from transferkit.features.identity import probe_inputs
from transferkit.features.workers import default_workers, worker_pool
from transferkit.nn.backbone import Backbone

__all__ = ["image_rate", "image_seconds"]

PACE_ROUNDS = 5
"""Rounds that are timed at most; the fastest counts: other load on the machine only slows the others."""

PACE_SECONDS = 0.3
"""Seconds after which no further round begins."""


def image_seconds(
    backbone: Backbone, *, pooling: str = "avg+max", device: str = "auto", workers: int | None = None
) -> float:
    """Seconds that an image takes in the frozen pass on this machine, all workers together; decoding left out.

    The same work is timed whatever the bank holds: batches of fixed images, of the size and on as many workers as in a
    pass, after one round to warm up. The fastest round counts. Costs half a second, or two rounds where these take
    longer.

    Args:
        backbone: Run in evaluation mode and without gradients; left as it was.
        pooling: "avg" or "avg+max".
        device: "auto", "cpu", "cuda", ...
        workers: Threads; None takes one per core.

    Returns:
        Seconds, > 0.
    """
    extractor = stage_extractor(backbone, pooling=pooling, device=choose_device(device))
    pixels = probe_inputs(backbone.spec.preprocessing, extractor.batch_size)
    workers = (default_workers() if workers is None else workers) if extractor.is_threaded else 1
    with extractor.ready():
        return 1 / image_rate(
            lambda batch: extractor.extract(batch, FEATURES), pixels, workers=workers, in_threads=extractor.is_threaded
        )


def image_rate(
    compute: Callable[[npt.NDArray[Any]], object],
    pixels: npt.NDArray[Any],
    *,
    workers: int,
    in_threads: bool = True,
) -> float:
    """Images per second of all workers together: the fastest of a few rounds, after one to warm up.

    Args:
        compute: Called with the pixels.
        pixels: (n, 3, H, W).
        workers: That call at the same time, on one core each.
        in_threads: False calls in this thread, on all cores.
    """
    with worker_pool(workers, on_one_core_each=in_threads) as pool:

        def round_of_batches() -> float:
            began = time.perf_counter()
            if in_threads:
                list(pool.map(lambda _: compute(pixels), range(workers)))
            else:
                compute(pixels)
            return time.perf_counter() - began

        round_of_batches()  # starts threads, allocates memory, loads kernels
        seconds = [round_of_batches()]
        while len(seconds) < PACE_ROUNDS and sum(seconds) < PACE_SECONDS:
            seconds.append(round_of_batches())
    return workers * len(pixels) / min(seconds)
