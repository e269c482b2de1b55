"""How much of a pretrained network is preserved when its batch normalisation is replaced.

    python scripts/bench_norm.py tune --tasks DIR [--names hand_signs stamps] [--seeds 0 1 2]
    python scripts/bench_norm.py probe --tasks DIR
    python scripts/bench_norm.py convert [--seeds 0 1 2] [--images 16 64 512] [--epochs 8] [--out benchmarks/norm.json]

`convert` replaces every batch normalisation of the packaged EfficientNet-Lite0 at 96 px and counts on how many
photographs the largest of its 1000 outputs stays the same. The photographs are Tux Paint's stamps without drawings and
letters (Debian's tuxpaint-stamps-default), two fifths of them for the test; the fits use the others, drawn anew
for each seed; if more are needed than there are, flipped images are added. One variant is fitted to another kind of
picture, tiles of mate-backgrounds. No label is used. Stamps whose names have the same beginning are on one side.

`tune` fine-tunes on two tasks of scripts/make_tasks.py, at batches of 1 to 32, with every treatment of normalisation:
four hours on one core. `probe` fits linear heads on every task, with BN unchanged, recalibrated, and swapped for group
normalisation: minutes.

An interrupted run resumes when repeated. A Markdown table of all results is printed.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from norm_distillation import distil_norms
from norm_probing import probes
from norm_tuning import EPOCHS, PER_CLASS, chosen_factor, trials
from PIL import Image
from regret_tasks.pictures import base_name, is_copy, split_groups, tiles
from regret_tasks.task import PHOTOS, STAMPS
from torch import nn

from transferkit import load_backbone
from transferkit.core.intervals import wilson_interval
from transferkit.core.provenance import environment
from transferkit.data.decode import decode
from transferkit.data.geometry import to_pixels
from transferkit.nn.model import normalise
from transferkit.nn.norm import recalibrate_statistics
from transferkit.nn.norm.conversion import find_batch_norms, fit_group_norms
from transferkit.records import Preprocessing

MODEL = "packaged/tf_efficientnet_lite0"
SIZE = 96
BATCH = 43
"""Of the evaluation, in evaluation mode: no figure depends on it."""

PHOTO_WIDTH, PHOTO_TILE = 960, 192
"""A background is resized to this width and cut into tiles of this side."""

BLENDS = (0.8, 0.5, 0.1, 0.0)
TRAIN_BATCHES = (2, 8, 32)
DEFAULT_IMAGES = 64
"""Number of images for variants that are not tried at every number."""

LATE = ("blocks.2", "blocks.4", "blocks.6")
"""First stages that are converted; the stages before keep their batch normalisation, frozen."""


class Photos(NamedTuple):
    """(N, 3, S, S) float each, normalised."""

    pool: torch.Tensor
    other: torch.Tensor
    test: torch.Tensor


class Found(NamedTuple):
    """Number of test photographs with the same largest output as the original network, and details."""

    same: int
    extra: dict[str, object]


class Network(nn.Module):
    """Backbone and its original classifier."""

    def __init__(self) -> None:
        super().__init__()
        backbone = load_backbone(MODEL, image_size=SIZE)
        self.preprocessing = backbone.spec.preprocessing
        self.trunk, self.head = backbone.trunk, backbone.head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(images))


def is_photo(path: Path) -> bool:
    place = path.relative_to(STAMPS).as_posix()
    return "/cartoon" not in place and not place.startswith("symbols/") and not is_copy(path.stem)


def background_tiles() -> Iterator[Image.Image]:
    for path in sorted(PHOTOS.glob("*.jpg")):
        photo = decode(path)
        height = round(photo.height * PHOTO_WIDTH / photo.width)
        photo = photo.resize((PHOTO_WIDTH, height), Image.Resampling.LANCZOS)
        yield from (tile for *_, tile in tiles(photo, PHOTO_TILE))


def load_photos(preprocessing: Preprocessing) -> Photos:
    paths = [path for path in sorted(STAMPS.rglob("*.png")) if is_photo(path)]
    if not paths:
        raise SystemExit(f"{STAMPS} is not here; install the Debian package tuxpaint-stamps-default.")
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(base_name(path.stem), []).append(str(path))
    sides = split_groups(groups, np.random.default_rng(0))
    cut = {side: [decode(path) for path in paths if sides[str(path)] == side] for side in ("train", "test")}

    def batch(images: list[Image.Image]) -> torch.Tensor:
        pixels = torch.from_numpy(np.stack([to_pixels(image, preprocessing) for image in images]))
        return normalise(pixels, preprocessing).contiguous(memory_format=torch.channels_last)

    return Photos(pool=batch(cut["train"]), other=batch(list(background_tiles())), test=batch(cut["test"]))


def draw(pool: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """`count` images of the pool, each once; then the same flipped horizontally."""
    rows = np.random.default_rng(seed).permutation(len(pool))
    both = torch.cat([pool[rows], pool[rows].flip(3)])
    return both[:count].contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def choices(network: nn.Module, images: torch.Tensor, *, batch: int = BATCH) -> torch.Tensor:
    """(N,) the largest output of each image."""
    return torch.cat([network(part).argmax(1) for part in images.split(batch)])


class Conversion:
    """Name -> variant, applied to a copy of the network."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.network = Network().eval().to(memory_format=torch.channels_last)
        self.photos = load_photos(self.network.preprocessing)
        self.right = choices(self.network, self.photos.test)

    def trials(self) -> Iterator[tuple[str, int, int, Callable[[], Found]]]:
        """Name, images, seed, and what does it."""
        yield "BN frozen", 0, 0, lambda: self._found(self.network)
        for groups in (32, 1):
            plural = "s" if groups > 1 else ""
            yield (
                f"GN, weights taken over, {groups} group{plural}",
                0,
                0,
                lambda groups=groups: self._taken_over(groups),
            )
        for seed in self.options.seeds:
            for batch in TRAIN_BATCHES:
                name = f"BN by the batch of {batch}"
                yield name, 0, seed, lambda batch=batch, seed=seed: self._by_batch(batch, seed)
            for count in self.options.images:
                images = draw(self.photos.pool, count, seed)
                for name, trial in self._with(images, count, seed):
                    yield name, count, seed, trial

    def _with(self, images: torch.Tensor, count: int, seed: int) -> Iterator[tuple[str, Callable[[], Found]]]:
        yield "BN recalibrated", lambda: self._recalibrated(images)
        yield "GN fitted, 1 group", lambda: self._fitted(images)
        yield "GN fitted, 1 group, blend 0.3", lambda: self._fitted(images, blend=0.3)
        if count == DEFAULT_IMAGES:
            for blend in BLENDS:
                yield f"GN fitted, 1 group, blend {blend:g}", lambda blend=blend: self._fitted(images, blend=blend)
            for groups in (2, 8, 32):
                yield f"GN fitted, {groups} groups", lambda groups=groups: self._fitted(images, groups=groups)
            for first in LATE:
                yield f"GN fitted, 1 group, from {first} on", lambda first=first: self._fitted(images, first=first)
            other = draw(self.photos.other, count, seed)
            yield "GN fitted to other pictures, 1 group", lambda: self._fitted(other)
            distilled = "GN fitted and distilled, 1 group, blend 0.3"
            yield distilled, lambda: self._fitted(images, blend=0.3, distil=seed)
        if count >= DEFAULT_IMAGES:
            yield "GN fitted and distilled, 1 group", lambda: self._fitted(images, distil=seed)

    def _found(self, network: nn.Module, **extra: object) -> Found:
        return Found(int((choices(network.eval(), self.photos.test) == self.right).sum()), extra)

    def _taken_over(self, groups: int) -> Found:
        network = copy.deepcopy(self.network)
        for path, source in find_batch_norms(network).items():
            fits = next(g for g in range(groups, 0, -1) if source.num_features % g == 0)
            norm = nn.GroupNorm(fits, source.num_features, eps=source.eps)
            norm.load_state_dict({"weight": source.weight, "bias": source.bias})
            network.set_submodule(path, nn.Sequential(norm, source.act))
        return self._found(network)

    def _by_batch(self, batch: int, seed: int) -> Found:
        """Statistics of the batch, in batches of photographs drawn at random; the last, smaller one is filled up."""
        network = copy.deepcopy(self.network)
        for norm in find_batch_norms(network).values():
            norm.train()
        count = len(self.photos.test)
        order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
        filled = torch.cat([order, order[: -count % batch]])
        chosen = choices(network, self.photos.test[filled], batch=batch)[:count]
        return Found(int((chosen == self.right[order]).sum()), {})

    def _recalibrated(self, images: torch.Tensor) -> Found:
        network = copy.deepcopy(self.network)
        for norm in find_batch_norms(network).values():
            norm.train()
        recalibrate_statistics(network, images.split(64))
        return self._found(network)

    def _fitted(
        self,
        images: torch.Tensor,
        *,
        groups: int = 1,
        blend: float = 1.0,
        first: str = "",
        distil: int | None = None,
    ) -> Found:
        network = copy.deepcopy(self.network)
        paths = list(find_batch_norms(network))  # stem -> head, in this network
        paths = paths[next(at for at, path in enumerate(paths) if path.startswith(f"trunk.{first}")) :]
        report = fit_group_norms(network, images, groups=groups, blend=blend, paths=paths)
        if distil is not None:
            distil_norms(network, self.network, images, epochs=self.options.epochs, seed=distil)
        layers = {layer.path: [round(layer.before, 5), round(layer.after, 5)] for layer in report.layers}
        return self._found(network, fitted_agreement=report.agreement, layers=layers)


