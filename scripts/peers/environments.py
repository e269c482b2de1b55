"""The contestants' Pythons: one virtual environment per `requirements-<name>.txt`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path

from regret.paths import ROOT

from peers.roster import OUR_PYTHON, Contestant

HERE = Path(__file__).parent
SCRIPTS = HERE.parent
CONTESTANTS = HERE / "contestants"

SHARED = ("protocol.py", "images.py")
"""Files that every contestant's result depends on besides its own."""

DIGITS = 12
"""Of a digest of source files."""


def requirements(name: str) -> Path:
    """The pinned packages of an environment."""
    return HERE / f"requirements-{name}.txt"


def python_of(name: str, venvs: Path) -> Path:
    """The interpreter of an environment; it need not exist."""
    return Path(sys.executable) if name == OUR_PYTHON else venvs / name / "bin" / "python"


def set_up(names: Iterable[str], venvs: Path) -> dict[str, str]:
    """Make the missing environments.

    All packages of one are installed by one command: torch and torchvision must fit each other.

    Returns:
        Name -> the end of pip's output, of those that could not be made; such an environment is left without packages.
    """
    failed = {}
    for name in names:
        if name == OUR_PYTHON:
            continue
        if not python_of(name, venvs).exists():
            venv.create(venvs / name, with_pip=True)
        command = [str(python_of(name, venvs)), "-m", "pip", "install", "--quiet", "-r", str(requirements(name))]
        print(" ".join(command), flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            failed[name] = done.stdout[-2000:]
    return failed


def child_environment(threads: int) -> dict[str, str]:
    """Environment variables of a contestant: the threads of BLAS and torch, no network, these scripts importable."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return {
        **os.environ,
        **offline,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": f"{SCRIPTS}{os.pathsep}{ROOT}",
        "PYTHONWARNINGS": "ignore",
    }


def versions(contestant: Contestant, venvs: Path) -> dict[str, str]:
    """What a result depends on: packages of its Python, the digest of its files, for ours that of the package.

    Raises:
        FileNotFoundError: Its environment does not exist.
    """
    python = python_of(contestant.venv, venvs)
    if not python.exists():
        raise FileNotFoundError(f"{python} does not exist. Run: python scripts/bench_peers.py setup --venvs {venvs}")
    asked = [str(python), "-m", "peers.contestants.protocol"]
    done = subprocess.run(asked, env=child_environment(1), capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    found["script"] = digest(CONTESTANTS / name for name in (f"{contestant.module}.py", *SHARED))
    found["arguments"] = " ".join(contestant.arguments())
    if contestant.ours:
        found["transferkit"] = digest((ROOT / "transferkit").rglob("*.py"))
    return found


def warm_up(contestant: Contestant, venvs: Path) -> None:
    """Import what a contestant imports, so that no measured run is the first to read it from disk or to compile it.

    A module that cannot be imported fails in the run that follows, where the reason is recorded.
    """
    asked = [str(python_of(contestant.venv, venvs)), "-c", f"import peers.contestants.{contestant.module}"]
    subprocess.run(asked, env=child_environment(1), capture_output=True)


def digest(files: Iterable[Path]) -> str:
    """First digits of the SHA-256 of these files' names and contents."""
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:DIGITS]
