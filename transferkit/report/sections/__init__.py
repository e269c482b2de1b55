"""What each section of the report says: a `RunRecord` in; sentences, rows and figures out.

The templates only lay out. One private file per section, in the order of the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transferkit.records import HeldOut, RunRecord
from transferkit.report._predictions import find_held_out
from transferkit.report.charts import SECTIONS, Figure, draw_figures
from transferkit.report.sections._calibration import CalibrationSection, write_calibration
from transferkit.report.sections._choice import ChoiceSection, write_choice
from transferkit.report.sections._data import DataSection, write_data
from transferkit.report.sections._headline import Headline, write_headline
from transferkit.report.sections._kept import Kept, write_kept
from transferkit.report.sections._mistakes import Mistakes, write_mistakes
from transferkit.report.sections._origins import Origins, write_origins
from transferkit.report.sections._quality import Quality, write_quality
from transferkit.report.sections._similarity import Similarity, write_similarity
from transferkit.report.sections._stages import Stages, write_stages
from transferkit.report.sections._timings import Timings, write_timings
from transferkit.report.sections._training import TrainingSection, write_training
from transferkit.report.sections._views import Views, write_views

__all__ = ["Report", "write_report"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All sections, in order; `figures`: section -> name -> figure."""

    title: str
    pretrained: bool
    headline: Headline
    choice: ChoiceSection
    stages: Stages
    views: Views | None
    similarity: Similarity | None
    data: DataSection
    training: TrainingSection | None
    kept: Kept | None
    quality: Quality
    mistakes: Mistakes
    calibration: CalibrationSection | None
    timings: Timings
    origins: Origins
    figures: Mapping[str, Mapping[str, Figure]]


def write_report(record: RunRecord) -> Report:
    """Everything the report says."""
    evidence, held_out = record.evidence, find_held_out(record)
    missing = {
        "views": evidence.views is None,
        "similarity": evidence.similarity_detail is None,
        "training": record.training is None,
        "kept": record.training is None,
    }
    return Report(
        title=f"{evidence.backbone.name} on {evidence.data.origin}",
        pretrained=evidence.backbone.pretrained,
        headline=write_headline(record),
        choice=write_choice(record),
        stages=write_stages(record),
        views=write_views(evidence.views),
        similarity=write_similarity(evidence.similarity_detail),
        data=write_data(evidence.data, record.samples),
        training=write_training(record.training),
        kept=write_kept(record),
        quality=write_quality(record, held_out),
        mistakes=write_mistakes(record, held_out),
        calibration=None if held_out is None else _write_calibration(record, held_out),
        timings=write_timings(record),
        origins=write_origins(record),
        figures=draw_figures(record, sections=[name for name in SECTIONS if not missing.get(name)]),
    )


def _write_calibration(record: RunRecord, held_out: HeldOut) -> CalibrationSection:
    return write_calibration(held_out, record.metrics.get(held_out.split), record.prediction_sets)
