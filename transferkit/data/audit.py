"""What is wrong with the data, all of it at once, before any work starts.

An inventory goes in. Unusable images and leaks are set aside, splits are drawn if there are none, classes are checked;
a `AuditReport` comes out, or one `DataError` that lists every problem with its remedy.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, list_problems
from transferkit.data.class_names import alike_names
from transferkit.data.depth import Range
from transferkit.data.fingerprints import digest, near_twins
from transferkit.data.headers import heic_hint
from transferkit.data.image_errors import FAULTS
from transferkit.data.inventory import NO_LABEL, SPLITS, UNSPLIT, Inventory
from transferkit.data.label_findings import describe_many_labels, label_findings
from transferkit.data.ranges import find_losses, find_range
from transferkit.data.split_findings import DEFAULT_TEST, Shares, split_findings, split_rule
from transferkit.data.splits import stratified_split
from transferkit.records import DataSummary, Finding, connected_groups

__all__ = ["AuditReport", "audit"]

_SMALL_CLASS = 5
"""Training images under which a class's accuracy is mostly chance."""
_IMBALANCE = 10
_SHOWN = 5
_PAIRS_SHOWN = 20
_LATER = {"train": ("val", "test"), "val": ("test",)}
"""Split -> the splits whose images it must not hold; the later one is never touched."""

_REMEDIES = {
    "zero_byte": "fetch them again or remove them",
    "unreadable": "convert them to JPEG or PNG, or remove them",
    "truncated": "fetch them again or remove them",
}
"""Fault of a file -> what to do."""

_MISSING = {
    "folder": "they are links that lead nowhere: bring the files back, or remove the links",
    "manifest": "correct the paths in the manifest, or remove its rows",
}
"""Kind of source -> what to do where a file is not there."""

_OWN_SPLITS = {
    "folder": "sort the images into train/<class>/ and test/<class>/",
    "manifest": "say in a column split which images are for what",
    "dataset": 'give {"train": ..., "test": ...}',
}
"""Kind of source -> how a person brings splits."""

