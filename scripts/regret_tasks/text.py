"""Tasks of rendered text: letters, fonts and writing systems. The test split has new fonts or new words."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from regret_tasks.task import CANVAS, Places, Sample, SourceMissing


@dataclass(frozen=True, kw_only=True)
class Family:
    """A font family: its Debian package, and its files as a pattern."""

    name: str
    package: str
    files: str


TRAIN_FAMILIES = (
    Family(name="dejavu_sans", package="fonts-dejavu-core", files="DejaVuSans{,-Bold}.ttf"),
    Family(name="dejavu_serif", package="fonts-dejavu-core", files="DejaVuSerif{,-Bold}.ttf"),
    Family(name="dejavu_mono", package="fonts-dejavu-core", files="DejaVuSansMono{,-Bold}.ttf"),
    Family(name="liberation_sans", package="fonts-liberation", files="LiberationSans-{Regular,Bold,Italic}.ttf"),
    Family(name="liberation_serif", package="fonts-liberation", files="LiberationSerif-{Regular,Bold,Italic}.ttf"),
    Family(name="liberation_mono", package="fonts-liberation", files="LiberationMono-{Regular,Bold,Italic}.ttf"),
    Family(name="century", package="fonts-urw-base35", files="C059-{Roman,Bold,Italic}.otf"),
    Family(name="palladio", package="fonts-urw-base35", files="P052-{Roman,Bold,Italic}.otf"),
    Family(name="bookman", package="fonts-urw-base35", files="URWBookman-{Light,Demi,LightItalic}.otf"),
    Family(name="gothic", package="fonts-urw-base35", files="URWGothic-{Book,Demi,BookOblique}.otf"),
    Family(name="nimbus_mono", package="fonts-urw-base35", files="NimbusMonoPS-{Regular,Bold,Italic}.otf"),
    Family(name="lato", package="fonts-lato", files="Lato-{Regular,Bold,Italic}.ttf"),
    Family(name="roboto", package="fonts-roboto-unhinted", files="Roboto-{Regular,Bold,Italic}.ttf"),
    Family(name="open_sans", package="fonts-open-sans", files="OpenSans-{Regular,Bold,Italic}.ttf"),
    Family(name="noto_serif", package="fonts-noto-core", files="NotoSerif-{Regular,Bold,Italic}.ttf"),
)
"""Families whose letters train `glyphs`; look-alikes of one another (Liberation and Nimbus Mono) are all here."""

TEST_FAMILIES = (
    Family(name="caladea", package="fonts-crosextra-caladea", files="Caladea-{Regular,Bold,Italic}.ttf"),
    Family(name="libertine", package="fonts-linuxlibertine", files="LinLibertine_{R,RB,RI}.otf"),
    Family(name="biolinum", package="fonts-linuxlibertine", files="LinBiolinum_{R,RB,RI}.otf"),
    Family(name="cantarell", package="fonts-cantarell", files="Cantarell-{Regular,Bold}.otf"),
    Family(name="comfortaa", package="fonts-comfortaa", files="Comfortaa-{Regular,Bold}.ttf"),
    Family(name="vollkorn", package="fonts-vollkorn", files="Vollkorn-{Regular,Bold,Italic}.ttf"),
    Family(name="garamond", package="fonts-ebgaramond", files="EBGaramond12-{Regular,Bold,Italic}.otf"),
    Family(name="junicode", package="fonts-junicode", files="JunicodeTwoBeta-{Regular,Bold,Italic}.otf"),
    Family(name="quicksand", package="fonts-quicksand", files="Quicksand-{Regular,Bold}.ttf"),
    Family(name="fira_code", package="fonts-firacode", files="FiraCode-{Regular,Bold}.ttf"),
    Family(name="inconsolata", package="fonts-inconsolata", files="Inconsolata.otf"),
    Family(name="play", package="fonts-play", files="Play-{Regular,Bold}.ttf"),
    Family(name="cabin", package="fonts-cabin", files="Cabin-{Regular,Bold,Italic}.otf"),
    Family(name="dosis", package="fonts-dosis", files="Dosis-{Book,Bold}.otf"),
)
"""Families whose letters test `glyphs`."""


@cache
def font_files(root: Path) -> dict[str, Path]:
    """Name -> font file below `root`; the first in path order if a name occurs twice."""
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*.[ot]tf")):
        found.setdefault(path.name, path)
    return found


def expand(pattern: str) -> list[str]:
    """The file names of a pattern with one set of braces.

    Example:
        >>> expand("Play-{Regular,Bold}.ttf")
        ['Play-Regular.ttf', 'Play-Bold.ttf']
    """
    head, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    inner, _, tail = rest.partition("}")
    return [head + word + tail for word in inner.split(",")]


def family_paths(families: Sequence[Family], root: Path) -> dict[str, list[Path]]:
    """The files of each family; raises `SourceMissing` with all missing packages."""
    known, found = font_files(root), {}
    for family in families:
        found[family.name] = [known[name] for name in expand(family.files) if name in known]
    absent = sorted({family.package for family in families if not found[family.name]})
    if absent:
        raise SourceMissing(f"fonts are missing; install the Debian packages {' '.join(absent)}.")
    return found


def ink_and_paper(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two colours at least 100 levels of grey apart, in either order."""
    dark, light = rng.integers(0, 90, 3), rng.integers(190, 256, 3)
    pair = (tuple(map(int, dark)), tuple(map(int, light)))
    return pair if rng.random() < 0.7 else (pair[1], pair[0])