def convert(options: argparse.Namespace) -> None:
    kept = read(options.out)
    rows: list[dict[str, Any]] = kept.get("convert", {}).get("rows", [])
    done = {(row["variant"], row["images"], row["seed"]) for row in rows}
    work = Conversion(options)
    total = len(work.photos.test)
    for name, images, seed, trial in work.trials():
        if (name, images, seed) in done:
            continue
        start = time.perf_counter()
        same, extra = trial()
        row = {"variant": name, "images": images, "seed": seed, "agreement": same / total}
        row["interval"] = wilson_interval(same, total)
        rows.append({**row, "seconds": round(time.perf_counter() - start, 1), **extra})
        print(f"{name}, {images} images, seed {seed}: {same / total:.3f}", file=sys.stderr, flush=True)
        kept["convert"] = {
            "threads": torch.get_num_threads(),
            "model": MODEL,
            "image size": SIZE,
            "test photographs": total,
            "pool": len(work.photos.pool),
            "epochs": options.epochs,
            "rows": rows,
        }
        kept |= {"date": date.today().isoformat(), "machine": environment(seed=0, device="cpu")}
        write(options.out, {"script": "scripts/bench_norm.py", **kept})
    print(table(rows, total))


def tune(options: argparse.Namespace) -> None:
    folders = [options.tasks / name for name in options.names]
    facts = {"images per class": PER_CLASS, "epochs": EPOCHS}
    rows = read(options.out).get("tune", {}).get("rows", [])
    work = trials(MODEL, SIZE, folders, options.seeds, options.cache, rows)
    collect(options.out, "tune", work, facts, rows)
    for name in options.names:
        mine = [row for row in rows if row["task"] == name]
        print(f"{name}:\n\n{tuning_table(mine, options.seeds[0])}\n")