Ints = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What is left after the audit.

    Args:
        summary: What the data is.
        rows: (M,) int64, the usable rows of the inventory, in its order.
        splits: (M,) split names.
        groups: (M,) int64; images of equal value are never parted.
        value_range: (black, white) of those deeper than 8 bits; None if there are none.
    """

    summary: DataSummary
    rows: Ints
    splits: Names
    groups: Ints
    value_range: Range | None = None


def audit(
    inventory: Inventory,
    *,
    val: float,
    test: float | None,
    seed: int,
    strict: bool,
    value_range: Range | None = None,
) -> AuditReport:
    """Judge an inventory.

    Args:
        inventory: The rows, looked at.
        val: Share of training images to hold back for validation where there is no validation split.
        test: Share to hold back for testing where there is no test split; None: `DEFAULT_TEST` where there are no
        splits
            at all, else nothing.
        seed: Draws which.
        strict: Whether an image that is set aside is an error.
        value_range: (black, white) of images deeper than 8 bits, if the person says; None measures it.

    Raises:
        DataError: One message with all the errors found, a line each.

    Returns:
        The verdict.
    """
    shares = Shares(val=val, test=test)
    findings = [*inventory.findings, *_faults(inventory)]
    if strict:
        findings = [_as_error(finding) for finding in findings]
    ids = np.array([look.content_id for look in inventory.inspections], dtype="S32")
    usable = np.array([not look.fault for look in inventory.inspections], dtype=bool) & (inventory.labels != NO_LABEL)
    findings += _unusable_classes(inventory, usable)
    findings += _label_conflicts(inventory, ids, usable)
    leaking = np.zeros(len(ids), dtype=bool)
    if inventory.official:
        leaks, leaking = _leaks(inventory, ids, usable)
        findings += leaks
        usable &= ~leaking
    rows = np.flatnonzero(usable)
    findings += [*_untrained(inventory, ids, rows, leaking), *_too_few_to_split(inventory, rows, shares)]
    _raise_errors(findings, inventory.origin)
    twins = _twins(inventory, rows)
    groups, alike = _groups(inventory, ids, rows, twins)
    findings += alike
    splits = _drawn(inventory, rows, groups, shares, seed=seed)
    findings += label_findings(inventory, np.bincount(inventory.labels[rows], minlength=len(inventory.classes)))
    findings += split_findings(inventory, rows, splits, groups, shares=shares)
    findings += _class_findings(inventory, rows, splits, groups)
    findings += [*_repeats(inventory, ids, rows, splits), *_leaking_twins(inventory, rows, splits, twins)]
    names, looks = [inventory.names[row] for row in rows], [inventory.inspections[row] for row in rows]
    grey = find_range(names, looks, splits.tolist(), given=value_range)
    findings += [*_conversions(inventory, rows), *find_losses(names, looks), *grey.findings]
    rule = split_rule(inventory, rows, splits, shares=shares, seed=seed)
    summary = _summary(inventory, ids, rows, splits, groups, findings, rule)
    return AuditReport(summary=summary, rows=rows, splits=splits, groups=groups, value_range=grey.value_range)


def _raise_errors(findings: Iterable[Finding], origin: str) -> None:
    errors = [finding.message for finding in findings if finding.severity == "error"]
    if errors:
        raise DataError(list_problems(f"The data cannot be used as it is ({origin}):", errors))


def _some(items: Sequence[str]) -> str:
    more = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _count(number: int, noun: str) -> str:
    plural = noun[:-1] + "ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def _faults(inventory: Inventory) -> list[Finding]:
    by_kind: dict[str, list[int]] = defaultdict(list)
    for row, look in enumerate(inventory.inspections):
        if look.fault:
            by_kind[look.fault].append(row)
    findings = []
    for kind, rows in sorted(by_kind.items()):
        names = tuple(inventory.names[row] for row in rows)
        message = f"{_count(len(names), 'image')} cannot be used ({FAULTS[kind]}{_detail(inventory, rows)}): "
        message += f"{_some(names)}. Remedy: {_remedy(inventory, kind, rows)}."
        findings.append(Finding(kind=kind, severity="set_aside", message=message, items=names))
    return findings


def _detail(inventory: Inventory, rows: Sequence[int]) -> str:
    """What is known of the first faulty image of which more is known than its fault; HEIC has a remedy instead."""
    known = (inventory.inspections[row].detail for row in rows if not heic_hint(inventory.names[row]))
    return next((f"; the first is {detail}" for detail in known if detail), "")


def _remedy(inventory: Inventory, fault: str, rows: Sequence[int]) -> str:
    if fault == "oversized":
        needed = max(inventory.inspections[row].width * inventory.inspections[row].height for row in rows)
        more = f", or pass max_pixels={needed} (command line: data.max_pixels={needed})" if needed else ""
        return f"shrink them{more}"
    if inventory.kind == "dataset":
        return "mend the files that the dataset reads, or leave them out of it"
    if fault == "missing":
        return _MISSING[inventory.kind]
    hints = sorted({hint for row in rows if fault == "unreadable" and (hint := heic_hint(inventory.names[row]))})
    return "; ".join([_REMEDIES[fault], *hints])


def _as_error(finding: Finding) -> Finding:
    """What would be set aside, where that is not allowed."""
    return replace(finding, severity="error") if finding.severity == "set_aside" else finding


def _unusable_classes(inventory: Inventory, usable: npt.NDArray[np.bool_]) -> list[Finding]:
    findings = []
    if not inventory.classes:
        return [
            Finding(kind="one_class", severity="error", message="No image has a label. Give every image its class.")
        ]
    if len(inventory.classes) < 2:
        message = f"There is only one class, {_quoted(inventory.classes)}; 2 are needed to tell apart. "
        message += {
            "folder": "Add another class, or check that the classes are the folders directly below.",
            "manifest": "Add images of another class, or check that the column label holds the classes.",
            "dataset": "Add images of another class, or check what the dataset gives as label.",
        }[inventory.kind]
        findings.append(Finding(kind="one_class", severity="error", message=message, items=inventory.classes))
    listed = np.bincount(inventory.labels[inventory.labels != NO_LABEL], minlength=len(inventory.classes))
    left = np.bincount(inventory.labels[usable], minlength=len(inventory.classes))
    empty = np.flatnonzero(left == 0)
    if len(empty) > _SHOWN:
        names = tuple(inventory.classes[index] for index in empty)
        message = (
            f"{len(names)} of {len(left)} classes have no usable image ({_some(names)}). Add images, or remove them."
        )
        return [*findings, Finding(kind="empty_class", severity="error", message=message, items=names)]
    for index in empty:
        name = inventory.classes[index]
        why = (
            f"no usable image, {listed[index]} set aside{_why(inventory, int(index))}"
            if listed[index]
            else "it has no image"
        )
        message = f"Class {name!r} is empty: {why}. Add images, or remove the class."
        findings.append(Finding(kind="empty_class", severity="error", message=message, items=(name,)))
    return findings


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _same_content(ids: npt.NDArray[np.bytes_], rows: Ints) -> list[Ints]:
    """Sets of two rows or more with one content, in order of their first row."""
    _, codes, counts = np.unique(ids[rows], return_inverse=True, return_counts=True)
    repeated = rows[counts[codes] > 1]
    by_id: dict[bytes, list[int]] = defaultdict(list)
    for row in repeated.tolist():
        by_id[bytes(ids[row])].append(row)
    return [np.array(same, dtype=np.int64) for same in by_id.values()]


def _label_conflicts(inventory: Inventory, ids: npt.NDArray[np.bytes_], usable: npt.NDArray[np.bool_]) -> list[Finding]:
    sets = [same for same in _same_content(ids, np.flatnonzero(usable)) if len(set(inventory.labels[same])) > 1]
    if not sets:
        return []
    items = tuple(
        " = ".join(f"{inventory.names[row]} ({inventory.classes[inventory.labels[row]]})" for row in same)
        for same in sets
    )
    message = (
        f"Under more than one class: {_count(len(sets), 'image')} ({_some(items)}). At most one label can be right."
    )
    return [Finding(kind="label_conflict", severity="warning", message=message, items=items)]


def _leaks(
    inventory: Inventory, ids: npt.NDArray[np.bytes_], usable: npt.NDArray[np.bool_]
) -> tuple[list[Finding], npt.NDArray[np.bool_]]:
    """Copies of later splits' images in earlier ones: the findings, and (N,) True for the rows to set aside."""
    leaking = np.zeros(len(ids), dtype=bool)
    findings = []
    for split, later in _LATER.items():
        theirs = ids[usable & np.isin(inventory.splits, later)]
        copies = usable & (inventory.splits == split) & np.isin(ids, theirs)
        leaking |= copies
        if copies.any():
            names = tuple(inventory.names[row] for row in np.flatnonzero(copies))
            message = (
                f"In {' or '.join(later)} too, exactly: {_count(len(names), f'{split} image')} ({_some(names)}). "
                f"The {split} copies are set aside, so that held-out accuracy is measured on unseen images."
            )
            kind = "duplicate_across_splits"
            findings.append(Finding(kind=kind, severity="set_aside", message=message, items=names))
    return findings, leaking


