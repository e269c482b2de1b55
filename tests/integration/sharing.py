"""One run of adapt, alone or shared out among processes; test_distributed.py starts this.

python sharing.py IMAGES OUT '{"strategy": "lp_ft", ...}'
python sharing.py IMAGES OUT '{...}' 1 2    OUT-1, then OUT-2 by two processes, as torchrun starts them but forked
"""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import transferkit.api
from transferkit.finetune import checkpoint, cross_validation, verify
from transferkit.workflow import paces

judge = verify.verify
pace = paces.image_seconds


def keep_both(*compared: Any) -> verify.Verdict:
    """An average with the probe, so that there is a last fit on all images, whoever is better."""
    verdict = judge(*compared)
    return replace(verdict, kept=verdict.candidates[2])


def pace_apart(*seen: Any, **how: Any) -> float:
    """The processes but the first think that they are slow."""
    measured = pace(*seen, **how)
    return measured if os.environ.get("RANK", "0") == "0" else 1e6 * measured


def run(images: str, out: str, settings: dict[str, Any]) -> None:
    result = transferkit.api.adapt(
        "timm/test_resnet", images, pretrained=False, image_size=32, out=out, cache=f"{out}-bank", progress=False,
        views=1, geometry="crop",
        **settings,
    )  # fmt: skip
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK", "0")
    told = {
        "computed": result.evidence.images_computed,
        "accuracy": result.metrics["test"].accuracy,
        "strategy": result.decision.strategy,
        "reasons": result.decision.reasons,
    }
    Path(f"{out}-told-{rank}.json").write_text(json.dumps(told), encoding="utf-8")


def share(world: int, images: str, out: str, settings: dict[str, Any]) -> None:
    """The same in so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        children.append(os.fork())
        if not children[-1]:
            if world > 1:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "x"}
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
                os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
            run(images, out, settings)
            sys.exit()
    if ends := [end for end in (os.waitpid(child, 0)[1] for child in children) if end]:
        sys.exit(f"processes ended with {ends}")


def main(images: str, out: str, settings: str, *worlds: str) -> None:
    for world in worlds:
        share(int(world), images, f"{out}-{world}", json.loads(settings))
    if not worlds:
        run(images, out, json.loads(settings))


if __name__ == "__main__":  # not on import: doctests are looked for in every file, and would patch the package
    checkpoint.SAVE_EVERY = 0.0  # every epoch
    cross_validation.verify = keep_both
    paces.image_seconds = pace_apart
    # So that all that was trained is in the weights.
    cross_validation._best_epoch = lambda trials: len(trials[0].checkpoint.epochs) - 1
    main(*sys.argv[1:])
