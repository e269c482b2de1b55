"""Time to open a folder of images, the first time and with the audit's cache.

    python scripts/bench_audit.py [--images 2000] [--rounds 3] [--out benchmarks/audit.json]

Estimate: the first time every file is read and decoded, JPEG at a lower resolution, in threads; after that only its
size and modification times are read, and looked up in a database of about 0.6 kB per image.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image

from transferkit.core.provenance import environment
from transferkit.data import open_data, remembered

SIDE = 128
CLASSES = 10


def write_photos(root: Path, count: int) -> None:
    """`count` JPEGs of `SIDE` px, coloured noise on a coloured background, one class per background."""
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = root / f"class{number % CLASSES}"
        folder.mkdir(exist_ok=True)
        ground = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(ground).resize((SIDE, SIDE)).save(folder / f"{number:05d}.jpg", quality=90)


def timed_opening(root: Path, cache: Path) -> dict[str, float]:
    """Wall-clock and CPU seconds; the latter depend less on the load of the machine."""
    wall, processor = time.perf_counter(), time.process_time()
    open_data(root, cache=cache, progress=False)
    return {"seconds": time.perf_counter() - wall, "processor": time.process_time() - processor}


def run(images: int, rounds: int) -> dict[str, object]:
    """Every round opens the folder with its own cache: empty, then full."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        root.mkdir()
        write_photos(root, images)
        time.sleep(remembered.SETTLED / 1e9 + 0.5)
        found: dict[str, list[dict[str, float]]] = {"first": [], "again": []}
        for number in range(rounds):
            cache = Path(folder) / f"cache{number}"
            for which in found:
                found[which].append(timed_opening(root, cache))
        size = (Path(folder) / "cache0" / remembered.FILE).stat().st_size
    medians = {
        which: {kind: round(statistics.median(one[kind] for one in times), 3) for kind in ("seconds", "processor")}
        for which, times in found.items()
    }
    return {"images": images, "bytes_per_image": round(size / images), **medians, "rounds": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = run(arguments.images, arguments.rounds)
    about = {"script": "scripts/bench_audit.py", "date": date.today().isoformat()}
    found = {**about, "machine": environment(seed=0, device="cpu"), **found}
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
