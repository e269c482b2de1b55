"""`combine`: finished runs that answer together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transferkit.core.paths import check_folder, expand
from transferkit.ensemble import combine_runs, plan_combine
from transferkit.result import Ensemble, Result, check_free

__all__ = ["combine", "plan_combine"]


def combine(
    runs: Sequence[Result | str | Path],
    *,
    method: str = "average",
    val: Any = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
) -> Ensemble | Result:
    """Finished runs on the same images as one classifier: an average of their answers, or of their weights.

    Members may differ in backbone, image size, geometry, seed and strategy. Weights are chosen greedily by the
    log loss of what each run kept of its held-back images, and judged on images that they were not chosen on. If that
    is not at least as accurate as the best single run, with a lower log loss, the best run alone is returned.

    Averages of weights are one network, at the cost of one: "soup" (runs of one fine-tuning with other settings; added
    while accuracy on `val` does not fall) and "wise" (a linear probe and a fine-tuned run whose heads read the same
    stages, mixed in tenths). They are chosen on `val`, and are never less accurate there than the best run.

    Args:
        runs: Two or more, or their folders; the same classes and training images.
        method: "average", "soup" or "wise".
        val: For "soup" and "wise": labelled images that no run was trained on, as for `adapt`; None is the validation
            split of the runs' own images.
        out: Folder for the outcome. An ensemble has each member in a folder of its own, and `ensemble.json`. None
            writes nothing.
        overwrite: Whether a run or an ensemble there may be replaced.
        seed: Of the parts on which the weights are judged.

    Returns:
        An `Ensemble` (`predict`, `save`, `members`, `weights`, and `sentences` that say how it was chosen); with "soup"
        and "wise" a `Result`, whose decision's last reasons say it.

    Raises:
        OptionError: The runs do not fit together; all that is wrong is in the message.
        DataError: `val` cannot be used, or a run was trained on some of it.
        RunFolderError: A run cannot be read, or `out` is taken.

    References:
        Caruana et al., ICML 2004 (weights); Wortsman et al., ICML 2022 and CVPR 2022 (soup and wise); deviations are in
        `ensemble/weighing.py` and `ensemble/soups.py`.

    Example:
        >>> both = combine(["runs/lite0", "runs/lite2"], out="runs/both")  # doctest: +SKIP
        >>> print(*both.sentences, sep="\\n")  # doctest: +SKIP
        >>> both.predict("photos").to_csv()  # doctest: +SKIP
    """
    if out is not None:
        check_folder(expand(out))
        check_free(expand(out), overwrite=overwrite)
    found, _ = combine_runs(runs, method=method, val=val, seed=seed)
    if out is not None:
        found.save(out, overwrite=overwrite)
    return found
