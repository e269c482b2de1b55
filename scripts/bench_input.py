"""Images per second and core from a file to a network's input, and how much decoding JPEG at a fraction changes pixels.

    python scripts/bench_input.py [--images 8] [--rounds 5] [--photos FOLDER] [--out benchmarks/input.json]

Before: every file is decoded at full size, resized by Pillow, then cropped. Now: `read_pixels`. Both in turn over the
same files, in one thread; CPU seconds, the least of the rounds, because other jobs can only add to it.

Estimate: entropy decoding, which no fraction saves, is half of decoding a JPEG, so decoding becomes at most twice as
fast; resizing reads every decoded pixel, so a quarter or a sixteenth of them take that much less. PNG is decoded in
full whatever it is for.

Photos are the two that scikit-learn brings, mirrored and cut at random; a large one is a mosaic of them.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from transferkit.core.provenance import environment
from transferkit.data import decode
from transferkit.data.geometry import Scaled, crop_offset, resized_size, view_pixels
from transferkit.data.headers import open_header
from transferkit.data.scaled import SCALES, choose_scale, read_pixels
from transferkit.records import Preprocessing

SIZES = ((500, 375), (2000, 1500))
SIDES = (96, 128, 224)
MARGINS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
QUALITY = 90
MAX_PIXELS = 10**8
PER_THREAD = 100
"""Files of 500 x 375 that a thread or process reads to measure how well threads scale."""

Pixels = npt.NDArray[np.uint8]


def preprocessing(side: int, crop_pct: float = 0.875) -> Preprocessing:
    """That of most networks: bicubic, the middle of the picture."""
    return Preprocessing(size=side, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=crop_pct)


def sources(folder: Path | None) -> list[Pixels]:
    """Photos of any size, as (H, W, 3) arrays."""
    if folder is not None:
        return [np.asarray(decode(path)) for path in sorted(folder.iterdir()) if path.suffix.lower() == ".jpg"]
    from sklearn.datasets import load_sample_images

    return [np.asarray(image) for image in load_sample_images().images]


def draw_photo(photos: Sequence[Pixels], size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A cut of one photo at a random place, which continues mirrored beyond the photo's edge."""
    photo, (width, height) = photos[rng.integers(len(photos))], size
    top, left = (int(rng.integers(side)) for side in photo.shape[:2])
    mosaic = np.pad(photo, ((0, top + height), (0, left + width), (0, 0)), mode="symmetric")
    return Image.fromarray(mosaic[top : top + height, left : left + width])


def write(image: Image.Image, path: Path) -> Path:
    """As a JPEG of `QUALITY` or a PNG, by the name's extension."""
    image.save(path, **({"quality": QUALITY} if path.suffix == ".jpg" else {}))
    return path


def read_before(path: Path, wants: Preprocessing) -> Pixels:
    """As files were read until 2026-11: decoded at full size, resized by Pillow, cropped."""
    image = decode(path)
    resized = image.resize(resized_size(image.size, wants), Image.Resampling.BICUBIC)
    left, top = (crop_offset(side, wants.size) for side in resized.size)
    square = resized.crop((left, top, left + wants.size, top + wants.size))
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def read_now(path: Path, wants: Preprocessing) -> Pixels:
    """As files are read by the frozen pass, training and prediction."""
    return read_pixels(path, wants, name=str(path), max_pixels=MAX_PIXELS, range_for=lambda _: None)


def least_ms(work: Callable[[Path], object], paths: Sequence[Path], rounds: int) -> float:
    """CPU milliseconds per file."""
    return min(_cpu_ms(work, paths) for _ in range(rounds))


def _cpu_ms(work: Callable[[Path], object], paths: Sequence[Path]) -> float:
    start = time.thread_time()
    for path in paths:
        work(path)
    return 1000 * (time.thread_time() - start) / len(paths)


def compare(paths: Sequence[Path], side: int, rounds: int) -> dict[str, object]:
    """Before and now in turn, and how far the pixels differ, in grey levels of 255."""
    wants = preprocessing(side)
    times: dict[str, list[float]] = {"before": [], "now": []}
    for _ in range(rounds):
        times["before"].append(_cpu_ms(lambda path: read_before(path, wants), paths))
        times["now"].append(_cpu_ms(lambda path: read_now(path, wants), paths))
    before, now = (min(values) for values in times.values())
    off = [np.abs(read_now(path, wants).astype(int) - read_before(path, wants)) for path in paths]
    with Image.open(paths[0]) as image:
        scale = choose_scale(image.size, wants) if image.format == "JPEG" else 1
    return {
        "side": side,
        "scale": scale,
        "images_per_second": {"before": round(1000 / before), "now": round(1000 / now)},
        "times_as_fast": round(before / now, 2),
        "difference": {"mean": round(float(np.mean(off)), 3), "largest": int(np.max(off))},
    }


