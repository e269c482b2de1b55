"""The audit of the data before any work starts: all findings at once.

Unusable images and leaks of an inventory are set aside, splits are drawn if there are none, classes are checked. The
result is an `AuditReport`, or one `DataError` that lists every problem with its remedy. The checks themselves are in
`file_findings`, `class_findings`, `label_findings`, `split_findings`, `duplicates` and `ranges`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from transferkit.core.errors import DataError, list_problems
from transferkit.data.class_counts import class_counts, train_group_counts
from transferkit.data.class_findings import (
    class_findings,
    split_size_findings,
    untrained_class_findings,
    unusable_class_findings,
)
from transferkit.data.corrections import Corrections, apply_corrections
from transferkit.data.depth import Range
from transferkit.data.duplicates import (
    find_groups,
    find_leaks,
    find_near_duplicates,
    label_conflicts,
    near_leak_findings,
    repeat_findings,
)
from transferkit.data.file_findings import conversion_findings, fault_findings
from transferkit.data.fingerprints import digest
from transferkit.data.inventory import NO_LABEL, SPLITS, UNSPLIT, Inventory
from transferkit.data.label_findings import label_findings
from transferkit.data.ranges import find_losses, find_range
from transferkit.data.split_findings import Shares, split_findings, split_rule
from transferkit.data.splits import stratified_split
from transferkit.data.target_findings import target_errors, target_warnings
from transferkit.records import CorrectedLabel, DataSummary, Finding

__all__ = ["AuditReport", "audit"]

Ints = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]
ContentIds = npt.NDArray[np.bytes_]


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """The usable images of an inventory, their splits and groups, and what was found.

    Args:
        summary: Classes, counts, findings.
        rows: (M,) int64, the usable rows of the inventory, in its order.
        splits: (M,) split names.
        labels: (M,) int64 in [0, K), corrections applied.
        groups: (M,) int64; images of one group are never in different splits or folds.
        value_range: (black, white) of images deeper than 8 bits; None if there are none.
        corrected: Images whose label was corrected, or that were removed.
    """

    summary: DataSummary
    rows: Ints
    splits: Names
    labels: Ints
    groups: Ints
    value_range: Range | None = None
    corrected: tuple[CorrectedLabel, ...] = ()


def audit(
    inventory: Inventory,
    *,
    val: float,
    test: float | None,
    seed: int,
    strict: bool,
    value_range: Range | None = None,
    corrections: Corrections | None = None,
    trains: bool = True,
) -> AuditReport:
    """Check an inventory, and draw the splits that it lacks.

    Args:
        inventory: The images with their inspections.
        val: Share of training images to hold back for validation where there is no validation split.
        test: Share to hold back for testing where there is no test split; None: `DEFAULT_TEST` where there are no
            splits at all, else nothing.
        seed: Of the draw.
        strict: Whether an image that is set aside is an error.
        value_range: (black, white) of images deeper than 8 bits; None measures it.
        corrections: Other labels for some images. Splits and groups are those that the source's own labels make, so
            that no image changes its split.
        trains: Whether a model may be trained on them; else labels that are on all or none of them are no error.

    Raises:
        DataError: One message with all the errors found, a line each.
    """
    shares = Shares(val=val, test=test)
    findings = [*inventory.findings, *fault_findings(inventory)]
    if strict:
        findings = [_as_error(finding) for finding in findings]
    ids = np.array([one.content_id for one in inventory.inspections], dtype="S32")
    usable = np.array([not one.fault for one in inventory.inspections], dtype=bool) & (inventory.labels != NO_LABEL)
    is_classes = inventory.targets is None
    findings += unusable_class_findings(inventory, usable) if is_classes else _without_rows(usable)
    findings += label_conflicts(inventory, ids, usable)
    leaking = np.zeros(len(ids), dtype=bool)
    if inventory.official:
        leaks, leaking = find_leaks(inventory, ids, usable)
        findings += leaks
        usable &= ~leaking
    rows = np.flatnonzero(usable)
    if is_classes:
        findings += [
            *untrained_class_findings(inventory, ids, rows, leaking),
            *split_size_findings(inventory, rows, shares),
        ]
    _raise_errors(findings, inventory.origin)
    twins = find_near_duplicates(inventory, rows)
    groups, alike = find_groups(inventory, ids, rows, twins)
    findings += alike
    splits = _draw_splits(inventory, rows, groups, shares, seed=seed)
    if not is_classes and trains:
        findings += target_errors(inventory, rows, splits)
        _raise_errors(findings, inventory.origin)
    changes: tuple[CorrectedLabel, ...] = ()
    if corrections is not None:
        applied = apply_corrections(corrections, inventory, rows, splits)
        changes, kept = applied.changes, ~applied.removed[rows]
        inventory = replace(inventory, labels=applied.labels)
        conflicts = label_conflicts(inventory, ids, (usable | leaking) & ~applied.removed)
        findings = [applied.finding, *(one for one in findings if one.kind != "label_conflict"), *conflicts]
        rows, splits, groups, twins = rows[kept], splits[kept], groups[kept], _pairs_among(twins, kept)
    if is_classes:
        findings += label_findings(inventory, np.bincount(inventory.labels[rows], minlength=len(inventory.classes)))
    findings += split_findings(inventory, rows, splits, groups, shares=shares)
    findings += (
        class_findings(inventory, rows, splits, groups) if is_classes else target_warnings(inventory, rows, splits)
    )
    findings += [*repeat_findings(inventory, ids, rows, splits), *near_leak_findings(inventory, rows, splits, twins)]
    names, inspections = [inventory.names[row] for row in rows], [inventory.inspections[row] for row in rows]
    grey = find_range(names, inspections, splits.tolist(), given=value_range)
    findings += [*conversion_findings(inventory, rows), *find_losses(names, inspections), *grey.findings]
    rule = split_rule(inventory, rows, splits, shares=shares, seed=seed)
    summary = _summary(inventory, ids, rows, splits, groups, findings, rule)
    return AuditReport(
        summary=summary,
        rows=rows,
        splits=splits,
        labels=inventory.labels[rows],
        groups=groups,
        value_range=grey.value_range,
        corrected=changes,
    )


def _without_rows(usable: npt.NDArray[np.bool_]) -> list[Finding]:
    """The error for a source without a usable image that has a target."""
    if usable.any():
        return []
    message = "No usable image has a label or number. Give every image its targets."
    return [Finding(kind="no_images", severity="error", message=message)]


def _pairs_among(pairs: Ints, kept: npt.NDArray[np.bool_]) -> Ints:
    """Pairs of places of which both are kept, renumbered among these."""
    renumbered: Ints = (np.cumsum(kept) - 1)[pairs[kept[pairs].all(axis=1)]]
    return renumbered


def _raise_errors(findings: Iterable[Finding], origin: str) -> None:
    errors = [finding.message for finding in findings if finding.severity == "error"]
    if errors:
        raise DataError(list_problems(f"The data cannot be used as it is ({origin}):", errors))


def _as_error(finding: Finding) -> Finding:
    """A finding of images that are set aside, as an error; any other finding itself."""
    return replace(finding, severity="error") if finding.severity == "set_aside" else finding


def _draw_splits(inventory: Inventory, rows: Ints, groups: Ints, shares: Shares, *, seed: int) -> Names:
    """(M,) split names: the source's own, or drawn from the images for training."""
    splits = inventory.splits[rows].copy()
    wanted = {"val": 0.0, "test": 0.0, **shares.drawn(splits, official=inventory.official)}
    if inventory.official and not any(wanted.values()):
        return splits
    pool = np.flatnonzero(splits == ("train" if inventory.official else UNSPLIT))
    splits[pool] = stratified_split(inventory.labels[rows[pool]], groups[pool], **wanted, seed=seed)
    return splits


