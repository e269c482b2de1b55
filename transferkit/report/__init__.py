"""The report of a run: one HTML file that opens offline, made from a `RunRecord` alone.

A ranking has a page of its own, and so have doubtful labels, copies and outliers, and hyperparameter searches."""

from transferkit.report._render import (
    render,
    render_images,
    render_labels,
    render_ranking,
    render_shift,
    render_tuning,
)

__all__ = ["render", "render_images", "render_labels", "render_ranking", "render_shift", "render_tuning"]
