"""Run the prepared settings of conf/ and write the result into the head of each file.

    python scripts/run_experiments.py                 # all that run offline, one after the other
    python scripts/run_experiments.py experiment      # one group

The command is the file's first comment; it is run in an empty folder. Files that need a GPU or a download are skipped.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from transferkit.core.provenance import environment

CONF = Path(__file__).parents[1] / "conf"
GROUPS = ("backbone", "strategy", "finetune", "trainer", "tune", "experiment")
COMMAND = re.compile(r"^# (transferkit .*)$", flags=re.M)
EXPECTED = re.compile(r"^# Expected: .*$", flags=re.M)
NOT_HERE = "not measured here"


def list_files(groups: list[str]) -> Iterator[Path]:
    """The files whose result can be measured on this machine."""
    for group in groups:
        for path in sorted((CONF / group).glob("*.yaml")):
            if NOT_HERE not in path.read_text(encoding="utf-8"):
                yield path


def run(command: str) -> tuple[str, float]:
    """Accuracy with its interval or number of images, as printed, and the seconds of the whole process."""
    words = shlex.split(command)[1:]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "transferkit.cli", *words, "progress=false", f"cache={folder}/bank"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(CONF.parent)},
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stderr}")
    said = re.findall(r"^(test accuracy .*) on|^(Held-back accuracy [^)]*\))", done.stdout, flags=re.M)[0]
    return "".join(said).lower(), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", default=list(GROUPS), help="folders of conf/; default: all")
    machine = environment(seed=0, device="cpu")
    for path in list_files(parser.parse_args().groups):
        text = path.read_text(encoding="utf-8")
        (command,) = COMMAND.findall(text)
        accuracy, seconds = run(command)
        expected = (
            f"# Expected: {accuracy} in {seconds:.0f} s "
            f"({machine['cores']} cores, {platform.machine()}, CPU; {datetime.now(UTC):%Y-%m-%d})"
        )
        path.write_text(EXPECTED.sub(expected, text), encoding="utf-8")
        print(path.relative_to(CONF), expected[2:], flush=True)


if __name__ == "__main__":
    main()
