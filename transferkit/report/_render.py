"""From a `RunRecord` to one self-contained HTML document. What it says is decided in `sections`."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from transferkit.records import FewShotRecord, ImageReview, LabelReview, Ranking, RunRecord, ShiftRecord, TuningRecord
from transferkit.report._few_shot import write_few_shot
from transferkit.report._images import write_images
from transferkit.report._labels import write_labels
from transferkit.report._ranking import write_ranking
from transferkit.report._shift import write_shift
from transferkit.report._tuning import write_tuning
from transferkit.report.sections import write_report

if TYPE_CHECKING:
    import jinja2

__all__ = [
    "render",
    "render_few_shot",
    "render_images",
    "render_labels",
    "render_ranking",
    "render_shift",
    "render_tuning",
]


def render(record: RunRecord) -> str:
    """The report of a run as one HTML document that opens offline.

    Args:
        record: The run. Class names, file names and all other text in it are treated as untrusted.

    Returns:
        HTML that loads nothing from elsewhere: pictures are data URIs, charts inline SVG; it holds no script.
    """
    return _fill("report.html.j2", report=write_report(record))


def render_ranking(ranking: Ranking) -> str:
    """The page of a ranking as one HTML document, like the report of a run.

    Args:
        ranking: All text in it is treated as untrusted.
    """
    return _fill("ranking.html.j2", page=write_ranking(ranking))


def render_few_shot(record: FewShotRecord) -> str:
    """The page of few-shot episodes as one HTML document, like the report of a run.

    Args:
        record: All text in it is treated as untrusted.
    """
    return _fill("few_shot.html.j2", page=write_few_shot(record))


def render_labels(review: LabelReview) -> str:
    """The contact sheet of a review of labels as one HTML document, like the report of a run.

    Args:
        review: All text in it is treated as untrusted.
    """
    return _fill("labels.html.j2", page=write_labels(review))


def render_images(review: ImageReview) -> str:
    """The contact sheet of copies and outliers as one HTML document, like the report of a run.

    Args:
        review: All text in it is treated as untrusted.
    """
    return _fill("images.html.j2", page=write_images(review))


def render_tuning(record: TuningRecord) -> str:
    """The page of a hyperparameter search as one HTML document, like the report of a run.

    Args:
        record: All text in it is treated as untrusted.
    """
    return _fill("tuning.html.j2", page=write_tuning(record))


def render_shift(record: ShiftRecord) -> str:
    """The page of a comparison with new images as one HTML document, like the report of a run.

    Args:
        record: All text in it is treated as untrusted.
    """
    return _fill("shift.html.j2", page=write_shift(record))


def _fill(template: str, **values: object) -> str:
    """A template with these values, as text that any file can hold."""
    html = _environment().get_template(template).render(**values)
    # File names that are not valid UTF-8 arrive with lone surrogates, which no file can be written with.
    return html.encode("utf-8", "backslashreplace").decode("utf-8")


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("transferkit.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
