"""Findings about splits: how they were made, and why a requested one is missing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transferkit.data.inventory import SPLITS, Inventory
from transferkit.records import Finding

__all__ = ["DEFAULT_TEST", "Shares", "split_findings", "split_rule"]

DEFAULT_TEST = 0.2
"""Default share held back for testing if there are no splits."""

_NOTICEABLE = 0.05
"""Difference between the requested and the actual share from which on both are reported."""

Ints = npt.NDArray[np.int64]
Names = npt.NDArray[np.str_]


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of the images to hold back.

    Args:
        val: Share of train, if there is no validation split, in [0, 1).
        test: Share of train, if there is no test split, in [0, 1); None: `DEFAULT_TEST` if there are no splits at all,
            else none.
    """

    val: float
    test: float | None

    def drawn(self, splits: Names, *, official: bool) -> dict[str, float]:
        """Split -> share of train, for the splits that must be drawn.

        Args:
            splits: (M,) split names given by the source.
            official: Whether there are any.
        """
        test = self.test if self.test is not None else 0.0 if official else DEFAULT_TEST
        wanted = {"val": self.val, "test": test}
        return {split: share for split, share in wanted.items() if share > 0 and not (splits == split).any()}


def split_rule(inventory: Inventory, rows: Ints, splits: Names, *, shares: Shares, seed: int) -> str:
    """A sentence or two on how the splits were made.

    Args:
        inventory: The source.
        rows: (M,) usable rows.
        splits: (M,) their final splits.
        shares: The requested shares.
        seed: Seed of the draw.
    """
    drawn = shares.drawn(inventory.splits[rows], official=inventory.official)
    together = (
        "identical images stay together" if inventory.groups is None else "groups and identical images stay together"
    )
    held = [split for split in drawn if (splits == split).any()]
    if inventory.official:
        own = [split for split in SPLITS if (inventory.splits == split).any()]
        sentences = [inventory.note, f"The data's own splits, unchanged: {', '.join(own)}."]
        if held:
            pool = np.isin(splits, ["train", *held])
            drawn_shares = " and ".join(
                f"{drawn[split]:.0%} of {'each class' if inventory.targets is None else 'the images'} is held back as "
                f"{split}{_deviation(drawn[split], splits[pool], split)}"
                for split in held
            )
            sentences.append(f"Of train, {drawn_shares} with seed {seed}; {together}.")
    elif held:
        drawn_shares = ", ".join(
            f"{drawn[split]:.0%} {split}{_deviation(drawn[split], splits, split)}" for split in held
        )
        how = f"{_spread(inventory)}, with seed {seed}"
        sentences = [
            inventory.note,
            f"Split by transferkit, {how}: {drawn_shares}, the rest train; {together}.",
        ]
    else:
        sentences = [inventory.note, "No split: every image is in train."]
    if missing := [split for split in drawn if split not in held]:
        sentences.append(f"No {' or '.join(missing)} split could be drawn.")
    return " ".join(sentence for sentence in sentences if sentence)


def _spread(inventory: Inventory) -> str:
    """How images are spread over the splits."""
    if inventory.targets is None:
        return "class by class"
    return "by each image's rarest label" if inventory.targets.is_labels else "spread evenly over the numbers' range"


def _deviation(asked: float, splits: Names, split: str) -> str:
    got = float((splits == split).mean())
    return f" ({got:.0%} of the images, as groups stay together)" if abs(got - asked) > _NOTICEABLE else ""


def split_findings(inventory: Inventory, rows: Ints, splits: Names, groups: Ints, *, shares: Shares) -> list[Finding]:
    """Findings on a missing test split and on requested shares that were not drawn.

    Args:
        inventory: The source.
        rows: (M,) usable rows.
        splits: (M,) their final splits.
        groups: (M,) groups of images that had to stay together.
        shares: The requested shares.
    """
    own = inventory.splits[rows]
    drawn = shares.drawn(own, official=inventory.official)
    findings = _not_needed(own, shares)
    for split in drawn:
        if not (splits == split).any():
            message = f"No {split} split could be drawn, although {drawn[split]:.0%} was requested: "
            message += _undrawable(inventory, rows, groups, pool=~np.isin(own, SPLITS[1:]))
            kind = "no_test_split" if split == "test" else "no_val_split"
            findings.append(Finding(kind=kind, severity="warning", message=message))
    if not (splits == "test").any() and "test" not in drawn:
        findings.append(_no_test(inventory, shares))
    return findings


def _not_needed(own: Names, shares: Shares) -> list[Finding]:
    """Findings for a requested share of a split that the source already has."""
    findings = []
    if shares.test and (own == "test").any():
        message = f"test={shares.test:g} is not used: the data has its own test split, which is kept."
        findings.append(Finding(kind="test_not_drawn", severity="warning", message=message))
    if shares.val and (own == "val").any():
        message = f"val={shares.val:g} is not used: the data has its own validation split, which is kept."
        findings.append(Finding(kind="val_not_drawn", severity="info", message=message))
    return findings


def _undrawable(inventory: Inventory, rows: Ints, groups: Ints, *, pool: npt.NDArray[np.bool_]) -> str:
    labels, members = inventory.labels[rows][pool], groups[pool]
    alike = "images of one group stay together" if inventory.groups is not None else "identical images stay together"
    if len(np.unique(members)) == 1:
        return f"all images are in one group, and {alike}. {_smaller_groups(inventory)}"
    per_class = [len(np.unique(members[labels == label])) for label in np.unique(labels)]
    if max(per_class) == 1:
        return f"every class is one group, and {alike}. {_smaller_groups(inventory)}"
    return f"every class needs an image to train on, and {alike}. {_smaller_groups(inventory)}"


def _smaller_groups(inventory: Inventory) -> str:
    if inventory.groups is None:
        return "Add images that are not copies of each other."
    return "Use smaller groups, leave out the column group, or mark test images in a column split."


def _no_test(inventory: Inventory, shares: Shares) -> Finding:
    """The finding for a source without test images, if none were requested."""
    consequence = "no accuracy on test images will be reported"
    if shares.test is not None:
        message = f"There is no test split, as test={shares.test:g} was requested: {consequence}."
        return Finding(kind="no_test_split", severity="info", message=message)
    own = {
        "folder": "add test/<class>/ folders",
        "manifest": "mark images with test in the column split",
        "shards": "add shards named test-*.tar",
        "dataset": "pass a test dataset as well",
    }[inventory.kind]
    message = (
        f"The data's own splits contain no test images, so {consequence}. To have one, {own}, or pass "
        f"test={DEFAULT_TEST} (command line: data.test={DEFAULT_TEST}), which holds back that share of train."
    )
    return Finding(kind="no_test_split", severity="warning", message=message)
