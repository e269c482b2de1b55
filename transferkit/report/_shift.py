"""What the page of a comparison with new images says: a `ShiftRecord` in; sentences and rows out."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.records import ShiftRecord
from transferkit.report._words import MISSING, as_typed, format_count, format_percent, format_seconds, plural

__all__ = ["ShiftPage", "write_shift"]

LISTED = 100
"""Unfamiliar images in the table, and failures."""


@dataclass(frozen=True, kw_only=True)
class ShiftPage:
    """Everything the page says.

    Args:
        title, figure, subject: The headline.
        sentences: The outcome.
        stages: (stage, effect, by chance, p, in matched class proportions, whether it is a difference).
        classes: (class, share in training, predicted, estimated).
        methods: (method, accuracy).
        unfamiliar: (image, p, class, confidence).
        more: Unfamiliar images that are not listed.
        remedies: (name, used, estimated accuracy, gain in rehearsal, reason).
    """

    title: str
    figure: str
    subject: str
    sentences: tuple[str, ...]
    stages: tuple[tuple[str, str, str, str, str, bool], ...]
    classes: tuple[tuple[str, str, str, str], ...]
    methods: tuple[tuple[str, str], ...]
    unfamiliar: tuple[tuple[str, str, str, str], ...]
    more: int
    remedies: tuple[tuple[str, str, str, str, str], ...]
    failures: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    command: str


def write_shift(record: ShiftRecord) -> ShiftPage:
    """The page of a comparison."""
    estimate = record.estimate
    return ShiftPage(
        title=f"{plural(record.images, 'new image')} against the training images of {record.model}",
        figure=MISSING if estimate is None else format_percent(estimate.accuracy),
        subject="estimated accuracy, without labels",
        sentences=tuple(record.sentences),
        stages=tuple(
            (
                one.stage,
                f"{one.effect:.3f}",
                f"{one.expected:.3f}",
                f"{one.adjusted:.3f}",
                MISSING if one.matched is None else f"{one.matched:.3f}",
                one.adjusted <= record.alpha,
            )
            for one in record.stages
        ),
        classes=tuple(
            (one.name, format_percent(one.training), format_percent(one.predicted), format_percent(one.estimated))
            for one in record.classes
        ),
        methods=()
        if estimate is None
        else tuple((name, format_percent(value)) for name, value in estimate.methods.items()),
        unfamiliar=tuple(
            (one.item, f"{one.p_value:.4f}", one.label, format_percent(one.confidence))
            for one in record.unfamiliar[:LISTED]
        ),
        more=max(0, len(record.unfamiliar) - LISTED),
        remedies=tuple(
            (
                one.name,
                "used" if one.used else "not used",
                MISSING if one.accuracy is None else format_percent(one.accuracy),
                MISSING if one.rehearsed is None else f"{100 * one.rehearsed:+.1f}",
                one.reason,
            )
            for one in record.remedies
        ),
        failures=record.failures[:LISTED],
        facts=(
            ("Training images compared", format_count(record.reference)),
            ("New images", format_count(record.images)),
            ("Backbone", record.model),
            ("Total time", format_seconds(record.seconds)),
        ),
        command=as_typed(record.command),
    )
