"""Image-classification tasks for the regret benchmark, from public sources.

    apt-get install tuxpaint-stamps-default dataset-fashion-mnist mate-backgrounds fonts-noto-core fonts-dejavu-core \\
        fonts-liberation fonts-urw-base35 fonts-lato fonts-roboto-unhinted fonts-open-sans fonts-crosextra-caladea \\
        fonts-linuxlibertine fonts-cantarell fonts-comfortaa fonts-vollkorn fonts-ebgaramond fonts-junicode \\
        fonts-quicksand fonts-firacode fonts-inconsolata fonts-play fonts-cabin fonts-dosis fonts-dejavu-extra \\
        fonts-freefont-ttf
    python scripts/make_tasks.py --out DIR [--hand-signs TAR] [--only NAME,NAME] [--force]

Writes `DIR/<task>/{train,test}/<class>/*.png` and `DIR/<task>/task.json`. The same sources and the same Pillow give the
same pixels (`content` in `task.json` is their digest): every task uses a generator seeded by its own name.
Finished tasks are kept unless --force is given; a task whose source is missing is skipped with a message that says
what to install, and the exit code is then 1. Takes about 80 s on one core.

Within a task, train and test share no image, no variant of an image (by its name), and no font (no word if
fonts are the classes); tiles of one photograph do not overlap. The images are never committed; their licences are those
of the packages, listed in `task.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from regret_tasks.corrupted import add_noise, blur, corrupted, fade, grey
from regret_tasks.drawn import TEXTURES, draw_bar, draw_discs, draw_place, draw_texture, drawn_task
from regret_tasks.pictures import (
    FEWEST_FINE_STAMPS,
    FEWEST_STAMPS,
    animal_folder,
    digits,
    drawing_or_photo,
    fashion,
    fine_folder,
    hand_signs,
    photo_regions,
    photo_tiles,
    stamp_task,
    top_folder,
)
from regret_tasks.task import SEED, Places, Sample, SourceMissing, Task, generator
from regret_tasks.text import CHARACTERS, LETTERS, character_task, combinations, families, scripts

from transferkit.core.errors import OptionError, unknown_name
from transferkit.core.progress import track

_STAMPS = "Debian package tuxpaint-stamps-default"
_STAMPS_LICENCE = "GPL-2"
_FONTS = "Debian packages fonts-* (listed in the script)"
_FONTS_LICENCE = "free font licences (OFL, Apache-2.0, GPL with font exception, ...; see the packages)"
_OWN = "this script"


def list_tasks() -> dict[str, Task]:
    """Name -> task, corrupted copies after their originals."""
    tasks = [
        Task(name="digits", about="Handwritten digits of 8 by 8 pixels, enlarged four times.", kind="scan",
             source="scikit-learn, load_digits", licence="CC BY 4.0 (UCI)", samples=digits),
        Task(name="fashion", about="Grey pictures of clothes, 28 by 28 pixels.", kind="photo",
             source="Debian package dataset-fashion-mnist", licence="MIT", samples=fashion),
        Task(name="stamps", about="Photographs and drawings of things on white, by subject.", kind="photo and drawing",
             source=_STAMPS, licence=_STAMPS_LICENCE, samples=stamp_task(top_folder, fewest=FEWEST_STAMPS)),
        Task(name="stamps_animals", about="Birds, fish, insects and mammals on white.", kind="photo and drawing",
             source=_STAMPS, licence=_STAMPS_LICENCE, samples=stamp_task(animal_folder, fewest=FEWEST_FINE_STAMPS)),
        Task(name="stamps_fine", about="Narrow subjects on white, mostly photographs.", kind="photo",
             source=_STAMPS, licence=_STAMPS_LICENCE, samples=stamp_task(fine_folder, fewest=FEWEST_FINE_STAMPS)),
        Task(name="stamps_style", about="Photographs against cartoons of many subjects.", kind="photo and drawing",
             source=_STAMPS, licence=_STAMPS_LICENCE, samples=stamp_task(drawing_or_photo, fewest=FEWEST_FINE_STAMPS)),
        Task(name="hand_signs", about="Hands that show the digits of sign language.", kind="photo",
             source="Sign-Language-Digits-Dataset, given as an archive", licence="Apache-2.0", samples=hand_signs),
        Task(name="photo_tiles", about="Which of twelve photographs of nature a tile is cut from.", kind="photo",
             source="Debian package mate-backgrounds", licence="GPL-2+", samples=photo_tiles),
        Task(name="photo_regions", about="Which part of which of two photographs a tile is cut from.", kind="photo",
             source="scikit-learn, load_sample_images", licence="CC BY 2.0", samples=photo_regions),
        Task(name="glyphs", about="Capital letters; the fonts of test are not those of train.", kind="glyph",
             source=_FONTS, licence=_FONTS_LICENCE, samples=character_task(LETTERS, train=60, test=30, sizes=(52, 76))),
        Task(name="characters", about="Letters of both cases and digits, in fonts new at test time.", kind="glyph",
             source=_FONTS, licence=_FONTS_LICENCE,
             samples=character_task(CHARACTERS, train=24, test=14, sizes=(60, 66))),
        Task(name="families", about="Font families of words; the words of test are not those of train.", kind="glyph",
             source=_FONTS, licence=_FONTS_LICENCE, samples=families),
        Task(name="scripts", about="Writing systems; sans-serif letters in train, serif ones in test.", kind="glyph",
             source="Debian package fonts-noto-core", licence="OFL-1.1", samples=scripts),
        Task(name="combinations", about="Six letters, each in 16 styles: bold, italic, serif, mono.", kind="glyph",
             source=_FONTS, licence=_FONTS_LICENCE, samples=combinations),
        Task(name="counting", about="One to eight discs of any size and colour.", kind="synthetic",
             source=_OWN, licence="Apache-2.0",
             samples=drawn_task([f"n{n}" for n in range(1, 9)], lambda n, rng: draw_discs(n + 1, rng))),
        Task(name="orientation", about="The angle of a bar in steps of 15 degrees, on patches.", kind="synthetic",
             source=_OWN, licence="Apache-2.0", samples=drawn_task([f"deg{15 * n:03d}" for n in range(12)], draw_bar)),
        Task(name="location", about="Which of 16 cells a disc is in, on patches.", kind="synthetic",
             source=_OWN, licence="Apache-2.0", samples=drawn_task([f"cell{n:02d}" for n in range(16)], draw_place)),
        Task(name="textures", about="Ten procedural textures in any two colours.", kind="synthetic",
             source=_OWN, licence="Apache-2.0", samples=drawn_task(TEXTURES, draw_texture)),
    ]  # fmt: skip
    named = {task.name: task for task in tasks}
    copies = (
        ("fashion", "noise", add_noise),
        ("stamps", "blur", blur),
        ("digits", "fade", fade),
        ("photo_tiles", "grey", grey),
        ("hand_signs", "noise", add_noise),
    )
    for base, word, corrupt in copies:
        original = named[base]
        named[f"{base}_{word}"] = Task(
            name=f"{base}_{word}",
            about=f"Copy of {base}: {(corrupt.__doc__ or '').splitlines()[0]}",
            kind=f"{original.kind}, corrupted",
            source=original.source,
            licence=original.licence,
            samples=corrupted(base, corrupt),
            base=base,
        )
    return named


def write_samples(samples: Iterator[Sample], root: Path, label: str) -> tuple[dict[str, Counter[str]], str, int]:
    """Save the images, skipping duplicates.

    Returns:
        Images per class of train and test; a digest of all the names and pixels; how many repeats were left out.
    """
    counts: dict[str, Counter[str]] = {"train": Counter(), "test": Counter()}
    seen: set[bytes] = set()
    total, repeats = hashlib.sha256(), 0
    for sample in track(samples, label):
        content = hashlib.sha256(f"{sample.image.size}{sample.image.mode}".encode() + sample.image.tobytes()).digest()
        if content in seen:
            repeats += 1
            continue
        seen.add(content)
        total.update(sample.path.encode() + content)
        counts[sample.split][sample.label] += 1
        path = root / sample.path
        path.parent.mkdir(parents=True, exist_ok=True)
        sample.image.save(path)
    return counts, total.hexdigest(), repeats


def build(task: Task, places: Places) -> dict[str, object]:
    """Build a task in a temporary folder and move it into place when complete; return the content of `task.json`."""
    root, partial = places.out / task.name, places.out / f".{task.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        counts, digest, repeats = write_samples(task.samples(places, generator(task.name)), partial, task.name)
        if not all(counts.values()):
            raise SourceMissing("its source has no images that fit; see the script for what is expected.")
        card: dict[str, object] = {
            "name": task.name,
            "about": task.about,
            "kind": task.kind,
            "source": task.source,
            "licence": task.licence,
            "copy_of": task.base,
            "seed": SEED,
            "classes": sorted(counts["train"]),
            "train": sum(counts["train"].values()),
            "test": sum(counts["test"].values()),
            "per_class": {split: dict(sorted(found.items())) for split, found in counts.items()},
            "repeats_left_out": repeats,
            "content": digest,
        }
        (partial / "task.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.rmtree(root, ignore_errors=True)
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return card


def choose(tasks: dict[str, Task], only: str | None) -> list[Task]:
    """The requested tasks and the originals of copies, in the list's order."""
    wanted = set(filter(None, only.split(","))) if only else set(tasks)
    for name in sorted(wanted - tasks.keys()):
        raise OptionError(unknown_name("task", name, tasks))
    wanted |= {base for name in wanted if (base := tasks[name].base) is not None}
    return [task for task in tasks.values() if task.name in wanted]


