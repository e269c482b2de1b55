"""Adapts once in one go and once killed again and again, from the same settings; test_resume.py runs this.

    python killing.py IMAGES FOLDER '[{"name": ..., "kills": 3, "seed": 0, "adapt": {...}}]'

Each scenario leaves FOLDER/<name>/whole and FOLDER/<name>/killed, each with a bank of its own. Attempts are forks of
this process, so that what takes longest, importing, is done once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import transferkit.api
from transferkit.finetune import checkpoint, cross_validation, verify

judge = verify.verify


def keep_both(*compared: Any) -> verify.Verdict:
    """An average with the probe, so that there is a last fit on all images, whoever is better."""
    verdict = judge(*compared)
    return replace(verdict, kept=verdict.candidates[2])


def attempt(images: str, out: Path, settings: dict[str, Any]) -> int:
    """Begin in a process of its own; returns its number."""
    child = os.fork()
    if child:
        return child
    try:
        transferkit.api.adapt(
            "timm/test_resnet", images, pretrained=False, image_size=32, out=out, cache=f"{out}-bank", progress=False,
            **settings,
        )  # fmt: skip
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def finish(child: int) -> None:
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"an attempt ended with {status}")


def main(images: str, folder: str, scenarios: str) -> None:
    for scenario in json.loads(scenarios):
        within, settings, rng = Path(folder) / scenario["name"], scenario["adapt"], random.Random(scenario["seed"])
        began = time.monotonic()
        finish(attempt(images, within / "whole", settings))
        lasted = time.monotonic() - began
        for _ in range(scenario["kills"]):
            child = attempt(images, within / "killed", settings)
            time.sleep(rng.uniform(0.2, 1.0) * lasted)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        finish(attempt(images, within / "killed", settings))


if __name__ == "__main__":  # not on import: doctests are looked for in every file, and would patch the package
    checkpoint.SAVE_EVERY = 0.0  # every epoch
    cross_validation.verify = keep_both
    main(*sys.argv[1:])