def render(lines: Sequence[str], path: Path, rng: np.random.Generator, *, size: int, tilt: float) -> Image.Image:
    """Lines of text in the middle of the canvas, in two random colours, tilted at most `tilt` degrees.

    The middle is that of the font's line, not of the ink: a small letter stays smaller and lower than its capital.
    """
    ink, paper = ink_and_paper(rng)
    # The basic layout: the other one needs libraqm, so pixels would depend on whether it is installed.
    font = ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
    image = Image.new("RGB", (CANVAS, CANVAS), paper)
    shift = rng.integers(-4, 5, 2)
    middle = (CANVAS / 2 + int(shift[0]), CANVAS / 2 + int(shift[1]))
    ImageDraw.Draw(image).text(middle, "\n".join(lines), ink, font, anchor="mm", align="center")
    return image.rotate(float(rng.uniform(-tilt, tilt)), Image.Resampling.BICUBIC, fillcolor=paper)


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHARACTERS = LETTERS + "abcdefghijklmnopqrstuvwxyz" + "23456789"
"""All letters, and the digits that have no letter for a double."""


def character_task(
    characters: str, *, train: int, test: int, sizes: tuple[int, int]
) -> Callable[[Places, np.random.Generator], Iterator[Sample]]:
    """Samples of single characters; test has other fonts than train."""

    def samples(places: Places, rng: np.random.Generator) -> Iterator[Sample]:
        sides = {"train": (TRAIN_FAMILIES, train), "test": (TEST_FAMILIES, test)}
        known = family_paths([*TRAIN_FAMILIES, *TEST_FAMILIES], places.fonts)
        for split, (chosen, count) in sides.items():
            paths = [path for family in chosen for path in known[family.name]]
            for character in characters:
                label = f"{'lower_' if character.islower() else ''}{character}"
                for number in range(count):
                    path = paths[number % len(paths)]
                    image = render([character], path, rng, size=int(rng.integers(*sizes)), tilt=8)
                    yield Sample(split=split, label=label, name=f"{path.stem}-{number:03d}", image=image)

    return samples


def invent_words(count: int, rng: np.random.Generator) -> list[str]:
    """Different pronounceable words of two or three syllables, capitals first.

    Example:
        >>> words = invent_words(50, np.random.default_rng(0))
        >>> len(set(words)) == 50 and all(word.istitle() for word in words)
        True
    """
    starts, vowels, ends = [*"bcdfghklmnprstvwz", "ch", "st", "qu"], [*"aeiouy"], [*"nrstl", "ck", *"gm"]
    words: dict[str, None] = {}
    while len(words) < count:
        parts = [
            str(rng.choice(starts)) + str(rng.choice(vowels)) + str(rng.choice(ends))
            for _ in range(int(rng.integers(1, 3)) + 1)
        ]
        words.setdefault("".join(parts)[:8].title())
    return list(words)