def _untrained(
    inventory: Inventory, ids: npt.NDArray[np.bytes_], rows: Ints, leaking: npt.NDArray[np.bool_]
) -> list[Finding]:
    """Errors for classes that are held back and not trained on, first those whose training images were copies."""
    if not inventory.official:
        return []
    counts = _counts(inventory, rows, inventory.splits[rows])
    trained = np.array(counts["train"])
    held = np.sum([counts[split] for split in SPLITS[1:] if split in counts], axis=0) + np.zeros_like(trained)
    copies = leaking & (inventory.splits == "train")
    copied = np.bincount(inventory.labels[copies], minlength=len(trained)) * (trained == 0)
    trained_names = [name for name, count in zip(inventory.classes, trained, strict=True) if count]
    return [
        *_all_copies(inventory, ids, copies & (copied > 0)[inventory.labels]),
        *(
            Finding(
                kind="untrained_class",
                severity="error",
                message=f"Class {name!r} has {_count(int(kept), 'held-back image')} but none in train. "
                + (_same_class(name, trained_names) or "Add training images of it, or remove it."),
                items=(name,),
            )
            for name, count, kept, same in zip(inventory.classes, trained, held, copied, strict=True)
            if count == 0 and kept > 0 and same == 0
        ),
    ]


def _why(inventory: Inventory, label: int) -> str:
    """What is wrong with the images of a class, if it is one thing."""
    faults = {look.fault for look, own in zip(inventory.inspections, inventory.labels, strict=True) if own == label}
    return f" ({FAULTS[faults.pop()]})" if len(faults) == 1 and "" not in faults else ""


