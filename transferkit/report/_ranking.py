"""What the page of a ranking says: a `Ranking` in; sentences and rows out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transferkit.records import MeasureScore, RankedModel, Ranking
from transferkit.report._interval_rows import IntervalRow
from transferkit.report._words import (
    MISSING,
    as_typed,
    format_count,
    format_measure,
    format_measure_range,
    format_number,
    format_percent,
    format_seconds,
    plural,
)
from transferkit.report.charts.axes import Axis, Label, measure_axis

__all__ = ["RankingPage", "write_ranking"]

MAX_RANK_TICKS = 12
"""More numbers along the axis of ranks collide on a phone."""


@dataclass(frozen=True, kw_only=True)
class RankingPage:
    """Everything the page says.

    Args:
        score, model: What backbones are compared by, and the linear one that has it.
        ranks, accuracies: One row per model, on their axes.
        costs: Cells of each model's row in the table of costs.
        measures: Rows of text under `measure_names`.
        missing: Why a measure has no value, a sentence each.
    """

    title: str
    figure: str
    score: str
    model: str
    reasons: tuple[str, ...]
    caveat: str
    pretrained: bool
    rank_axis: Axis
    ranks: tuple[IntervalRow, ...]
    accuracy_axis: Axis
    accuracies: tuple[IntervalRow, ...]
    prior: str
    costs: tuple[tuple[str, ...], ...]
    measure_names: tuple[str, ...]
    measures: tuple[tuple[str, ...], ...]
    measured: str
    missing: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    command: str


def write_ranking(ranking: Ranking) -> RankingPage:
    """The page of a ranking."""
    models = ranking.models
    ends = [share for row in models for share in row.joined.interval[1:]]
    accuracy_axis = measure_axis(ends, ranking.data.measure)
    rank_axis = _rank_axis(len(models))
    names = tuple(score.measure for score in models[0].scores)
    return RankingPage(
        title=f"{plural(len(models), 'backbone')} on {ranking.data.origin}",
        figure=models[0].name,
        score=ranking.data.measure,
        model="classifier" if ranking.data.measure == "accuracy" else "model",
        reasons=ranking.reasons,
        caveat=(
            "The interval of a rank covers which images of the same kind it is measured on. It covers neither which "
            "images the classifiers were fitted to nor what fine-tuning would change, so the share of resamples in "
            "which a backbone is best overstates its probability of being best."
        ),
        pretrained=all(row.pretrained for row in models),
        rank_axis=rank_axis,
        ranks=tuple(_rank_row(row, rank_axis, at == 0) for at, row in enumerate(models)),
        accuracy_axis=accuracy_axis,
        accuracies=tuple(_accuracy_row(row, accuracy_axis, at == 0) for at, row in enumerate(models)),
        prior=ranking.prior,
        costs=tuple(_cost_row(row, ranking.prior) for row in models),
        measure_names=names,
        measures=tuple((row.name, *map(_value, row.scores)) for row in models),
        measured=(
            f"On the top stage of {plural(ranking.measured_images, 'training image')}. Higher is better everywhere; "
            "columns are not comparable with one another, and only accuracies (knn, press) are comparable across data."
        ),
        missing=tuple(_missing(models)),
        left_out=tuple((row.name, row.reason) for row in ranking.left_out),
        facts=(
            ("Training images", format_count(ranking.images)),
            ("Classes", format_count(ranking.data.num_classes)),
            ("Resamples", format_count(ranking.resamples)),
            ("Seed", str(ranking.seed)),
            ("Pooling", ranking.pooling),
            ("Total time", format_seconds(ranking.seconds)),
        ),
        command=as_typed(ranking.command),
    )


def _rank_axis(models: int) -> Axis:
    """Ranks, with half a rank free at both ends."""
    step = -(-models // MAX_RANK_TICKS)
    marks = range(1, models + 1, step)
    ticks = tuple(Label(at=round(100 * (rank - 0.5) / models, 3), text=str(rank)) for rank in marks)
    return Axis(low=0.5, high=models + 0.5, ticks=ticks, grid=tuple(tick.at for tick in ticks))


def _rank_row(row: RankedModel, axis: Axis, chosen: bool) -> IntervalRow:
    interval = str(row.rank_low) if row.rank_low == row.rank_high else f"{row.rank_low} to {row.rank_high}"
    return IntervalRow(
        name=row.name,
        chosen=chosen,
        value=str(row.rank),
        interval=interval,
        at=axis.place(row.rank),
        low=axis.place(row.rank_low),
        high=axis.place(row.rank_high),
    )


def _accuracy_row(row: RankedModel, axis: Axis, chosen: bool) -> IntervalRow:
    accuracy, low, high = row.joined.interval
    return IntervalRow(
        name=row.name,
        chosen=chosen,
        value=format_measure(accuracy, row.joined.measure),
        interval=format_measure_range(low, high, row.joined.measure),
        at=axis.place(accuracy),
        low=axis.place(low),
        high=axis.place(high),
    )


def _cost_row(row: RankedModel, prior: str) -> tuple[str, ...]:
    known = format_count(round(row.prior)) if prior == "parameters" else format_percent(row.prior)
    return (
        row.name,
        format_percent(row.best),
        f"{row.best_stage.stage}: {format_measure(row.best_stage.interval[0], row.joined.measure)}",
        f"{known} ({row.prior_rank})",
        MISSING if row.images_per_second is None else format_number(row.images_per_second),
        f"{row.parameters / 1e6:.1f}",
        MISSING if row.gigaflops is None else format_number(row.gigaflops),
        str(row.image_size),
        format_count(row.width),
    )


def _value(score: MeasureScore) -> str:
    return MISSING if score.value is None else format_number(score.value)


def _missing(models: Sequence[RankedModel]) -> list[str]:
    return [f"{score.measure} of {row.name}: {score.reason}" for row in models for score in row.scores if score.reason]
