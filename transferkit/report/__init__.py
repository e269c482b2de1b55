"""What a person opens after a run: one HTML file, offline, from a `RunRecord` alone."""

from transferkit.report._render import render

__all__ = ["render"]