def _all_copies(inventory: Inventory, ids: npt.NDArray[np.bytes_], copies: npt.NDArray[np.bool_]) -> list[Finding]:
    """The error for classes all of whose training images are held-back images as well."""
    if not copies.any():
        return []
    names = tuple(inventory.classes[label] for label in np.unique(inventory.labels[copies]))
    theirs = np.isin(ids, ids[copies])
    where = [split for split in SPLITS[1:] if (theirs & (inventory.splits == split)).any()]
    places = " and ".join(where)
    folders = " and ".join(f"{split}/" for split in where)
    question = f"Is {places} a copy of train" if len(where) == 1 else f"Are {places} copies of train"
    remedy = {
        "folder": f"Remove the copies from {folders}, or delete {folders}",
        "manifest": "Correct the column split, or keep the rows of train only",
        "dataset": "Give datasets that have no image in common, or the training dataset only",
    }[inventory.kind]
    message = (
        f"All training images of {_count(len(names), 'class')} ({_some(names)}) are also in {places}, exactly: "
        f"{_count(int(copies.sum()), 'image')}. {question}? {remedy} and hold images of train back "
        f"with test={DEFAULT_TEST} (command line: data.test={DEFAULT_TEST})."
    )
    return [Finding(kind="untrained_class", severity="error", message=message, items=names)]


def _same_class(name: str, trained: Sequence[str]) -> str:
    """The question whether a class that is held back only is one of train's, written in another way."""
    same = next((other for other in trained if alike_names([name, other])), None)
    return "" if same is None else f"If it is {same!r}, which train has, give it that name."


def _too_few_to_split(inventory: Inventory, rows: Ints, shares: Shares) -> list[Finding]:
    drawn = shares.drawn(inventory.splits[rows], official=inventory.official)
    if inventory.official or not drawn:
        return []
    counts = np.bincount(inventory.labels[rows], minlength=len(inventory.classes))
    purpose = "testing" if "test" in drawn else "validation"
    single = tuple(inventory.classes[index] for index in np.flatnonzero(counts == 1))
    remedy = (
        f"Add images, remove the class, bring your own splits ({_OWN_SPLITS[inventory.kind]}), or hold nothing back: "
    )
    remedy += "test=0 (command line: data.test=0)." if "test" in drawn else "val=0 (command line: data.val=0)."
    needed = f"2 are needed to hold one back for {purpose}."
    if len(single) > _SHOWN:
        message = f"{len(single)} of {len(counts)} classes have 1 image ({_some(single)}); {needed} "
        message += describe_many_labels(inventory, counts) or remedy
        return [Finding(kind="small_class", severity="error", message=message, items=single)]
    return [
        Finding(
            kind="small_class",
            severity="error",
            message=f"Class {name!r} has 1 image; {needed} {remedy}",
            items=(name,),
        )
        for name in single
    ]


def _twins(inventory: Inventory, rows: Ints) -> Ints:
    """(P, 2) pairs of usable images that look the same, by their place among `rows`, the smaller first."""
    looks = [inventory.inspections[row] for row in rows]
    hashes = np.array([look.hash for look in looks], dtype=np.uint64)
    return near_twins(hashes, np.stack([look.thumb for look in looks]))


def _groups(inventory: Inventory, ids: npt.NDArray[np.bytes_], rows: Ints, twins: Ints) -> tuple[Ints, list[Finding]]:
    """(M,) which of the usable images belong together: by the person's word, by equal or by nearly equal content."""
    same_image = np.unique(ids[rows], return_inverse=True)[1].reshape(-1).astype(np.int64)
    memberships = [same_image, *([] if inventory.groups is None else [inventory.groups[rows]])]
    known, labels = connected_groups(memberships), inventory.labels[rows]
    pairs = twins[known[twins[:, 0]] != known[twins[:, 1]]]
    if not len(pairs):
        return known, []
    alike = connected_groups([np.arange(len(rows), dtype=np.int64)], pairs)
    sets, sizes = np.unique(alike, return_counts=True)
    common = _too_common(alike, labels)
    copies = pairs[~np.isin(alike[pairs[:, 0]], common)]
    grouped = int(sizes[(sizes > 1) & ~np.isin(sets, common)].sum())
    return connected_groups([known], copies), [*_twin_findings(grouped), *_common_findings(alike, common)]


