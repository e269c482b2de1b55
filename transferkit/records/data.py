"""Summary of a data set after the audit, with its findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from transferkit.records._checks import require

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
    """

    origin: str
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    split_rule: str
    findings: tuple[Finding, ...] = ()
    content_id: str = ""
    side_quantiles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    train_groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
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
        return sum(self.counts.get(split, ()))

    @property
    def train_images(self) -> int:
        """N of the training split."""
        return self.size("train")

    @property
    def train_per_class(self) -> float:
        """Mean number of training images per class."""
        return self.train_images / self.num_classes

    @property
    def fewest_groups(self) -> int:
        """Smallest number of independent training groups over the classes; holding one back takes 2."""
        return min(self.train_groups or self.counts["train"])

    @property
    def imbalance(self) -> float:
        """Largest class over smallest non-empty class, in the training split; 1 is balanced."""
        present = [count for count in self.counts["train"] if count > 0]
        return max(present) / min(present) if present else 1.0
