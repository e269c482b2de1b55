"""The images looked through after the frozen pass: copies, leaks across splits, copies with two labels, blank pictures,
outliers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError
from transferkit.doctor.picture_match import Explanation, fingerprint_variants, look_through, match_pairs
from transferkit.measure import compress_features, find_near_duplicates, find_outliers
from transferkit.records import CopyPair, ImageReview, OutlierImage, Symptom, connected_groups

__all__ = ["review_images"]

Ints = npt.NDArray[np.int64]

LEAST_SCORE = 0.05
FEATURE_NEIGHBOURS, FINGERPRINT_NEIGHBOURS = 6, 4
"""Candidates: generous, as pixels decide. With five percent of the images copied, features and fingerprints together
hold 97 to 100 % of the mirrored, brightened and cropped copies (85 % and more of the side) of pictures of 96 px."""

SERIES = 5
"""Images that hang together by copies from which on they look like frames of a video."""

ITEMS, KINDS = 200, 4
"""Pairs that a symptom lists, and kinds of change that its sentence counts."""


def review_images(
    features: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    splits: npt.NDArray[np.str_],
    names: Sequence[str],
    *,
    picture: Callable[[int], npt.NDArray[np.uint8]],
    classes: Sequence[str],
    blocks: Mapping[str, slice] | None = None,
    groups: npt.NDArray[np.integer] | None = None,
) -> ImageReview:
    """Find copies (also mirrored, cropped or brightened ones), what they do to the splits and labels, and outliers.

    Args:
        features: (N, D) float, pooled, one row per image.
        labels: (N,) int in [0, K).
        splits: (N,) names, e.g. "train", "val", "test".
        names: N image names.
        picture: Index -> (3, 64, 64) uint8, the whole image squeezed to a square. Called about twice per image.
        classes: K class names.
        blocks: Stage -> its columns in the features; each stage weighs the same. None: one stage.
        groups: (N,) images of equal value are held back together already. None: each is one of its own.

    Raises:
        DataError: The arguments differ in length, features are not finite, or a picture has another shape.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> rough = rng.integers(0, 256, size=(30, 3, 8, 8))
        >>> pictures = rough.repeat(8, axis=2).repeat(8, axis=3).astype(np.uint8)
        >>> pictures[29] = pictures[4][..., ::-1]
        >>> found = review_images(
        ...     pictures.mean(axis=(2, 3)), np.arange(30) % 2, np.array(["train"] * 20 + ["test"] * 10),
        ...     [f"{n}.png" for n in range(30)], picture=lambda n: pictures[n], classes=["a", "b"])
        >>> [one.sentence for one in found.leaks], [one.cause for one in found.symptoms]
        (['4.png ~ 29.png (mirrored)'], ['leak_across_splits'])
    """
    labels, splits = np.asarray(labels), np.asarray(splits)
    _check_lengths(features, labels, splits, names, classes)
    rows = compress_features(features, blocks)
    near = find_near_duplicates(rows, neighbours=FEATURE_NEIGHBOURS, least_score=LEAST_SCORE).pairs
    overview = look_through(picture, len(names))
    alike = find_near_duplicates(
        overview.fingerprints,
        neighbours=FINGERPRINT_NEIGHBOURS,
        least_score=LEAST_SCORE,
        variants=fingerprint_variants(),
    ).pairs
    candidates = np.unique(np.concatenate([near, alike]), axis=0)
    kinds = np.array(classes)[labels]
    copies = tuple(_as_copy(one, names, kinds, splits) for one in match_pairs(picture, overview, candidates))
    found = find_outliers(rows, labels)

    def outlier_of(row: int) -> OutlierImage:
        label, chance = str(kinds[row]), float(found.p_values[row])
        return OutlierImage(name=names[row], row=row, label=label, p_value=chance, split=str(splits[row]))

    outliers = tuple(outlier_of(int(row)) for row in found.order[: int(found.marked.sum())])
    blanks = tuple(outlier_of(int(row)) for row in np.flatnonzero(overview.detail == 0))
    leaks = tuple(one for one in copies if splits[one.rows[0]] != splits[one.rows[1]])
    within = [one for one in copies if splits[one.rows[0]] == splits[one.rows[1]] == "train"]
    conflicts = tuple(one for one in within if labels[one.rows[0]] != labels[one.rows[1]])
    own = np.arange(len(names)) if groups is None else np.asarray(groups)
    repeats = [one for one in within if one not in conflicts and own[one.rows[0]] != own[one.rows[1]]]
    connected = _group(copies, len(names))
    series = max(map(len, connected), default=0)
    symptoms = [
        *_leak_symptom(leaks, splits, series),
        *_conflict_symptom(conflicts),
        *_repeat_symptom(repeats, series),
        *_blank_symptom(blanks),
        *_outlier_symptom(outliers),
    ]
    return ImageReview(
        images=len(names),
        copies=copies,
        groups=connected,
        leaks=leaks,
        conflicts=conflicts,
        blanks=blanks,
        outliers=outliers,
        symptoms=tuple(sorted(symptoms, key=lambda one: one.severity != "alarm")),
    )


def _check_lengths(
    features: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    splits: npt.NDArray[np.str_],
    names: Sequence[str],
    classes: Sequence[str],
) -> None:
    lengths = {len(features), len(labels), len(splits), len(names)}
    if len(lengths) > 1 or not len(names):
        raise DataError(
            "Features, labels, splits and names need one entry per image each, got "
            f"{len(features)}, {len(labels)}, {len(splits)} and {len(names)}."
        )
    if labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < len(classes):
        raise DataError(f"Labels must be integers in [0, {len(classes)}), as there are {len(classes)} class names.")


def _as_copy(
    found: Explanation, names: Sequence[str], kinds: npt.NDArray[np.str_], splits: npt.NDArray[np.str_]
) -> CopyPair:
    first, second = found.rows
    return CopyPair(
        original=names[first],
        copy=names[second],
        rows=found.rows,
        how=found.how,
        residual=found.residual,
        turned=found.turned,
        labels=(str(kinds[first]), str(kinds[second])),
        splits=(str(splits[first]), str(splits[second])),
    )


def _group(copies: Sequence[CopyPair], images: int) -> tuple[tuple[int, ...], ...]:
    if not copies:
        return ()
    pairs = np.array([one.rows for one in copies], dtype=np.int64)
    groups = connected_groups([np.arange(images, dtype=np.int64)], pairs)
    return tuple(tuple(np.flatnonzero(groups == first).tolist()) for first in np.unique(groups[pairs[:, 0]]).tolist())


def _kinds(copies: Sequence[CopyPair]) -> str:
    """How often each kind of change occurs, e.g. "3 cropped, 1 mirrored and brighter"."""
    counts = Counter(
        " and ".join(re.split(r" (?:to|by) \d", word)[0] for word in one.how.split(", ")) for one in copies
    )
    shown = ", ".join(f"{number:,} {kind}" for kind, number in counts.most_common(KINDS))
    return shown if len(counts) <= KINDS else f"{shown}, ..."


def _items(copies: Sequence[CopyPair]) -> tuple[str, ...]:
    return tuple(one.sentence for one in copies[:ITEMS])


def _name_series(images: int) -> str:
    """What to do where many images hang together; "" where few do."""
    if images < SERIES:
        return ""
    return f" Up to {images:,} images hang together, as frames of a video do: such a series is one group."


def _leak_symptom(leaks: Sequence[CopyPair], splits: npt.NDArray[np.str_], series: int) -> list[Symptom]:
    if not leaks:
        return []
    held = {row for one in leaks for row in one.rows if splits[row] != "train"}
    where = " and ".join(sorted({str(splits[row]) for row in held}))
    which = "image is a copy" if len(held) == 1 else "images are copies"
    return [
        Symptom(
            cause="leak_across_splits",
            severity="alarm",
            evidence=f"{len(held):,} {where} {which} of an image of another split ({_kinds(leaks)}): accuracy there "
            "is too high.",
            remedy="Give copies one group (a manifest with a column 'group') and split anew, or remove the copies."
            f"{_name_series(series)}",
            items=_items(leaks),
        )
    ]


def _conflict_symptom(conflicts: Sequence[CopyPair]) -> list[Symptom]:
    if not conflicts:
        return []
    plain = [one for one in conflicts if not one.turned]
    items = tuple(f"{one.sentence}: {one.labels[0]}, {one.labels[1]}" for one in conflicts[:ITEMS])
    pairs = "1 pair of copies" if len(conflicts) == 1 else f"{len(conflicts):,} pairs of copies"
    has = "has" if len(conflicts) == 1 else "have"
    turned = "" if len(plain) == len(conflicts) else " Mirrored or turned pictures may rightly differ, as 6 and 9 do."
    return [
        Symptom(
            cause="conflicting_copies",
            severity="alarm" if plain else "note",
            evidence=f"{pairs} in training {has} two labels ({_kinds(conflicts)}); at most one of the two is right."
            if plain
            else f"{pairs} in training {has} two labels ({_kinds(conflicts)}).",
            remedy=f"Correct the labels, or remove the copies.{turned}",
            items=items,
        )
    ]


def _repeat_symptom(repeats: Sequence[CopyPair], series: int) -> list[Symptom]:
    if not repeats:
        return []
    pairs = "1 pair of copies" if len(repeats) == 1 else f"{len(repeats):,} pairs of copies"
    return [
        Symptom(
            cause="copies_in_training",
            severity="note",
            evidence=f"{pairs} in training ({_kinds(repeats)}).",
            remedy="Give copies one group, so that they are held back together; otherwise held-back accuracy is too "
            f"high.{_name_series(series)}",
            items=_items(repeats),
        )
    ]


def _blank_symptom(blanks: Sequence[OutlierImage]) -> list[Symptom]:
    if not blanks:
        return []
    count = "1 image shows" if len(blanks) == 1 else f"{len(blanks):,} images show"
    return [
        Symptom(
            cause="blank_images",
            severity="note",
            evidence=f"{count} one flat colour, e.g. {blanks[0].name} ({blanks[0].label}); no copies are looked for "
            "among them.",
            remedy="Remove them, unless a blank picture means something.",
            items=_listed(blanks),
        )
    ]


def _outlier_symptom(outliers: Sequence[OutlierImage]) -> list[Symptom]:
    if not outliers:
        return []
    count = "1 image is" if len(outliers) == 1 else f"{len(outliers):,} images are"
    return [
        Symptom(
            cause="outliers",
            severity="note",
            evidence=f"{count} unlike all others of the class and of the data, e.g. {outliers[0].name} "
            f"({outliers[0].label}).",
            remedy="Look at them: they may be of another kind, or damaged.",
            items=_listed(outliers),
        )
    ]


def _listed(images: Sequence[OutlierImage]) -> tuple[str, ...]:
    return tuple(f"{one.name} ({one.label})" for one in images[:ITEMS])
