"""One run of adapt, alone or shared out among processes; test_distributed.py starts this.

    python sharing.py IMAGES OUT '{"strategy": "lp_ft", ...}'
    python sharing.py IMAGES OUT '{...}' 2      two processes, started as torchrun starts them, but by forking
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
from transferkit.train import tuning, verify

judge = verify.verify


def keep_both(*compared: Any) -> verify.Verdict:
    """An average with the probe, so that there is a last fit on all images, whoever is better."""
    verdict = judge(*compared)
    return replace(verdict, kept=verdict.candidates[2])


tuning.verify = keep_both


def run(images: str, out: str, settings: dict[str, Any]) -> None:
    result = transferkit.api.adapt(
        "timm/test_resnet", images, pretrained=False, image_size=32, out=out, progress=False, **settings
    )
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK", "0")
    told = {"computed": result.evidence.images_computed, "accuracy": result.metrics["test"].accuracy}
    Path(f"{out}-{rank}.json").write_text(json.dumps(told), encoding="utf-8")


def share(world: int, *arguments: Any) -> None:
    """The same in several processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}
    children = []
    for rank in range(world):
        children.append(os.fork())
        if not children[-1]:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
            run(*arguments)
            sys.exit()
    if ends := [end for end in (os.waitpid(child, 0)[1] for child in children) if end]:
        sys.exit(f"processes ended with {ends}")


def main(images: str, out: str, settings: str, world: str = "1") -> None:
    if world == "1":
        run(images, out, json.loads(settings))
    else:
        share(int(world), images, out, json.loads(settings))


if __name__ == "__main__":
    main(*sys.argv[1:])
