"""What a person opens after a run: one HTML file, offline, from a `RunRecord` alone.

A ranking has a page of its own."""

from transferkit.report._render import render, render_ranking

__all__ = ["render", "render_ranking"]
