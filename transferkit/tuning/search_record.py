"""The record of a search in its folder, written and read again."""

from __future__ import annotations

import json

from transferkit.core.errors import OptionError
from transferkit.core.paths import expand
from transferkit.core.serialization import from_json, to_json
from transferkit.records import TuningRecord
from transferkit.tuning.search_options import TuneOptions

__all__ = ["read_search", "write_search"]

RECORD = "tuning.json"
"""File of a search inside `out`."""


def write_search(found: TuningRecord, options: TuneOptions) -> None:
    """Write the record into `out`, if there is one."""
    if options.out is None:
        return
    folder = expand(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps(to_json(found), indent=1) + "\n", encoding="utf-8")


def read_search(options: TuneOptions) -> TuningRecord:
    """The search whose settings are to be measured again.

    Raises:
        OptionError: `out` holds none, or one without a complete trial.
    """
    if options.out is None:
        raise OptionError(
            f"retest measures the settings of an earlier search again: out= must be its folder, with {RECORD}."
        )
    file = expand(options.out) / RECORD
    if not file.is_file():
        raise OptionError(
            f"There is nothing to retest: {file} is missing. Name the folder of an earlier search with out=, or search "
            "first, without retest."
        )
    try:
        found = from_json(TuningRecord, json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise OptionError(f"{file} is no record of a search ({error}). Search again, without retest.") from error
    if found.best is None:
        raise OptionError(f"There is nothing to retest: no trial of {file} is complete. Search again, without retest.")
    return found
