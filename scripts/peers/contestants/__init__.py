"""The contestants, one per file: each runs in its own Python, reads a task's folder and prints one JSON object.

They know nothing of the rest of the benchmark, and only `transferkit_adapt` imports transferkit.
"""