def _too_common(alike: Ints, labels: Ints) -> Ints:
    """Sets of look-alikes with more than half of the images of a class: that is how the class looks, not a copy."""
    sets, inverse = np.unique(alike, return_inverse=True)
    table = np.zeros((len(sets), int(labels.max()) + 1), dtype=np.int64)
    np.add.at(table, (inverse.reshape(-1), labels), 1)
    return sets[((table > 1) & (2 * table > table.sum(axis=0))).any(axis=1)]


def _twin_findings(grouped: int) -> list[Finding]:
    if not grouped:
        return []
    message = (
        f"Almost the same as another image: {_count(grouped, 'image')}. They are treated as one group: held back "
        "together and never parted by a split."
    )
    return [Finding(kind="near_duplicate_group", severity="info", message=message)]


def _common_findings(alike: Ints, common: Ints) -> list[Finding]:
    images = int(np.isin(alike, common).sum())
    if not images:
        return []
    message = (
        f"Almost the same as more than half of their class, and so not treated as copies: {_count(images, 'image')}. "
        "If they are, held-back accuracy is too high: give copies one group (a manifest with a column 'group')."
    )
    return [Finding(kind="look_alikes", severity="warning", message=message)]


def _drawn(inventory: Inventory, rows: Ints, groups: Ints, shares: Shares, *, seed: int) -> Names:
    """(M,) split names: the source's own where it has them, else drawn from the images for training."""
    splits = inventory.splits[rows].copy()
    wanted = {"val": 0.0, "test": 0.0, **shares.drawn(splits, official=inventory.official)}
    if inventory.official and not any(wanted.values()):
        return splits
    pool = np.flatnonzero(splits == ("train" if inventory.official else UNSPLIT))
    splits[pool] = stratified_split(inventory.labels[rows[pool]], groups[pool], **wanted, seed=seed)
    return splits


def _class_findings(inventory: Inventory, rows: Ints, splits: Names, groups: Ints) -> list[Finding]:
    """Warnings only: every class has a training image by now."""
    counts = _counts(inventory, rows, splits)
    train = np.array(counts["train"])
    names = np.array(inventory.classes, dtype=object)
    findings = []
    few = tuple(str(name) for name in names[(train > 0) & (train < _SMALL_CLASS)])
    if few:
        message = f"Fewer than {_SMALL_CLASS} training images: {_count(len(few), 'class')} ({_some(few)})."
        findings.append(Finding(kind="small_class", severity="warning", message=message, items=few))
    independent = np.array(_train_groups(inventory, rows, splits, groups) or train)
    lone = tuple(str(name) for name in names[independent == 1])
    if lone:
        message = (
            f"With one independent training image or group, and so left out of held-back accuracy: "
            f"{_count(len(lone), 'class')} ({_some(lone)}). Add images of another group."
        )
        findings.append(Finding(kind="unmeasured_class", severity="warning", message=message, items=lone))
    if "test" in counts:
        untested = np.flatnonzero((train > 0) & (np.array(counts["test"]) == 0))
        findings += _untested(names[untested], of_one_group=_of_one_group(inventory.labels[rows], groups, untested))
    if train.max() > _IMBALANCE * train.min():
        most, least = names[train.argmax()], names[train.argmin()]
        message = (
            f"Classes are unequal: {most!r} has {train.max()} training images and {least!r} has {train.min()}, "
            f"{train.max() / train.min():.0f} times fewer. Read balanced accuracy, not accuracy."
        )
        findings.append(Finding(kind="imbalance", severity="warning", message=message, items=(most, least)))
    return findings


def _of_one_group(labels: Ints, groups: Ints, classes: Ints) -> bool:
    """Whether each of the classes has two images or more, all of one group."""
    members = [groups[labels == label] for label in classes]
    return all(len(group) > 1 and len(np.unique(group)) == 1 for group in members)


