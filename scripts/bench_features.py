"""The frozen pass in each engine relative to bare forward passes, `analyze` relative to both, and its memory.

    python scripts/bench_features.py [--images 2000] [--sizes 96 128 224] [--rounds 3] [--out benchmarks/features.json]

Estimate: a pass cannot be faster than cores / (seconds to decode + seconds to compute an image on one core); pooling
reads each stage's output once (about 1 % of the pass), and each feature is 4 bytes of disk. `analyze` adds the probes
(an N x N eigendecomposition for all stages joined: about 9 N^3 operations, 0.5 s at N = 2000 on two cores), the
selection of features, learning curves and the audit, which decodes every image once more at a lower resolution.

Timed alternately, in the same process: bare passes of the network over images in memory, "contiguous" as most loops
are written (batch 64) and "channels_last" (batch 32), on all cores; each engine that is installed with all stages
tapped, as the frozen pass runs it (a thread per core); decoding alone; the frozen pass from files; and `analyze`.
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from transferkit import analyze, load_backbone
from transferkit.core.provenance import environment
from transferkit.data import Data, open_data
from transferkit.features import Engines, FeatureBank, frozen_pass
from transferkit.features.engines import ENGINES, stage_extractor
from transferkit.features.engines.engine import is_installed
from transferkit.features.extractor import FEATURES, Extractor
from transferkit.features.workers import worker_pool
from transferkit.nn import Backbone

MODEL = "packaged/tf_efficientnet_lite0"
CLASSES = 10

CORES = os.cpu_count() or 1

IN_MEMORY = 500
"""Images of the passes over images in memory."""

AGREEING = 200
"""Images that an engine is compared with the network on."""


def write_photos(root: Path, count: int, side: int = 128) -> None:
    """`count` JPEG crops of scikit-learn's two photographs, `side` pixels each, one class per horizontal band."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    for number in range(count):
        label = number % CLASSES
        photo = photos[label % 2]
        folder = root / f"band{label}"
        folder.mkdir(exist_ok=True)
        left = int(rng.integers(0, photo.width - side))
        top = int((label // 2) * (photo.height - side) / (CLASSES // 2 - 1) * 0.9 + rng.integers(0, 15))
        photo.crop((left, top, left + side, top + side)).save(folder / f"{number:05d}.jpg", quality=90)


def bare_rate(network: torch.nn.Module, pixels: torch.Tensor, *, batch: int, channels_last: bool) -> float:
    """Images per second of forward passes over uint8 pixels on all cores, normalisation included."""
    start = time.perf_counter()
    with torch.no_grad():
        for part in pixels.split(batch):
            images = part.float().sub_(127).div_(128)
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            network(images)
    return len(pixels) / (time.perf_counter() - start)


def engine_rate(extractor: Extractor, pixels: np.ndarray) -> float:
    """Images per second with all stages tapped, a thread per core, over images in memory."""
    size = extractor.batch_size
    parts = [pixels[start : start + size] for start in range(0, len(pixels), size)]
    with extractor.ready(), worker_pool(CORES, on_one_core_each=True) as pool:
        list(pool.map(lambda part: extractor.extract(part, FEATURES), parts[: 2 * CORES]))  # to warm up
        start = time.perf_counter()
        list(pool.map(lambda part: extractor.extract(part, FEATURES), parts))
        return len(pixels) / (time.perf_counter() - start)


def open_engines(
    backbone: Backbone, pixels: np.ndarray, names: Sequence[str]
) -> tuple[dict[str, Extractor], dict[str, dict[str, float]]]:
    """Every engine that is installed, and how it agrees with the network on a hundred images."""
    reference = stage_extractor(backbone, pooling="avg+max", device=torch.device("cpu"))
    found: dict[str, Extractor] = {"eager": reference}
    agreement = {}
    for name in names:
        engines = Engines(name)
        start = time.perf_counter()
        found[name] = engines.extractor(
            reference, pixels[:100], images=len(pixels), kinds=[FEATURES], pooling="avg+max", workers=CORES
        )
        seconds = time.perf_counter() - start
        if engines.use is None or engines.use.name != name:
            print(f"{name} cannot be used: {engines.use}", file=sys.stderr)
            del found[name]
            continue
        agreement[name] = {"seconds to open": round(seconds, 2), **compare(reference, found[name], pixels[:AGREEING])}
    return found, agreement


def compare(reference: Extractor, engine: Extractor, pixels: np.ndarray) -> dict[str, float]:
    """Largest difference in units of the largest value, and the share of images with the same largest feature."""
    with reference.ready(), engine.ready():
        expected, rows = (
            np.concatenate(
                [one.extract(pixels[at : at + 50], FEATURES)["features"] for at in range(0, len(pixels), 50)]
            )
            for one in (reference, engine)
        )
    same = (expected.argmax(axis=1) == rows.argmax(axis=1)).mean()
    return {"difference": float(np.abs(expected - rows).max() / np.abs(expected).max()), "same argmax": float(same)}


def decode_rate(data: Data, backbone: Backbone) -> float:
    """Images per second from files to pixels, a thread per core."""
    with ThreadPoolExecutor(CORES) as pool:
        start = time.perf_counter()
        list(pool.map(lambda index: data.pixels(index, backbone.spec.preprocessing), range(len(data))))
        return len(data) / (time.perf_counter() - start)


def pass_rate(data: Data, backbone: Backbone, opened: Engines) -> float:
    """Images per second of a frozen pass from files into an empty bank; the engine is open already."""
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        frozen_pass(
            backbone,
            lambda index: data.pixels(index, backbone.spec.preprocessing),
            data.content_ids,
            bank=FeatureBank(cache),
            engines=opened,
            progress=False,
        )
        return len(data) / (time.perf_counter() - start)


def time_analyze(photos: Path, size: int) -> dict[str, object]:
    """Seconds of `analyze` with an empty bank; a run before it has measured the engines on this machine."""
    with tempfile.TemporaryDirectory() as cache:
        analyze(MODEL, photos, image_size=size, cache=cache, progress=False, geometry="crop", views=1)
        speeds = (Path(cache) / "engines.json").read_text() if (Path(cache) / "engines.json").is_file() else None
    with tempfile.TemporaryDirectory() as cache:
        if speeds is not None:
            (Path(cache) / "engines.json").write_text(speeds)
        start = time.perf_counter()
        evidence = analyze(MODEL, photos, image_size=size, cache=cache, progress=False, geometry="crop", views=1)
        wall = time.perf_counter() - start
    phases = {name: round(value, 2) for name, value in evidence.seconds.items()}
    engine = "eager" if evidence.engine is None else evidence.engine.name
    return {"seconds": round(wall - evidence.seconds["load backbone"], 2), "engine": engine, "phases": phases}


def measure_size(images: int, size: int, rounds: int, names: Sequence[str]) -> dict[str, object]:
    """All rates at one size; the medians over rounds."""
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder)
        write_photos(photos, images, side=max(128, size * 8 // 7))
        backbone = load_backbone(MODEL, image_size=size)
        data = open_data(photos, progress=False)
        pixels = np.stack([data.pixels(i, backbone.spec.preprocessing) for i in range(min(len(data), IN_MEMORY))])
        stack = torch.from_numpy(pixels)
        plain = load_backbone(MODEL, image_size=size).trunk
        last = load_backbone(MODEL, image_size=size).trunk.to(memory_format=torch.channels_last)
        engines, agreement = open_engines(backbone, pixels, names)
        passes = {name: Engines(name) for name in engines}
        for opened in passes.values():
            pass_rate(data, backbone, opened)
        rows = []
        for number in range(rounds + 1):
            row = {
                "contiguous": bare_rate(plain, stack, batch=64, channels_last=False),
                "channels_last": bare_rate(last, stack, batch=32, channels_last=True),
                "decoding": decode_rate(data, backbone),
                **{f"engine {name}": engine_rate(engine, pixels) for name, engine in engines.items()},
                **{f"pass {name}": pass_rate(data, backbone, opened) for name, opened in passes.items()},
            }
            print(size, json.dumps({name: round(rate, 1) for name, rate in row.items()}), file=sys.stderr, flush=True)
            if number:  # the first round warms up
                rows.append(row)
        rates = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        return {
            "rates": rates,
            "ratios": ratios(rates),
            "agreement": agreement,
            "analyze": analyzed(photos, size, rates),
        }


def ratios(rates: dict[str, float]) -> dict[str, dict[str, float]]:
    """Engine -> its rate over the bare ones, and the frozen pass's over its bound."""
    found = {}
    for name in (key.removeprefix("engine ") for key in rates if key.startswith("engine ")):
        rate = rates[f"engine {name}"]
        bound = 1 / (1 / rates["decoding"] + 1 / rate)  # all three are of all cores
        found[name] = {
            "over contiguous": round(rate / rates["contiguous"], 2),
            "over channels_last": round(rate / rates["channels_last"], 2),
            "pass over its bound": round(rates[f"pass {name}"] / bound, 3),
        }
    return found


def analyzed(photos: Path, size: int, rates: dict[str, float]) -> dict[str, object]:
    """`analyze`, and what a bare pass in its engine with decoding would have taken."""
    found = time_analyze(photos, size)
    count = sum(1 for _ in photos.rglob("*.jpg"))
    bare = count * (1 / rates["decoding"] + 1 / rates[f"engine {found['engine']}"])
    return {**found, "bare pass with decoding": round(bare, 2), "ratio": round(float(str(found["seconds"])) / bare, 2)}


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
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 128, 224])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=[name for name in ENGINES if is_installed(name)])
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, object] = {
        "script": "scripts/bench_features.py",
        "date": date.today().isoformat(),
        "machine": environment(seed=0, device="cpu"),
        "images": options.images,
    }
    # First, while this process is small: on Linux a child process inherits the peak memory of its parent.
    if not options.skip_memory:
        small, large = peak_memory(options.images, 96), peak_memory(10 * options.images, 96)
        found["peak memory, MB"] = {str(options.images): small, str(10 * options.images): large, "ratio": large / small}
    found["sizes"] = {
        str(size): measure_size(options.images, size, options.rounds, options.engines) for size in options.sizes
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