def _summary(
    inventory: Inventory,
    ids: ContentIds,
    rows: Ints,
    splits: Names,
    groups: Ints,
    findings: Sequence[Finding],
    rule: str,
) -> DataSummary:
    sides = [min(inventory.inspections[row].width, inventory.inspections[row].height) for row in rows]
    low, middle, high = (float(value) for value in np.quantile(sides, (0.05, 0.5, 0.95)))
    parts = sorted(
        b"\0".join((bytes(ids[row]), _label_bytes(inventory, row), str(split).encode()))
        for row, split in zip(rows, splits, strict=True)
    )
    return DataSummary(
        origin=inventory.origin,
        classes=inventory.classes,
        counts=class_counts(inventory, rows, splits),
        split_rule=rule,
        findings=tuple(findings),
        content_id=digest(b"\n".join(parts)).decode("ascii"),
        side_quantiles=(low, middle, high),
        train_groups=train_group_counts(inventory, rows, splits, groups),
        **({} if inventory.targets is None else _target_summary(inventory.targets.task, splits)),
    )


def _label_bytes(inventory: Inventory, row: int) -> bytes:
    """What identifies an image's label, or its targets."""
    if inventory.targets is not None:
        return inventory.targets.values[row].tobytes()
    return inventory.classes[inventory.labels[row]].encode()


def _target_summary(task: str, splits: Names) -> dict[str, Any]:
    names = [split for split in SPLITS if split == "train" or (splits == split).any()]
    return {"task": task, "images": {split: int((splits == split).sum()) for split in names}}