def _untested(names: npt.NDArray[np.object_], *, of_one_group: bool) -> list[Finding]:
    absent = tuple(str(name) for name in names)
    if not absent:
        return []
    message = f"No test image, so nothing is measured on: {_count(len(absent), 'class')} ({_some(absent)})."
    if of_one_group:
        message += " All images of such a class are of one group, and groups stay together."
    return [Finding(kind="untested_class", severity="warning", message=message, items=absent)]


def _repeats(inventory: Inventory, ids: npt.NDArray[np.bytes_], rows: Ints, splits: Names) -> list[Finding]:
    sets = _same_content(ids, rows[splits == "train"])
    if not sets:
        return []
    items = tuple(" = ".join(inventory.names[row] for row in same) for same in sets)
    extra = sum(len(same) - 1 for same in sets)
    message = (
        f"Exact repeats within train: {_count(extra, 'image')} ({_some(items)}). They are held back together and count "
        "as one image in held-back accuracy; in the fit each counts."
    )
    return [Finding(kind="duplicate", severity="warning", message=message, items=items)]


def _leaking_twins(inventory: Inventory, rows: Ints, splits: Names, twins: Ints) -> list[Finding]:
    """What is said of pairs of a training and a held-back image."""
    train = splits == "train"
    pairs = twins[train[twins[:, 0]] != train[twins[:, 1]]]
    pairs = np.where(train[pairs[:, :1]], pairs, pairs[:, ::-1])
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    if not len(pairs):
        return []
    held = len(np.unique(pairs[:, 1]))
    items = tuple(
        f"{inventory.names[rows[left]]} ~ {inventory.names[rows[right]]}" for left, right in pairs[:_PAIRS_SHOWN]
    )
    message = (
        f"Almost the same as a training image: {_count(held, 'held-back image')} ({_count(len(pairs), 'pair')}, "
        f"e.g. {items[0]}). If they show the same thing, held-out accuracy is too high: give such images one group."
    )
    return [Finding(kind="near_duplicate", severity="warning", message=message, items=items)]


def _conversions(inventory: Inventory, rows: Ints) -> list[Finding]:
    found = Counter(trait for row in rows for trait in inventory.inspections[row].traits)
    if not found:
        return []
    counts = ", ".join(f"{number} {trait}" for trait, number in sorted(found.items()))
    message = f"Images turned into upright 8-bit RGB when read: {counts}."
    return [Finding(kind="converted", severity="info", message=message)]


def _counts(inventory: Inventory, rows: Ints, splits: Names) -> dict[str, tuple[int, ...]]:
    """Split -> images per class, for the splits that there are; train always."""
    labels, classes = inventory.labels[rows], len(inventory.classes)
    return {
        split: tuple(np.bincount(labels[splits == split], minlength=classes).tolist())
        for split in SPLITS
        if split == "train" or (splits == split).any()
    }


def _summary(
    inventory: Inventory,
    ids: npt.NDArray[np.bytes_],
    rows: Ints,
    splits: Names,
    groups: Ints,
    findings: Sequence[Finding],
    rule: str,
) -> DataSummary:
    sides = [min(inventory.inspections[row].width, inventory.inspections[row].height) for row in rows]
    low, middle, high = (float(value) for value in np.quantile(sides, (0.05, 0.5, 0.95)))
    parts = sorted(
        b"\0".join((bytes(ids[row]), inventory.classes[inventory.labels[row]].encode(), str(split).encode()))
        for row, split in zip(rows, splits, strict=True)
    )
    return DataSummary(
        origin=inventory.origin,
        classes=inventory.classes,
        counts=_counts(inventory, rows, splits),
        split_rule=rule,
        findings=tuple(findings),
        content_id=digest(b"\n".join(parts)).decode("ascii"),
        side_quantiles=(low, middle, high),
        train_groups=_train_groups(inventory, rows, splits, groups),
    )


def _train_groups(inventory: Inventory, rows: Ints, splits: Names, groups: Ints) -> tuple[int, ...]:
    """In how many groups each class occurs in train; empty where every image is its own."""
    train = splits == "train"
    inside, labels = groups[train], inventory.labels[rows[train]]
    if len(np.unique(inside)) == len(inside):
        return ()
    pairs = np.unique(np.stack([labels, inside]), axis=1)
    return tuple(np.bincount(pairs[0], minlength=len(inventory.classes)).tolist())