def probe(options: argparse.Namespace) -> None:
    folders = sorted(path.parent for path in options.tasks.glob("*/task.json"))
    facts = {"images per class": PER_CLASS}
    rows = read(options.out).get("probe", {}).get("rows", [])
    collect(options.out, "probe", probes(MODEL, SIZE, folders, options.cache), facts, rows)
    print(probing_table(rows))


def collect(
    out: Path,
    part: str,
    work: Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]],
    facts: dict[str, Any],
    rows: list[dict[str, Any]],
) -> None:
    """Run the trials that are not among the rows of the file yet, and add them to both, row by row."""
    for what, trial in work:
        if any(what.items() <= row.items() for row in rows):
            continue
        rows.append({**what, **trial()})
        print(rows[-1], file=sys.stderr, flush=True)
        kept = read(out)  # another process may have written another part
        kept[part] = {
            "date": date.today().isoformat(),
            "machine": environment(seed=0, device="cpu"),
            "threads": torch.get_num_threads(),
            "model": MODEL,
            "image size": SIZE,
            **facts,
            "rows": rows,
        }
        write(out, {"script": "scripts/bench_norm.py", **kept})


def probing_table(rows: list[dict[str, Any]]) -> str:
    """Test accuracy in % by task, those farthest from the source first; held-back accuracy in brackets."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    tasks: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        tasks.setdefault(row["task"], {})[row["kind"]] = row
    lines = [f"| task | similarity | {' | '.join(kinds)} |", f"|-|-|{'-|' * len(kinds)}"]
    for name, found in sorted(tasks.items(), key=lambda item: item[1][kinds[0]]["similarity"]):
        cells = [f"{100 * found[kind]['test']:.1f} ({100 * found[kind]['held_back']:.1f})" for kind in kinds]
        lines.append(f"| {name} | {found[kinds[0]]['similarity']:.2f} | {' | '.join(cells)} |")
    means = [statistics.mean(100 * found[kind]["test"] for found in tasks.values()) for kind in kinds]
    return "\n".join([*lines, f"| mean | | {' | '.join(f'{mean:.1f}' for mean in means)} |"])


def tuning_table(rows: list[dict[str, Any]], first: int) -> str:
    """Test accuracy in %, mean and range over seeds, by treatment and batch size, at each treatment's rate."""
    batches = sorted({row["batch"] for row in rows})
    lines = [f"| treatment | rate | before | {' | '.join(map(str, batches))} |", f"|-|-|-|{'-|' * len(batches)}"]
    for treatment in dict.fromkeys(row["treatment"] for row in rows):
        mine = [row for row in rows if row["treatment"] == treatment]
        factors = {batch: chosen_factor(mine, treatment, batch, first) for batch in batches}
        chosen = [row for row in mine if row["factor"] == factors[row["batch"]]]
        rates = ", ".join(f"{factor:g}" for factor in dict.fromkeys(factors[row["batch"]] for row in chosen))
        for measured, remark in (("after", ""), ("anew", ", statistics anew")):
            found = {
                batch: [100 * r[measured] for r in chosen if r["batch"] == batch and measured in r] for batch in batches
            }
            if any(found.values()):
                cells = " | ".join(_spread(found[batch]) for batch in batches)
                lines.append(f"| {treatment}{remark} | {rates} | {100 * mine[0]['before']:.1f} | {cells} |")
    return "\n".join(lines)


