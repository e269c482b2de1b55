"""Extraction over shards by two processes, one of them killed: exact count, flat memory, restart goes on.

    python scripts/bench_shards.py [--images 200000] [--out benchmarks/shards.json]

Estimate: a forward pass at 32 px takes 1 to 2 ms on a core, so two processes of one thread take 2 to 4 minutes for
200,000 images; a killed process has to compute again 4,096 images at most; its peak memory is the network's, the
libraries' and 100 bytes per image for the index of the shards and the list of content ids.

The shards are plain tar files of KEY.jpg and KEY.cls, written by `tarfile` without an index. Every picture is another
one: the content ids expected in the bank are taken from the bytes when they are made.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image

from transferkit import load_backbone
from transferkit.core.provenance import environment
from transferkit.data import decode, list_source, to_pixels
from transferkit.data.fingerprints import digest
from transferkit.features import FeatureBank, choose_device
from transferkit.features.engines import stage_extractor
from transferkit.features.extractor import FEATURES
from transferkit.features.shelf import Shelf
from transferkit.features.tables import columns_of

MODEL, SIZE, POOLING = "packaged/tf_efficientnet_lite0", 32, "avg"
SHARDS, CLASSES, PROCESSES = 20, 10, 2
KILLED_AT = 0.3
"""Share of all images in the bank at which the last process is killed."""

CHECKED = 64
"""Images whose rows are compared with a pass of their own."""

PAUSE = 0.1


def write_shards(folder: Path, images: int) -> set[bytes]:
    """Shards of distinct pictures; returns the content ids that the bank must hold."""
    folder.mkdir()
    rng, ids = np.random.default_rng(0), set()
    for shard in range(SHARDS):
        with tarfile.open(folder / f"train-{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for key in range(images * shard // SHARDS, images * (shard + 1) // SHARDS):
                label = int(rng.integers(CLASSES))
                coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                coarse[label % 8] = 25 * label
                buffer = io.BytesIO()
                Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.NEAREST).save(buffer, format="JPEG")
                for name, content in ((f"{key:09d}.jpg", buffer.getvalue()), (f"{key:09d}.cls", b"%d" % label)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                ids.add(digest(buffer.getvalue()))
            tar.members = []
    if len(ids) != images:
        raise SystemExit(f"{images - len(ids)} of the pictures made are copies of others.")
    return ids


def start(folder: Path, rank: int, world: int) -> subprocess.Popen[bytes]:
    """A process that extracts its range, with one thread."""
    command = [sys.executable, "-m", "transferkit.cli", "extract", f"model={MODEL}", f"data.root={folder / 'shards'}",
               f"image_size={SIZE}", f"pooling={POOLING}", f"cache={folder / 'cache'}", f"out={folder / 'out'}",
               "cache_limit=100", "device=cpu"]  # fmt: skip
    divided = {
        "RANK": f"{rank}",
        "WORLD_SIZE": f"{world}",
        "LOCAL_RANK": f"{rank}",
        "LOCAL_WORLD_SIZE": f"{os.cpu_count()}",
    }
    return subprocess.Popen(command, env={**os.environ, **divided, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def rows_in(folder: Path) -> int:
    """Rows that are committed."""
    found = 0
    for file in (folder / "cache" / "v1").glob("*/*.ids"):
        with suppress(FileNotFoundError):
            if "moments" not in json.loads((file.parent / "meta.json").read_text("utf-8"))["pooling"]:
                found += file.stat().st_size // 32
    return found


def peak_megabytes(process: subprocess.Popen[bytes]) -> float | None:
    """Peak resident memory of a running process."""
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM"):
                return round(int(line.split()[1]) / 1024, 1)
    return None


def watch(
    processes: dict[str, subprocess.Popen[bytes]], folder: Path, images: int, *, until: Callable[[int], bool]
) -> dict[str, dict[str, float]]:
    """Peak memory of each process by share of all images that are in the bank, in tenths, until all end."""
    peaks: dict[str, dict[str, float]] = {name: {} for name in processes}
    while any(process.poll() is None for process in processes.values()):
        done = rows_in(folder)
        for name, process in processes.items():
            if (peak := peak_megabytes(process)) is not None:
                peaks[name][f"{10 * (10 * done // images)} %"] = peak
        if until(done):
            break
        time.sleep(PAUSE)
    return peaks


def rows_of(folder: Path) -> Iterator[tuple[Path, np.ndarray]]:
    for file in sorted((folder / "cache" / "v1").glob("*/*.ids")):
        if "moments" not in json.loads((file.parent / "meta.json").read_text("utf-8"))["pooling"]:
            yield file, np.fromfile(file, dtype="S32")


def check_count(folder: Path, expected: set[bytes]) -> dict[str, int]:
    """Rows of the bank against the pictures that were made."""
    found = [one for _, ids in rows_of(folder) for one in ids.tolist()]
    return {
        "rows": len(found),
        "repeated": len(found) - len(set(found)),
        "missing": len(expected - set(found)),
        "foreign": len(set(found) - expected),
    }


def check_rows(folder: Path) -> float:
    """Largest difference between rows of the bank and a pass over single images, in units of the largest value."""
    backbone = load_backbone(MODEL, image_size=SIZE)
    extractor = stage_extractor(backbone, pooling=POOLING, device=choose_device("cpu"))
    files = list_source(folder / "shards", cache=folder / "cache").files
    chosen = np.random.default_rng(1).choice(len(files), CHECKED, replace=False)
    encoded = [files[int(row)].read_bytes() for row in chosen]
    pixels = np.stack([to_pixels(decode(one), backbone.spec.preprocessing) for one in encoded])
    with extractor.ready():
        direct = extractor.extract(pixels, FEATURES)["features"]
    (shelf,) = {file.parent for file, _ in rows_of(folder)}
    kept = Shelf(shelf, columns_of(backbone.widths(POOLING))).table(np.array([digest(one) for one in encoded]))
    stored = kept.load(list(kept.blocks))
    return float(np.abs(stored - direct).max() / np.abs(direct).max())


def extract(folder: Path, images: int, expected: set[bytes]) -> dict[str, object]:
    """Both processes; the last is killed, and started again when the first is through or nearly."""
    began = time.perf_counter()
    first, killed = start(folder, 0, PROCESSES), start(folder, 1, PROCESSES)
    before = watch({"rank 0": first, "rank 1": killed}, folder, images, until=lambda done: done >= KILLED_AT * images)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    at_kill = rows_in(folder)
    again = start(folder, 1, PROCESSES)
    after = watch({"rank 0": first, "rank 1 again": again}, folder, images, until=lambda done: False)
    seconds = time.perf_counter() - began
    if first.wait() or again.wait():
        raise SystemExit("A process failed; its message is above.")
    done = [json.loads((folder / "out" / f"extraction-{rank}-of-{PROCESSES}.json").read_text("utf-8"))["extraction"]
            for rank in range(PROCESSES)]  # fmt: skip
    own = {"rank 0": {**before["rank 0"], **after["rank 0"]}, "rank 1 until killed": before["rank 1"],
           "rank 1 again": after["rank 1 again"]}  # fmt: skip
    checked = time.perf_counter()
    third = start(folder, 0, 1)
    if third.wait():
        raise SystemExit("The third run failed; its message is above.")
    alone = json.loads((folder / "out" / "extraction-0-of-1.json").read_text("utf-8"))["extraction"]
    return {
        "seconds": round(seconds, 1),
        "images_per_second": round(images / seconds, 1),
        "rows_at_kill": at_kill,
        "computed_by_rank_0": done[0]["computed"],
        "computed_by_rank_1_again": done[1]["computed"],
        "kept_of_rank_1_killed": images // 2 - done[1]["computed"],
        "peak_megabytes": own,
        "count": check_count(folder, expected),
        "largest_difference": check_rows(folder),
        "computed_by_one_process_more": alone["computed"],
        "seconds_of_one_process_more": round(time.perf_counter() - checked, 1),
        "bank_megabytes": round(sum(one.size for one in FeatureBank(folder / "cache").list_shelves()) / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        expected = write_shards(folder / "shards", arguments.images)
        made = time.perf_counter()
        list_source(folder / "shards", cache=folder / "scan")
        listed = time.perf_counter()
        list_source(folder / "shards", cache=folder / "scan")
        found = {
            "script": "scripts/bench_shards.py",
            "date": date.today().isoformat(),
            "machine": environment(seed=0, device="cpu"),
            "model": MODEL,
            "image_size": SIZE,
            "images": arguments.images,
            "shards": SHARDS,
            "shards_megabytes": round(sum(file.stat().st_size for file in (folder / "shards").iterdir()) / 1e6),
            "seconds_to_make": round(made - began, 1),
            "seconds_to_index": round(listed - made, 2),
            "seconds_to_list_again": round(time.perf_counter() - listed, 2),
            "extraction": extract(folder, arguments.images, expected),
        }
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
