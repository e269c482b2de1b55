"""How fast this machine is with a network: measured once per network and size, then remembered beside the bank."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transferkit.core.distributed import broadcast, connect, local_rank_and_world_size
from transferkit.core.errors import TransferkitError
from transferkit.decision import STEP_COST, TUNED_SHARES, trains_all_stages
from transferkit.features import choose_device, image_seconds
from transferkit.features.engines import Speed, SpeedRecord, machine_key, stage_extractor
from transferkit.features.workers import default_workers
from transferkit.nn import Backbone
from transferkit.options import PassOptions
from transferkit.records import TOP
from transferkit.strategies import STRATEGIES, PlanSettings

__all__ = ["Paces", "measure_paces"]

log = logging.getLogger("transferkit")

FROZEN = "frozen pass"

MOST, STEP = 16, 0.25
"""Images per training step at most, and about the seconds that a step may take: large networks are timed on fewer
images, of which each takes about as long."""


@dataclass(frozen=True)
class Paces:
    """Seconds per image on this machine, decoding left out.

    Args:
        image_seconds: In the frozen pass.
        step_seconds: Fine-tuning strategy -> in a training step; empty if the network cannot be trained here.
        remembered: Whether all of it was measured by an earlier run on this machine.
    """

    image_seconds: float
    step_seconds: Mapping[str, float] = field(default_factory=dict)
    remembered: bool = field(default=False, compare=False)


def measure_paces(
    backbone: Backbone, options: PassOptions, *, folder: Path | None, images: int, trains: bool = True
) -> Paces:
    """Paces of a network at its size; those of the first process where several share the work.

    Costs half a second the first time, with training steps one to three.

    Args:
        backbone: Not modified.
        options: Its device and pooling count.
        folder: Where measurements are remembered; None remembers none.
        images: To train on: their number determines which stages are trained.
        trains: Whether a network may be trained; else training steps are not timed, unless they are remembered.
    """
    record, key = SpeedRecord(folder), _key(backbone, options)
    known = record.load(key)
    remembered = known is not None
    if known is None:
        known = _time_pass(backbone, options)
        record.store(key, known)
    whole = any(trains_all_stages(strategy, images) for strategy in TUNED_SHARES)
    key_of_steps = f"{key} steps{', all stages' if whole else ''}"
    steps = record.load(key_of_steps)
    if steps is None and trains:
        steps = _time_steps(backbone, known[FROZEN], options, images)
        record.store(key_of_steps, steps)
        remembered = False
    seconds = {name: 1 / speed.images_per_second for name, speed in {**known, **(steps or {})}.items()}
    if local_rank_and_world_size()[1] > 1:  # all must decide alike
        connect(choose_device(options.device))
        seconds = broadcast(seconds)
    return Paces(seconds.pop(FROZEN), seconds, remembered)


def _key(backbone: Backbone, options: PassOptions) -> str:
    reference = stage_extractor(backbone, pooling=options.pooling, device=choose_device(options.device))
    shape = (3, *backbone.spec.preprocessing.height_width)
    return f"paces {machine_key(reference, shape, options.pooling, default_workers())}"


def _time_pass(backbone: Backbone, options: PassOptions) -> dict[str, Speed]:
    """The frozen pass -> its speed, with the batch size to time training steps with."""
    a_pass = image_seconds(backbone, pooling=options.pooling, device=options.device)
    batch = int(min(MOST, max(2, STEP / (STEP_COST * a_pass))))  # normalisation needs two images
    return {FROZEN: Speed(1 / a_pass, batch, 0.0)}


def _time_steps(backbone: Backbone, a_pass: Speed, options: PassOptions, images: int) -> dict[str, Speed]:
    """The training steps of each strategy -> their speeds; none if the network cannot be trained."""
    from transferkit.finetune.precision import trains_mixed
    from transferkit.finetune.step_pace import step_seconds

    device, batch, speeds = choose_device(options.device), a_pass.batch_size, dict[str, Speed]()
    names, mixed = [stage.name for stage in backbone.stages], trains_mixed(backbone.trunk, device)
    for strategy in TUNED_SHARES:
        tuned = tuple(names) if trains_all_stages(strategy, images) else ()
        plan = STRATEGIES[strategy](PlanSettings(strategy=strategy, stage=TOP, lr=1.0, tuned=tuned), names)
        try:
            seconds = step_seconds(backbone, plan, batch_size=batch, device=device, mixed=mixed)
        except (RuntimeError, TransferkitError) as error:
            reason = str(error).strip().split("\n")[0]
            log.warning(
                "A training step of %s cannot be timed (%s): fine-tuning's time is estimated from the frozen pass.",
                backbone.spec.name,
                reason,
            )
            return {}
        speeds[strategy] = Speed(1 / seconds, batch, 0.0)
    return speeds
