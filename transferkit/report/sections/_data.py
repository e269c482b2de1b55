"""The data: counts, samples, splits, and the audit's findings."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from transferkit.records import DataSummary, Finding, Picture
from transferkit.report._tiles import Tile, make_tile
from transferkit.report._words import capitalise, format_count, format_number, name_split, order_splits, plural, quote

__all__ = ["DataSection", "write_data"]

MAX_BARS = 30
"""Classes drawn one by one; of more, the largest and the smallest are drawn."""
EDGE_BARS = 10
MAX_SAMPLE_CLASSES = 24
MAX_SAMPLES = 6
MAX_ITEMS = 100
MAX_NAMED = 8
SEVERITIES = {
    "error": ("Errors", "stop a run"),
    "set_aside": ("Set aside", "left out of every split"),
    "warning": ("Warnings", "worth a look"),
    "info": ("Notes", "good to know"),
}


@dataclass(frozen=True, kw_only=True)
class CountRow:
    """Images of one class; segments are (split, start, width), in % of the plot's width."""

    name: str
    counts: tuple[str, ...]
    segments: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True, kw_only=True)
class FindingGroup:
    """Findings of one severity."""

    title: str
    meaning: str
    severity: str
    findings: tuple[tuple[str, str, tuple[str, ...], int], ...]


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """The data after the audit."""

    sentence: str
    split_rule: str
    splits: tuple[tuple[str, str], ...]
    sizes: tuple[str, ...]
    rows: tuple[CountRow, ...]
    more: str
    smallest: tuple[CountRow, ...]
    samples: tuple[tuple[str, tuple[Tile, ...]], ...]
    more_samples: int
    side: str
    findings: tuple[FindingGroup, ...]


def write_data(data: DataSummary, samples: Mapping[str, Sequence[Picture]]) -> DataSection:
    """The data in words, bars and pictures."""
    splits = order_splits(data.counts)
    if data.task == "regression":  # every image has every number
        return _write_numbers(data, samples, splits)
    order = sorted(range(data.num_classes), key=lambda k: -sum(data.counts[split][k] for split in splits))
    totals = [sum(data.counts[split][k] for split in splits) for k in order]
    widest = max(1, max(totals, default=1))

    def rows(indices: Iterable[int]) -> tuple[CountRow, ...]:
        return tuple(_write_count_row(data, k, splits, widest) for k in indices)

    many = data.num_classes > MAX_BARS
    between = totals[EDGE_BARS:-EDGE_BARS]
    more = f"and {plural(len(between), 'more class', 'more classes')} of {_describe_span(between)}" if many else ""
    shown = [(name, pictures) for name, pictures in samples.items() if pictures]
    return DataSection(
        sentence=_describe_counts(data),
        split_rule=data.split_rule,
        splits=tuple((split, capitalise(name_split(split))) for split in splits),
        sizes=tuple(format_count(data.size(split)) for split in splits),
        rows=rows(order[:EDGE_BARS] if many else order),
        more=more,
        smallest=rows(order[-EDGE_BARS:]) if many else (),
        samples=_write_samples(samples),
        more_samples=max(0, len(shown) - MAX_SAMPLE_CLASSES),
        side=_describe_sides(data.side_quantiles),
        findings=_group_findings(data.findings),
    )


def _write_numbers(data: DataSummary, samples: Mapping[str, Sequence[Picture]], splits: Sequence[str]) -> DataSection:
    return DataSection(
        sentence=_describe_counts(data),
        split_rule=data.split_rule,
        splits=tuple((split, capitalise(name_split(split))) for split in splits),
        sizes=tuple(format_count(data.size(split)) for split in splits),
        rows=(),
        more="",
        smallest=(),
        samples=_write_samples(samples),
        more_samples=max(0, sum(map(bool, samples.values())) - MAX_SAMPLE_CLASSES),
        side=_describe_sides(data.side_quantiles),
        findings=_group_findings(data.findings),
    )


def _write_samples(samples: Mapping[str, Sequence[Picture]]) -> tuple[tuple[str, tuple[Tile, ...]], ...]:
    shown = [(name, pictures) for name, pictures in samples.items() if pictures]
    return tuple(
        (name, tuple(make_tile(picture) for picture in pictures[:MAX_SAMPLES]))
        for name, pictures in shown[:MAX_SAMPLE_CLASSES]
    )


def _write_count_row(data: DataSummary, k: int, splits: Sequence[str], widest: int) -> CountRow:
    counts = tuple(data.counts[split][k] for split in splits)
    segments, start = [], 0
    for split, count in zip(splits, counts, strict=True):
        if count:
            segments.append((split, round(100 * start / widest, 3), round(100 * count / widest, 3)))
        start += count
    return CountRow(name=data.classes[k], counts=tuple(map(format_count, counts)), segments=tuple(segments))


def _describe_span(totals: Sequence[int]) -> str:
    least, most = min(totals), max(totals)
    if least == most:
        return f"{plural(least, 'image')} each"
    return f"{format_count(least)} to {plural(most, 'image')} each"


def _describe_counts(data: DataSummary) -> str:
    images = sum(data.size(split) for split in data.counts)
    if data.task == "regression":
        numbers = ", ".join(quote(name) for name in data.classes[:MAX_NAMED])
        more = f" and {data.num_classes - MAX_NAMED} more" if data.num_classes > MAX_NAMED else ""
        return f"{plural(images, 'image')}, each with {plural(data.num_classes, 'number')} to predict: {numbers}{more}."
    text = f"{plural(images, 'image')} in {plural(data.num_classes, 'class', 'classes')}."
    if data.task == "multi_label":
        text = f"{plural(images, 'image')}, each with any of {plural(data.num_classes, 'label')}."
    train = data.counts.get("train")
    if not train or not any(train):
        return text
    what = "label" if data.task == "multi_label" else "class"
    least, most = min(train), max(train)
    if least == most:
        return f"{text} Every {what} has {plural(least, 'training image')}."
    return (
        f"{text} The median {what} has {format_number(statistics.median(train))} training images; they range from "
        f"{format_count(least)} ({quote(data.classes[train.index(least)])}) "
        f"to {format_count(most)} ({quote(data.classes[train.index(most)])})."
    )


def _describe_sides(quantiles: tuple[float, float, float]) -> str:
    low, middle, high = quantiles
    if not high > 0:
        return ""
    if low == high:
        return f"The shorter side of the images is {middle:,.0f} px."
    return (
        f"The shorter side is {middle:,.0f} px in the median image, and {low:,.0f} to {high:,.0f} px in nine of ten "
        "images."
    )


def _group_findings(findings: Sequence[Finding]) -> tuple[FindingGroup, ...]:
    severities = [*SEVERITIES, *dict.fromkeys(one.severity for one in findings if one.severity not in SEVERITIES)]
    groups = []
    for severity in severities:
        members = [one for one in findings if one.severity == severity]
        if members:
            title, meaning = SEVERITIES.get(severity, (capitalise(severity), ""))
            rows = tuple(
                (one.kind.replace("_", " "), one.message, one.items[:MAX_ITEMS], len(one.items)) for one in members
            )
            groups.append(FindingGroup(title=title, meaning=meaning, severity=severity, findings=rows))
    return tuple(groups)