def families(places: Places, rng: np.random.Generator) -> Iterator[Sample]:
    paths = family_paths([*TRAIN_FAMILIES, *TEST_FAMILIES], places.fonts)
    words = invent_words(400, rng)
    vocabulary = {"train": (words[:240], 50), "test": (words[240:], 25)}
    for label, (path, *_) in paths.items():
        for split, (known, count) in vocabulary.items():
            for number in range(count):
                lines = [str(word) for word in rng.choice(known, 3, replace=False)]
                image = render(lines, path, rng, size=int(rng.integers(19, 25)), tilt=3)
                yield Sample(split=split, label=label, name=f"{number:03d}-{'-'.join(lines)}", image=image)


SCRIPTS = {
    "arabic": ("ARABIC LETTER", "NotoSansArabic", "NotoNaskhArabic"),
    "latin": ("LATIN SMALL LETTER", "NotoSans", "NotoSerif"),
    "greek": ("GREEK SMALL LETTER", "NotoSans", "NotoSerif"),
    "cyrillic": ("CYRILLIC SMALL LETTER", "NotoSans", "NotoSerif"),
    **{
        name.lower(): (f"{name.upper()} {word}", f"NotoSans{name}", f"NotoSerif{name}")
        for name, word in (
            ("Armenian", "SMALL LETTER"),
            ("Georgian", "LETTER"),
            ("Hebrew", "LETTER"),
            ("Devanagari", "LETTER"),
            ("Bengali", "LETTER"),
            ("Gujarati", "LETTER"),
            ("Gurmukhi", "LETTER"),
            ("Kannada", "LETTER"),
            ("Khmer", "LETTER"),
            ("Lao", "LETTER"),
            ("Malayalam", "LETTER"),
            ("Myanmar", "LETTER"),
            ("Sinhala", "LETTER"),
            ("Tamil", "LETTER"),
            ("Telugu", "LETTER"),
            ("Thai", "CHARACTER"),
            ("Ethiopic", "SYLLABLE"),
        )
    },
}
"""Writing system -> prefix of its letters' Unicode names, the font of train and that of test."""


@cache
def letters_of(prefix: str) -> str:
    """The letters of the basic plane with this prefix in their Unicode name, without compatibility forms.

    Example:
        >>> letters_of("LATIN SMALL LETTER")[:3]
        'abc'
    """
    characters = map(chr, range(0x61, 0x3000))
    return "".join(
        c for c in characters if unicodedata.category(c) in ("Ll", "Lo") and unicodedata.name(c, "").startswith(prefix)
    )


def covered(characters: str, path: Path) -> str:
    """The characters that the font has a glyph for: the rendering is neither blank nor that of a missing glyph."""
    font = ImageFont.truetype(str(path), 24, layout_engine=ImageFont.Layout.BASIC)
    missing = bytes(font.getmask("\U0010fffe"))
    return "".join(c for c in characters if any(picture := bytes(font.getmask(c))) and picture != missing)


def scripts(places: Places, rng: np.random.Generator) -> Iterator[Sample]:
    known = font_files(places.fonts)
    for label, (prefix, *stems) in SCRIPTS.items():
        paths = [[known[name] for name in expand(stem + "-{Regular,Bold}.ttf") if name in known] for stem in stems]
        if not all(paths):
            raise SourceMissing("fonts are missing; install the Debian package fonts-noto-core.")
        for split, files, count in (("train", paths[0], 60), ("test", paths[1], 30)):
            letters = list(covered(letters_of(prefix)[:60], files[0]))
            for number in range(count):
                path = files[number % len(files)]
                lines = ["".join(map(str, rng.choice(letters, 4))) for _ in range(2)]
                image = render(lines, path, rng, size=int(rng.integers(22, 30)), tilt=4)
                yield Sample(split=split, label=label, name=f"{path.stem}-{number:03d}", image=image)


