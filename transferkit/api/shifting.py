"""`measure_shift`: how new images differ from those of a run, what that costs, and what may be done about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transferkit.core.errors import OptionError
from transferkit.core.paths import check_folder, expand
from transferkit.core.provenance import quote_call
from transferkit.options import MAX_PIXELS, documents, options_from
from transferkit.result import Result, check_replaceable, load
from transferkit.shift import Shifted, ShiftOptions, compare_with_run

__all__ = ["measure_shift"]


@documents(ShiftOptions)
def measure_shift(
    result: Result | str | Path,
    images: Any,
    *,
    remedy: str = "none",
    alpha: float = 0.05,
    reject: float = 0.01,
    data: Any = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
    batch_size: int | None = None,
    cache: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: bool = True,
    command: str | None = None,
) -> Shifted:
    """Compare new images with those that a run was trained on: shift by stage, accuracy without labels, odd images.

    The training images are opened again; their features come from the bank. Labels of the new images are not needed
    and not used.

    Args:
        result: A finished run, or its folder.
        images: As for `Result.predict`.
        {options}
        data: The run's training images, where it does not name them by a path.
        out: Folder for the run with a remedy, if one is used; None: it is only returned.
        overwrite: Whether another finished run there may be replaced.
        command: What to quote as the way to do this again; None composes the Python call.

    Returns:
        `record`, what was found; and `result`, the run with the remedy that was used, or else as it was.

    Raises:
        TransferkitError: One of its kinds, saying what to do.

    Example:
        >>> found = measure_shift("runs/x", "new_photos", remedy="auto")  # doctest: +SKIP
        >>> print(*found.record.sentences, sep="\\n")  # doctest: +SKIP
        >>> found.result.predict("new_photos").to_csv()  # doctest: +SKIP
    """
    given = dict(locals())
    options = options_from(ShiftOptions, given)
    run = load(result) if isinstance(result, (str, Path)) else result
    if run.task != "single_label":
        raise OptionError(f"shift needs a run with one class per image, and this one has task={run.task}.")
    if out is not None:
        check_folder(expand(out))
        check_replaceable(expand(out), {}, overwrite=overwrite)
    found = compare_with_run(run, images, options, data=data, command=command or quote_call(measure_shift, given))
    if out is not None and found.record.remedy is not None:
        found.result.save(out, overwrite=True)  # whether that is wanted was asked before the work
    return found
