"""What engines were measured to do on this machine, remembered beside the feature bank."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from transferkit.core.provenance import installed_version, processor
from transferkit.features.engines.engine import ENGINES
from transferkit.features.engines.torch import TorchExtractor, layers_digest

__all__ = ["Speed", "SpeedRecord", "machine_key"]

FILE = "engines.json"


@dataclass(frozen=True)
class Speed:
    """An engine on this machine, with one network at one size.

    Args:
        images_per_second: Of all workers together, without decoding, > 0.
        batch_size: Images at once, at which that was measured.
        setup_seconds: To open it.
    """

    images_per_second: float
    batch_size: int
    setup_seconds: float

    def seconds(self, images: int) -> float:
        """That a pass over so many images takes, with opening it."""
        return self.setup_seconds + images / self.images_per_second


class SpeedRecord:
    """Measured speeds in a file; a file that cannot be read or written is no reason to stop.

    Args:
        folder: Where the file is; None remembers nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / FILE

    def load(self, key: str) -> dict[str, Speed] | None:
        """Engine -> its speed; an engine that could not be used is missing. None if nothing was measured."""
        known = self._read().get(key)
        if not isinstance(known, dict):
            return None
        with suppress(TypeError, ValueError):
            return {str(name): Speed(**speed) for name, speed in known.items()}
        return None

    def store(self, key: str, speeds: Mapping[str, Speed]) -> None:
        """Keep these."""
        if self._path is None:
            return
        known = {**self._read(), key: {name: asdict(speed) for name, speed in speeds.items()}}
        beside = self._path.with_name(f"{FILE}.{uuid.uuid4().hex}")
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(known, indent=1), encoding="utf-8")
            os.replace(beside, self._path)

    def _read(self) -> dict[str, object]:
        if self._path is None:
            return {}
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def machine_key(reference: TorchExtractor, shape: tuple[int, ...], pooling: str, workers: int) -> str:
    """Names everything that a speed depends on: processor, workers, libraries, layers, size."""
    packages = {package for engine in ENGINES.values() for package in engine.packages}
    versions = [f"{package} {installed_version(package)}" for package in sorted(packages)]
    spec = reference.backbone.spec
    about = [processor(), workers, torch.__version__, *versions, layers_digest(reference.backbone.trunk), pooling]
    digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=8).hexdigest()
    return f"{spec.architecture} {'x'.join(map(str, shape))} {digest}"
