"""`torch-audit` on the same scripts."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from planted.doctors import STEPS
from planted.script import Script

__all__ = ["audit"]

EVERY = 10


def audit(script: Script) -> list[str]:
    """Rules of `torch-audit` that report a warning or an error; ["not installed"] without it."""
    try:
        from torch_audit import autopatch
    except ImportError:
        return ["not installed"]
    found: dict[str, Any] = {}
    auditor = autopatch(
        script.model,
        optimizer=script.optimizer,
        every_n_steps=EVERY,
        reporters=[],
        fail_level="FATAL",
        run_static=True,
        run_init=True,
    )
    with suppress(RuntimeError):  # what PyTorch raises itself is not the auditor's finding
        script.run(STEPS, lambda loss: None)
    result = auditor.finish(report=False)
    auditor.unpatch()
    for one in result.findings:
        if one.severity.name != "INFO":
            found[one.rule_id] = one
    return sorted(found)
