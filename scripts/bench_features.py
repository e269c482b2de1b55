"""Time of `analyze` relative to one bare forward pass, and whether memory stays constant.

    python scripts/bench_features.py [--images 2000] [--size 96] [--rounds 3] [--out benchmarks/features.json]

Estimate: the pass itself is one forward (the same FLOPs as the bare one) plus pooling (reads each stage's output
once, about 1 % of the pass) and 4 D bytes of disk per image; the probes are one N x N eigendecomposition each for the
top stage and the joined ones (about 9 N^3 FLOPs: 0.5 s at N = 2000 on two cores) and smaller ones below.
The audit decodes every image once more, at a lower resolution for JPEG.

Two bare passes are timed alternately with it, over the same decoded images in memory: "plain" as most loops are
written (contiguous, batch 64) and "channels_last" (batch 32), the fastest one process without this package was here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from transferkit import analyze, load_backbone
from transferkit.core.provenance import environment
from transferkit.data import open_data

MODEL = "packaged/tf_efficientnet_lite0"
CLASSES = 10


def write_photos(root: Path, count: int) -> None:
    """`count` JPEG crops of scikit-learn's two photographs, one class per horizontal band."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    for number in range(count):
        label = number % CLASSES
        photo = photos[label % 2]
        folder = root / f"band{label}"
        folder.mkdir(exist_ok=True)
        left = int(rng.integers(0, photo.width - 128))
        top = int((label // 2) * (photo.height - 128) / (CLASSES // 2 - 1) * 0.9 + rng.integers(0, 20))
        photo.crop((left, top, left + 128, top + 128)).save(folder / f"{number:05d}.jpg", quality=90)


def bare_pass(network: torch.nn.Module, pixels: torch.Tensor, *, batch: int, channels_last: bool) -> float:
    """Seconds of one forward pass over uint8 pixels, including normalisation."""
    start = time.perf_counter()
    with torch.no_grad():
        for part in pixels.split(batch):
            images = part.float().sub_(127).div_(128)
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            network(images)
    return time.perf_counter() - start


def time_analyze(photos: Path, size: int) -> tuple[float, dict[str, float]]:
    """Seconds of `analyze` with an empty bank, without loading the backbone (as in the bare pass)."""
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        evidence = analyze(MODEL, photos, image_size=size, cache=cache, progress=False)
        wall = time.perf_counter() - start
    return wall - evidence.seconds["load backbone"], dict(evidence.seconds)


def compare(images: int, size: int, rounds: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder)
        write_photos(photos, images)
        backbone = load_backbone(MODEL, image_size=size)
        data = open_data(photos, progress=False)
        stack = np.stack([data.pixels(i, backbone.spec.preprocessing) for i in range(len(data))])
        pixels = torch.from_numpy(stack)
        plain = load_backbone(MODEL, image_size=size).trunk
        last = load_backbone(MODEL, image_size=size).trunk.to(memory_format=torch.channels_last)
        rows = []
        for number in range(rounds + 1):
            row: dict[str, object] = {
                "plain": bare_pass(plain, pixels, batch=64, channels_last=False),
                "channels_last": bare_pass(last, pixels, batch=32, channels_last=True),
            }
            row["analyze"], row["phases"] = time_analyze(photos, size)
            print(json.dumps(row), file=sys.stderr, flush=True)
            if number:  # the first round warms up
                rows.append(row)
    ratio = {
        name: statistics.median(row["analyze"] / row[name] for row in rows)  # type: ignore[operator]
        for name in ("plain", "channels_last")
    }
    return {"images": images, "size": size, "rounds": rows, "analyze over bare pass": ratio}


MEMORY = """
import resource, sys, tempfile, numpy as np, torch
from transferkit import analyze

class Noise(torch.utils.data.Dataset):
    def __len__(self): return {images}
    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        return rng.integers(0, 256, ({size}, {size}, 3), dtype=np.uint8), i % 10

with tempfile.TemporaryDirectory() as cache:
    analyze("{model}", Noise(), image_size={size}, cache=cache, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_memory(images: int, size: int) -> float:
    """Peak resident megabytes of a process that analyzes that many synthetic images."""
    script = MEMORY.format(images=images, size=size, model=MODEL)
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env=os.environ)
    return int(done.stdout.split()[-1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, object] = {
        "script": "scripts/bench_features.py",
        "date": date.today().isoformat(),
        "machine": environment(seed=0, device="cpu"),
    }
    # First, while this process is small: on Linux a child process inherits the peak memory of its parent.
    if not options.skip_memory:
        small, large = peak_memory(options.images, options.size), peak_memory(10 * options.images, options.size)
        found["peak memory, MB"] = {str(options.images): small, str(10 * options.images): large, "ratio": large / small}
    found["speed"] = compare(options.images, options.size, options.rounds)
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
