#!/usr/bin/env bash
# Everything that CI checks: formatting, lint, types, tests and doctests with warnings as errors.
# PYTHON=path/to/python chooses the environment; further arguments go to pytest (e.g. -m slow).
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python}"

"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m mypy
"$python" -m pytest --durations=10 "$@"