def _spread(found: list[float]) -> str:
    if len(found) < 2:
        return "".join(f"{value:.1f}" for value in found)
    return f"{statistics.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})"


def table(rows: list[dict[str, Any]], total: int) -> str:
    """Mean over seeds, its range, and a binomial interval as if it were one count."""
    cells: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        cells.setdefault((row["variant"], row["images"]), []).append(row["agreement"])
    lines = ["| variant | images | agreement | seeds | 95 % interval |", "|-|-|-|-|-|"]
    for (variant, images), shares in cells.items():
        mean = statistics.mean(shares)
        low, high = wilson_interval(mean * total, total)
        spread = f"{min(shares):.3f} to {max(shares):.3f}" if len(shares) > 1 else ""
        lines.append(f"| {variant} | {images or ''} | {mean:.3f} | {spread} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(path: Path, found: dict[str, Any]) -> None:
    """Write atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("convert", help="agreement with the original network")
    verb.set_defaults(run=convert)
    verb.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    verb.add_argument("--images", type=int, nargs="+", default=[16, DEFAULT_IMAGES, 512])
    verb.add_argument("--epochs", type=int, default=8)
    verb.add_argument("--out", type=Path, default=Path("benchmarks/norm.json"))
    verb = verbs.add_parser("tune", help="accuracy after fine-tuning, by batch size")
    verb.set_defaults(run=tune)
    verb.add_argument("--tasks", type=Path, required=True, help="folder made by scripts/make_tasks.py")
    verb.add_argument("--names", nargs="+", default=["hand_signs", "stamps"])
    verb.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    verb.add_argument("--cache", help="folder of the feature bank")
    verb.add_argument("--out", type=Path, default=Path("benchmarks/norm.json"))
    verb = verbs.add_parser("probe", help="accuracy of linear probes, by task")
    verb.set_defaults(run=probe)
    verb.add_argument("--tasks", type=Path, required=True, help="folder made by scripts/make_tasks.py")
    verb.add_argument("--cache", help="folder of the feature bank")
    verb.add_argument("--out", type=Path, default=Path("benchmarks/norm.json"))
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
