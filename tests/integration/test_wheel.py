"""A wheel installed outside the checkout runs every verb."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def test_a_wheel_runs_every_verb(tmp_path, stripes):
    pytest.importorskip("hatchling")
    pip = [sys.executable, "-m", "pip"]
    quiet = ["-q", "--no-deps", "--disable-pip-version-check"]
    build = [*pip, "wheel", *quiet, "--no-build-isolation", "-w", str(tmp_path / "dist"), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("transferkit-*.whl")
    subprocess.run([*pip, "install", *quiet, "--target", str(tmp_path / "site"), str(wheel)], check=True)
    script = (
        "import transferkit.cli as c, transferkit, sys\n"
        f"assert transferkit.__file__.startswith({str(tmp_path / 'site')!r}), transferkit.__file__\n"
        f"c.main(['adapt', 'data=folder', 'data.root={stripes}', 'out=run', 'image_size=32', 'progress=false'])\n"
        f"c.main(['analyze', 'data=folder', 'data.root={stripes}', 'out=look', 'image_size=32', 'progress=false'])\n"
        f"c.main(['predict', 'run=run', 'images={stripes / 'test'}'])\n"
        "c.main(['zoo', 'offline=true'])\n"
        "c.main(['cache'])\n"
    )
    work = tmp_path / "elsewhere"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert (work / "run" / "report.html").is_file()