def parts(paths: Sequence[Path], side: int, rounds: int) -> dict[str, float]:
    """CPU milliseconds per file of each step, at full size and at the scale in use."""
    wants = preprocessing(side)
    encoded = paths[0].read_bytes()
    size = open_header(encoded, name="it", max_pixels=MAX_PIXELS).size
    scale = choose_scale(size, wants) if paths[0].suffix == ".jpg" else 1
    full, part = decoded_at(paths[0], 1), decoded_at(paths[0], scale)
    target = resized_size(size, wants)
    steps: dict[str, Callable[[Path], object]] = {
        "read": lambda path: path.read_bytes(),
        "header": lambda path: open_header(encoded, name="it", max_pixels=MAX_PIXELS),
        "decode_full": lambda path: decoded_at(path, 1),
        "decode_scaled": lambda path: decoded_at(path, scale),
        "copy_full": lambda path: full.image.copy(),
        "resize_full_pillow": lambda path: full.image.resize(target, Image.Resampling.BICUBIC),
        "resize_full": lambda path: view_pixels(lambda _: full, wants),
        "resize_scaled": lambda path: view_pixels(lambda _: part, wants),
    }
    return {name: round(least_ms(step, paths, rounds), 3) for name, step in steps.items()}


def decoded_at(path: Path, scale: int) -> Scaled:
    """A file decoded at a fraction, whatever it is for."""
    image = Image.open(io.BytesIO(path.read_bytes()))
    size = image.size
    if scale > 1:
        image.draft(None, (size[0] // scale, size[1] // scale))
    return Scaled(image.convert("RGB"), size, scale)


def margins(paths: Sequence[Path]) -> Iterator[dict[str, object]]:
    """How far pixels differ from those of full decoding, by scale and by how much the resize still shrinks."""
    for scale in SCALES:
        for margin in MARGINS:
            off = [_mean_difference(path, scale, margin) for path in paths]
            yield {"scale": scale, "margin": margin, "mean": round(statistics.mean(off), 3), "most": round(max(off), 3)}


def _mean_difference(path: Path, scale: int, margin: float) -> float:
    full, part = decoded_at(path, 1), decoded_at(path, scale)
    wants = preprocessing(int(min(full.size) / (scale * margin)), 1.0)
    one, other = (view_pixels(lambda _, picture=picture: picture, wants) for picture in (part, full))  # type: ignore[misc]
    return float(np.abs(one.astype(int) - other).mean())


def _read_all(path: Path) -> None:
    for _ in range(PER_THREAD):
        read_now(path, preprocessing(96))


def _rate(work: Callable[[], object], files: int) -> float:
    start = time.perf_counter()
    work()
    return files / (time.perf_counter() - start)


def scaling(path: Path, rounds: int) -> dict[str, int]:
    """Images per second of one thread, two threads, and two processes: the most that the machine has left for them."""
    rates: dict[str, list[float]] = {"one_thread": [], "two_threads": [], "two_processes": []}
    with multiprocessing.get_context("fork").Pool(2) as processes, ThreadPoolExecutor(2) as threads:
        for _ in range(rounds):
            rates["one_thread"].append(_rate(lambda: _read_all(path), PER_THREAD))
            rates["two_threads"].append(_rate(lambda: list(threads.map(_read_all, [path] * 2)), 2 * PER_THREAD))
            rates["two_processes"].append(_rate(lambda: processes.map(_read_all, [path] * 2, 1), 2 * PER_THREAD))
    return {name: round(max(values)) for name, values in rates.items()}


def run(folder: Path, images: int, rounds: int, photos: Sequence[Pixels]) -> dict[str, Any]:
    """All figures; files are written to `folder`."""
    rng, cases, steps, differences = np.random.default_rng(0), [], [], []
    for size in SIZES:
        drawn = [draw_photo(photos, size, rng) for _ in range(images)]
        for kind in ("jpg", "png"):
            fewer = drawn if kind == "jpg" or size == SIZES[0] else drawn[:2]  # a large PNG takes 80 ms
            paths = [write(image, folder / f"{size[0]}-{number}.{kind}") for number, image in enumerate(fewer)]
            about = {"format": kind, "width": size[0], "height": size[1]}
            cases += [{**about, **compare(paths, side, rounds)} for side in SIDES]
            steps.append({**about, "side": 96, "ms": parts(paths, 96, rounds)})
            differences += [{**about, **row} for row in margins(paths)] if kind == "jpg" else []
    threads = scaling(folder / f"{SIZES[0][0]}-0.jpg", 3 * rounds)
    return {"images": images, "cases": cases, "parts": steps, "margins": differences, "threads": threads}


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), arguments.images, arguments.rounds, sources(arguments.photos))
    about = {"script": "scripts/bench_input.py", "date": date.today().isoformat()}
    text = json.dumps({**about, "machine": environment(seed=0, device="cpu"), **found}, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
