"""Summary of a data set after the audit, with its findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from transferkit.records._checks import require
from transferkit.records.targets import MEASURES_OF, TASK_NAMES

__all__ = ["DataSummary", "Finding", "Severity"]


Severity = Literal["error", "set_aside", "warning", "info"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding of the audit.

    Args:
        kind: e.g. "truncated", "zero_byte", "oversized", "duplicate", "near_duplicate", "small_class", "imbalance".
        severity: "error" stops the run; "set_aside" excludes the named images; "warning" and "info" are only reported.
        message: A sentence with the numbers in it.
        items: Files or rows it concerns.
    """

    kind: str
    severity: Severity
    message: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """Summary of a data set after the audit.

    Args:
        origin: Where it came from, for display.
        classes: The K class names, in label order.
        counts: Split name ("train", "val", "test") -> images per class, K integers each.
        split_rule: A sentence that says how the splits were made.
        findings: The audit's findings.
        content_id: Hex digest over image contents, labels and splits.
        side_quantiles: 5 %, 50 % and 95 % quantile of the images' shorter side, pixels.
        train_groups: Independent groups of training images per class, K integers; empty if there are no groups.
        task: "single_label"; "multi_label": classes are labels, counts the images with each; "regression": classes are
            the names of numbers.
        images: Split name -> number of images, where they are not the sum of the counts; empty for classes.
    """

    origin: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    split_rule: str
    findings: tuple[Finding, ...] = ()
    content_id: str = ""
    side_quantiles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    train_groups: tuple[int, ...] = ()
    task: str = "single_label"
    images: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.task in TASK_NAMES, f"DataSummary.task must be one of {', '.join(TASK_NAMES)}, got {self.task!r}.")
        if self.task == "single_label":
            require(len(self.classes) >= 2, f"DataSummary.classes needs 2 classes or more, got {len(self.classes)}.")
        for split, counts in self.counts.items():
            require(
                len(counts) == len(self.classes),
                f"DataSummary.counts[{split!r}] needs one count per class, got {len(counts)} for {len(self.classes)}.",
            )

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    def size(self, split: str) -> int:
        """Number of images in a split; 0 if there is no such split."""
        return self.images.get(split, 0) if self.images else sum(self.counts.get(split, ()))

    @property
    def measure(self) -> str:
        """Name of the score that models are compared by."""
        return MEASURES_OF[self.task]

    @property
    def train_images(self) -> int:
        """N of the training split."""
        return self.size("train")

    @property
    def train_per_class(self) -> float:
        """Mean number of training images per class, or with each label; of a regression, of all numbers."""
        if self.images:
            return sum(self.counts["train"]) / self.num_classes
        return self.train_images / self.num_classes

    @property
    def fewest_groups(self) -> int:
        """Smallest number of independent training groups over the classes; holding one back takes 2."""
        return min(self.train_groups or self.counts["train"])

    @property
    def imbalance(self) -> float:
        """Largest class over smallest non-empty class, in the training split; 1 is balanced."""
        if self.task == "regression":
            return 1.0
        present = [count for count in self.counts["train"] if count > 0]
        return max(present) / min(present) if present else 1.0
