"""The report of a run: one HTML file that opens offline, made from a `RunRecord` alone.

A ranking has a page of its own, and so have doubtful labels, copies and outliers, hyperparameter searches, and few-shot
episodes."""

from transferkit.report._render import (
    render,
    render_few_shot,
    render_images,
    render_labels,
    render_ranking,
    render_shift,
    render_tuning,
)

__all__ = [
    "render",
    "render_few_shot",
    "render_images",
    "render_labels",
    "render_ranking",
    "render_shift",
    "render_tuning",
]
