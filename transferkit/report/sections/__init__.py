"""What each section of the report says: a `RunRecord` in; sentences, rows and figures out.

The templates only lay out. One private file per section, in the order of the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transferkit.records import HeldOut, Metrics, RunRecord
from transferkit.report._predictions import find_held_out
from transferkit.report._words import capitalise
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
from transferkit.report.sections._target_quality import TargetQuality, write_target_quality
from transferkit.report.sections._timings import Timings, write_timings
from transferkit.report.sections._training import TrainingSection, write_training
from transferkit.report.sections._views import Views, write_views

__all__ = ["Report", "write_report"]


@dataclass(frozen=True, kw_only=True)
class Words:
    """What the page calls things, by task.

    Args:
        score: The score that models are compared by.
        model, heads: What a probe is, and what all of them are.
        kinds: What the images are counted by.
        gain: The column of gains in that score, with its unit.
        truth: What a picture of a mistake truly shows.
        losses: The loss that candidates are compared by, with its unit.
        expected_by: How the expected scores came about.
    """

    score: str
    model: str
    heads: str
    kinds: str
    gain: str
    truth: str
    losses: str
    expected_by: str

    @property
    def title(self) -> str:
        """The score at the start of a sentence or in a heading."""
        return capitalise(self.score)


WORDS = {
    "single_label": Words(
        score="accuracy",
        model="a ridge classifier",
        heads="classifier",
        kinds="class",
        gain="Gain, points",
        truth="True class",
        losses="log loss in nats",
        expected_by="estimated from the training images and calibrated on earlier tasks",
    ),
    "multi_label": Words(
        score="mean average precision",
        model="a ridge regression of the labels",
        heads="head",
        kinds="label",
        gain="Gain, points",
        truth="True labels",
        losses="log loss in nats",
        expected_by="measured on training images held back from the fit",
    ),
    "regression": Words(
        score="R2",
        model="a ridge regression",
        heads="head",
        kinds="number",
        gain="Gain",
        truth="True",
        losses="squared error in units of the variance",
        expected_by="measured on training images held back from the fit",
    ),
}
"""Task -> words."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All sections, in order; `figures`: section -> name -> figure; `targets` takes the place of `quality` and
    `calibration` where images have several labels, or numbers. `words`: how those are called."""

    title: str
    pretrained: bool
    words: Words
    headline: Headline
    choice: ChoiceSection
    stages: Stages
    views: Views | None
    similarity: Similarity | None
    data: DataSection
    training: TrainingSection | None
    kept: Kept | None
    quality: Quality | None
    targets: TargetQuality | None
    mistakes: Mistakes
    calibration: CalibrationSection | None
    timings: Timings
    origins: Origins
    figures: Mapping[str, Mapping[str, Figure]]


def write_report(record: RunRecord) -> Report:
    """Everything the report says."""
    evidence, held_out = record.evidence, find_held_out(record)
    is_classes = evidence.data.task == "single_label"
    missing = {
        "views": evidence.views is None,
        "similarity": evidence.similarity_detail is None,
        "training": record.training is None,
        "kept": record.training is None,
    }
    return Report(
        title=f"{evidence.backbone.name} on {evidence.data.origin}",
        pretrained=evidence.backbone.pretrained,
        words=WORDS[evidence.data.task],
        headline=write_headline(record),
        choice=write_choice(record),
        stages=write_stages(record),
        views=write_views(evidence.views),
        similarity=write_similarity(evidence.similarity_detail),
        data=write_data(evidence.data, record.samples),
        training=write_training(record.training),
        kept=write_kept(record),
        quality=write_quality(record, held_out) if is_classes else None,
        targets=write_target_quality(record, held_out),
        mistakes=write_mistakes(record, held_out),
        calibration=_write_calibration(record, held_out),
        timings=write_timings(record),
        origins=write_origins(record),
        figures=draw_figures(record, sections=[name for name in SECTIONS if not missing.get(name)]),
    )


def _write_calibration(record: RunRecord, held_out: HeldOut | None) -> CalibrationSection | None:
    """None where there is nothing held out, or no one class per image to be sure of."""
    if held_out is None or held_out.targets is not None:
        return None
    found = record.metrics.get(held_out.split)
    return write_calibration(held_out, found if isinstance(found, Metrics) else None, record.prediction_sets)