def make_tasks(chosen: Sequence[Task], places: Places, *, force: bool) -> dict[str, str]:
    """Build the missing tasks, printing a line for each; return task -> reason for the skipped ones."""
    skipped: dict[str, str] = {}
    for task in chosen:
        finished, start = places.out / task.name / "task.json", time.perf_counter()
        if finished.is_file() and not force:
            print(f"{task.name}: exists")
            continue
        try:
            card = build(task, places)
        except SourceMissing as error:
            skipped[task.name] = str(error)
            print(f"{task.name}: skipped; {error}", flush=True)
            continue
        seconds = time.perf_counter() - start
        classes = len(card["classes"])  # type: ignore[arg-type]
        print(
            f"{task.name}: {classes} classes, {card['train']} train, {card['test']} test, {seconds:.1f} s", flush=True
        )
    return skipped


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hand-signs", type=Path, help="archive with sign/{train,test}/<class>/*.jpg")
    parser.add_argument("--only", help="names of tasks, comma-separated")
    parser.add_argument("--force", action="store_true", help="rebuild finished tasks")
    options = parser.parse_args(arguments)
    try:
        chosen = choose(list_tasks(), options.only)
    except OptionError as error:
        parser.error(str(error))
    if options.only is None and options.hand_signs is None:
        chosen = [task for task in chosen if "hand_signs" not in (task.name, task.base)]
        print("hand_signs: skipped (needs --hand-signs TAR)")
    if options.hand_signs is not None and not options.hand_signs.is_file():
        parser.error(f"--hand-signs {options.hand_signs} is not a file.")
    skipped = make_tasks(chosen, Places(out=options.out, hand_signs=options.hand_signs), force=options.force)
    print(f"{len(chosen) - len(skipped)} of {len(chosen)} tasks are in {options.out}.")
    return 1 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
