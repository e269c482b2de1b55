"""The report of a run: one HTML file that opens offline, made from a `RunRecord` alone.

A ranking has a page of its own."""

from transferkit.report._render import render, render_ranking

__all__ = ["render", "render_ranking"]