COMBINED_FAMILIES = {
    (): (
        Family(name="dejavu_sans", package="fonts-dejavu-core", files="DejaVuSans{,-Bold,-Oblique,-BoldOblique}.ttf"),
        Family(name="liberation_sans", package="fonts-liberation",
               files="LiberationSans-{Regular,Bold,Italic,BoldItalic}.ttf"),
        Family(name="gothic", package="fonts-urw-base35", files="URWGothic-{Book,Demi,BookOblique,DemiOblique}.otf"),
    ),
    ("serif",): (
        Family(name="dejavu_serif", package="fonts-dejavu-extra",
               files="DejaVuSerif{,-Bold,-Italic,-BoldItalic}.ttf"),
        Family(name="liberation_serif", package="fonts-liberation",
               files="LiberationSerif-{Regular,Bold,Italic,BoldItalic}.ttf"),
        Family(name="century", package="fonts-urw-base35", files="C059-{Roman,Bold,Italic,BdIta}.otf"),
    ),
    ("mono",): (
        Family(name="dejavu_mono", package="fonts-dejavu-core",
               files="DejaVuSansMono{,-Bold,-Oblique,-BoldOblique}.ttf"),
        Family(name="liberation_mono", package="fonts-liberation",
               files="LiberationMono-{Regular,Bold,Italic,BoldItalic}.ttf"),
    ),
    ("serif", "mono"): (
        Family(name="nimbus_mono", package="fonts-urw-base35",
               files="NimbusMonoPS-{Regular,Bold,Italic,BoldItalic}.otf"),
        Family(name="free_mono", package="fonts-freefont-ttf", files="FreeMono{,Bold,Oblique,BoldOblique}.ttf"),
    ),
}  # fmt: skip
"""Attributes of a design -> families of it; the files of each are regular, bold, italic, and bold italic."""

STYLES = ((), ("bold",), ("italic",), ("bold", "italic"))
"""Attributes of the files of a family, in order."""

COMBINED_GLYPHS = "AGRagt"


def combination_table() -> dict[str, dict[str, int]]:
    """Class of `combinations` -> attribute -> 0 or 1: four of the font, and one for each glyph.

    Example:
        >>> table = combination_table()
        >>> len(table), {name: value for name, value in table["upper_A-bold-serif"].items() if value}
        (96, {'bold': 1, 'serif': 1, 'glyph_upper_A': 1})
    """
    table = {}
    for glyph in COMBINED_GLYPHS:
        for design in COMBINED_FAMILIES:
            for style in STYLES:
                has = {*style, *design}
                table[_combination(glyph, style, design)] = {
                    **{name: int(name in has) for name in ("bold", "italic", "serif", "mono")},
                    **{f"glyph_{_cased(one)}": int(one == glyph) for one in COMBINED_GLYPHS},
                }
    return table


def _cased(glyph: str) -> str:
    return f"{'upper' if glyph.isupper() else 'lower'}_{glyph}"


def _combination(glyph: str, style: Sequence[str], design: Sequence[str]) -> str:
    return "-".join([_cased(glyph), *style, *design])


def combinations(places: Places, rng: np.random.Generator) -> Iterator[Sample]:
    """A glyph between i and m, whose widths tell typewriter fonts; train and test share fonts, not images."""
    known = {design: family_paths(families, places.fonts) for design, families in COMBINED_FAMILIES.items()}
    for glyph in COMBINED_GLYPHS:
        for design, paths in known.items():
            if any(len(files) != len(STYLES) for files in paths.values()):
                raise SourceMissing("fonts are missing; install the Debian packages fonts-dejavu-extra and the others.")
            for style, *files in zip(STYLES, *paths.values(), strict=True):
                for number in range(30):
                    path, split = files[number % len(files)], "train" if number < 20 else "test"
                    image = render([f"i{glyph}m"], path, rng, size=int(rng.integers(34, 42)), tilt=4)
                    label = _combination(glyph, style, design)
                    yield Sample(split=split, label=label, name=f"{path.stem}-{number:03d}", image=image)
